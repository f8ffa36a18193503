/** Row security by example; isolation-tables.test.ts has every table. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { type Rows, rowsOf } from './schema-rows.ts';
import {
  asUser,
  type Company,
  column,
  company,
  denied,
  inserted,
  outcome,
  personalWorkspace,
  signUp,
  value,
} from './schema-support.ts';

let db: TestDatabase;
let here: Company;
let rows: Rows;
let stranger: string;
beforeAll(async () => {
  db = await testDatabase();
  here = await company(db.pool);
  rows = await rowsOf(db.pool, here);
  stranger = (await company(db.pool)).owner;
});
afterAll(() => db.dispose());

describe('inserts', () => {
  const attempt = (user: string, text: string, values: unknown[] = []) =>
    asUser(db.pool, user, (client) => outcome(client, text, values));

  test('a manager makes agents of his own, not in another’s name; a viewer and a stranger make none', async () => {
    const add = `insert into public.agents (workspace_id, name, user_id) values ($1, 'a', $2)`;
    expect(await attempt(here.manager, add, [here.workspace, here.manager])).toBe('ok');
    expect(await attempt(here.manager, add, [here.workspace, here.owner])).toBe(denied);
    expect(await attempt(here.viewer, add, [here.workspace, here.viewer])).toBe(denied);
    expect(await attempt(stranger, add, [here.workspace, stranger])).toBe(denied);
  });

  test('nobody plants rows of his own in a workspace that is not his', async () => {
    const texts = [
      `insert into public.media_library (workspace_id, file_name) values ($1, 'f')`,
      `insert into public.datastores (workspace_id, name, type) values ($1, 'd', 'pgvector')`,
      `insert into public.api_connections (workspace_id, name, service, api_key) values ($1, 'n', 's', 'k')`,
      'insert into public.team_canvas_layouts (workspace_id) values ($1)',
      'insert into public.conversations (workspace_id, user_id) values ($1, public.current_user_id())',
      `insert into public.chat_rooms (workspace_id, name) values ($1, 'r')`,
      `insert into public.workspace_members (workspace_id, user_id, role) values ($1, public.current_user_id(), 'owner')`,
    ];
    for (const text of texts) {
      expect(await attempt(stranger, text, [here.workspace]), text).toBe(denied);
    }
    // Nor moves one there.
    await asUser(db.pool, stranger, async (client) => {
      const media = await inserted(client, `insert into public.media_library (file_name) values ('f')`);
      expect(
        await outcome(client, 'update public.media_library set workspace_id = $1 where id = $2', [
          here.workspace,
          media,
        ]),
      ).toBe(denied);
    });
  });

  test('no signed-in user makes himself a member or raises his role', async () => {
    for (const user of [here.viewer, here.manager]) {
      const own = await personalWorkspace(db.pool, user);
      expect(
        await attempt(
          user,
          `insert into public.user_roles (user_id, workspace_id, role) values ($1, $2, 'OWNER')`,
          [user, here.workspace],
        ),
      ).toBe(denied);
      await asUser(db.pool, user, async (client) => {
        await client.query(
          `update public.workspace_members set role = 'owner' where user_id = $1 and workspace_id = $2`,
          [user, here.workspace],
        );
        expect(await column(client, `select agentd.my_workspace_ids('OWNER')`)).toEqual([own]);
      });
    }
  });

  test('a member talks in a channel in his own name only', async () => {
    const channel = rows.place.of('chat_channels');
    const say = 'insert into public.chat_messages (channel_id, sender_user_id, content) values ($1, $2, $3)';
    expect(await attempt(here.viewer, say, [channel, here.viewer, 'hello'])).toBe('ok');
    expect(await attempt(here.viewer, say, [channel, here.owner, 'hello'])).toBe(denied);
    expect(await attempt(stranger, say, [channel, stranger, 'hello'])).toBe(denied);
  });

  test('a signed-in user makes a workspace and reads it back in the same statement, as its owner', async () => {
    const user = await signUp(db.pool);
    const made = await asUser(db.pool, user, async (client) => {
      const id = await inserted(client, `insert into public.workspaces (name) values ('New')`);
      return { role: await value(client, 'select public.get_user_role($1)::text', [id]) };
    });
    expect(made).toEqual({ role: 'OWNER' });
  });

  test('runs, calls and usage are written by the platform alone', async () => {
    for (const table of [
      'task_runs',
      'task_step_runs',
      'llm_calls',
      'tool_calls',
      'usage_events',
      'workspace_usage',
    ]) {
      expect(await attempt(here.owner, `insert into public.${table} default values`), table).toBe(denied);
    }
  });
});

test('a membership predicate is an index condition, evaluated once a statement', async () => {
  const plan = await asUser(db.pool, here.viewer, async (client) => {
    await client.query('set local enable_seqscan = off');
    return (await column<string>(client, 'explain (verbose) select id from public.leads')).join('\n');
  });
  expect(plan).toMatch(/Index Cond: \(leads\.workspace_id = ANY/);
  expect(plan).toMatch(/InitPlan/);
});
