import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { tableRules } from '../../src/db/migrations/access-rules.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { rowsOf } from './schema-rows.ts';
import {
  asRole,
  asUser,
  type Company,
  column,
  company,
  denied,
  inserted,
  outcome,
  personalWorkspace,
  type Runner,
  signUp,
  value,
} from './schema-support.ts';

let db: TestDatabase;
let here: Company;
let rows: Map<string, string>;
let stranger: string;
beforeAll(async () => {
  db = await testDatabase();
  here = await company(db.pool);
  rows = await rowsOf(db.pool, here);
  stranger = (await company(db.pool)).owner;
});
afterAll(() => db.dispose());

const reference = [
  'roles',
  'llm_models',
  'service_providers',
  'integration_capabilities',
  'tool_catalog',
  'pricing_plans',
];
/** What is its user's alone, also for those who share the workspace. */
const personal = [
  'account_tool_environments',
  'api_connections',
  'credential_refresh_log',
  'datastores',
  'integrations',
  'media_library',
  'media_processing_logs',
  'team_canvas_layouts',
  'user_agents',
  'user_integration_credentials',
  'user_preferences',
  'user_secrets',
];
const forOwners = ['user_roles', 'workspace_llm_config'];

/** The tables in which the caller sees the company's row. */
async function visible(client: Runner): Promise<string[]> {
  const seen: string[] = [];
  for (const [table, condition] of rows) {
    const count = await value<number>(client, `select count(*)::int from public.${table} where ${condition}`);
    if ((count ?? 0) > 0) seen.push(table);
  }
  return seen.sort();
}

/** The tables in which a statement changes the company's row. Each statement is undone. */
async function changes(client: Runner, statement: (table: string) => string): Promise<string[]> {
  const changed: string[] = [];
  for (const [table, condition] of rows) {
    await client.query('savepoint attempt');
    try {
      const result = await client.query(`${statement(table)} where ${condition}`);
      if ((result.rowCount ?? 0) > 0) changed.push(table);
    } catch (error) {
      if ((error as { code?: string }).code !== denied) throw error;
    }
    await client.query('rollback to savepoint attempt');
  }
  return changed.sort();
}

const remove = (table: string) => `delete from public.${table}`;
/** Sets a column that every table has to the value it has. */
async function touch(): Promise<(table: string) => string> {
  const firstColumns = await db.pool.query<{ table: string; column: string }>(
    `select c.relname as table, (array_agg(quote_ident(a.attname) order by a.attnum))[1] as column
       from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
      where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and a.attgenerated = ''
      group by c.relname`,
  );
  const byTable = new Map(firstColumns.rows.map((row) => [row.table, row.column]));
  return (table) => `update public.${table} set ${byTable.get(table)} = ${byTable.get(table)}`;
}

describe('every table', () => {
  test('is covered by this test', () => {
    expect([...rows.keys(), ...reference].sort()).toEqual(Object.keys(tableRules).sort());
  });

  test('shows a stranger nothing of another tenant and lets him change nothing', async () => {
    const update = await touch();
    await asUser(db.pool, stranger, async (client) => {
      expect(await visible(client)).toEqual([]);
      expect(await changes(client, update)).toEqual([]);
      expect(await changes(client, remove)).toEqual([]);
    });
  });

  test('shows nothing to a token without a user and refuses anon', async () => {
    await asRole(db.pool, 'authenticated', {}, async (client) => {
      expect(await visible(client)).toEqual([]);
      for (const table of reference) {
        expect(await column(client, `select 1 from public.${table}`), table).toEqual([]);
      }
    });
    await asRole(db.pool, 'anon', {}, async (client) => {
      for (const table of Object.keys(tableRules)) {
        expect(await outcome(client, `select 1 from public.${table} limit 1`), table).toBe(denied);
      }
    });
  });

  test('shows a viewer all of the workspace but what is its owners’ and its users’ own, and lets him change nothing', async () => {
    const update = await touch();
    await asUser(db.pool, here.viewer, async (client) => {
      const hidden = new Set([...personal, ...forOwners]);
      expect(await visible(client)).toEqual([...rows.keys()].filter((table) => !hidden.has(table)).sort());
      expect(await changes(client, update)).toEqual([]);
      expect(await changes(client, remove)).toEqual([]);
    });
  });

  test('shows the owner everything', async () => {
    await asUser(db.pool, here.owner, async (client) => {
      expect(await visible(client)).toEqual([...rows.keys()].sort());
    });
  });

  test('shows the worker and service_role everything', async () => {
    for (const role of ['agentd_worker', 'service_role']) {
      await asRole(db.pool, role, {}, async (client) => {
        expect(await visible(client)).toEqual([...rows.keys()].sort());
      });
    }
  });

  test('lets a manager change what the workspace’s work needs, and neither logs, runs, roles, keys nor what is a user’s own', async () => {
    const update = await touch();
    const managed = [
      'agent_api_connections',
      'agent_datastores',
      'agent_discord_connections',
      'agent_integration_permissions',
      'agent_mcp_connections',
      'agent_media_assignments',
      'agent_task_event_triggers',
      'agent_tasks',
      'agent_web_widget_config',
      'agents',
      'channel_configs',
      'chat_channels',
      'chat_room_members',
      'chat_rooms',
      'chat_sessions',
      'knowledge_chunks',
      'knowledge_sources',
      'leads',
      'mcp_configurations',
      'mcp_servers',
      'personas',
      'task_steps',
      'team_connections',
      'team_members',
      'teams',
      'user_team_memberships',
    ];
    await asUser(db.pool, here.manager, async (client) => {
      expect(await changes(client, update)).toEqual(managed);
      expect(await changes(client, remove)).toEqual(managed);
    });
  });
});

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
    const channel = rows.get('chat_channels')?.match(/'(.+)'/)?.[1];
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

  test('a public agent is seen by everyone, and its children and secrets by nobody else', async () => {
    await db.pool.query('update public.agents set is_public = true where id = $1', [here.agent]);
    try {
      await asUser(db.pool, stranger, async (client) => {
        expect(await visible(client)).toEqual(['agents']);
        expect(
          await outcome(client, 'select discord_bot_key from public.agents where id = $1', [here.agent]),
        ).toBe(denied);
      });
    } finally {
      await db.pool.query('update public.agents set is_public = false where id = $1', [here.agent]);
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
