/** Every reference of schema public: nobody makes it point from one tenant's row to another's. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { crossingQuery, type Reference, references, throughPublicAgent } from './isolation-references.ts';
import {
  type Answer,
  type Caller,
  makeWorld,
  oneOfAKind,
  onStage,
  type Stage,
  type World,
} from './isolation-world.ts';
import { insertText, newRow } from './schema-rows.ts';
import { checkViolation, column, denied, foreignKeyViolation } from './schema-support.ts';

let db: TestDatabase;
let world: World;
let all: Reference[];
let crossing: string;
beforeAll(async () => {
  db = await testDatabase();
  world = await makeWorld(db);
  // Rows for what is optional, so that moving it from under them is tried too.
  const { place } = world.here;
  await db.pool.query('update public.knowledge_sources set media_id = $1, datastore_id = $2 where id = $3', [
    place.of('media_library'),
    place.of('datastores'),
    place.of('knowledge_sources'),
  ]);
  await db.pool.query('update public.agent_mcp_connections set mcp_server_id = $1 where id = $2', [
    place.of('mcp_servers'),
    place.of('agent_mcp_connections'),
  ]);
  await db.pool.query('update public.integrations set credential_id = $1 where id = $2', [
    place.of('user_integration_credentials'),
    place.of('integrations'),
  ]);
  all = await references(db.pool);
  crossing = await crossingQuery(db.pool, all);
});
afterAll(() => db.dispose());

/** What says no: row security or a trigger, a foreign key, a check, a rule of the engine. */
const refusals = [denied, foreignKeyViolation, checkViolation, '55000'];

const idOf = (side: 'here' | 'there', parent: string): string =>
  parent === 'workspaces' ? world[side].workspace : world[side].place.of(parent);

/** What must be null beside a column, where a row names one of several. */
const alternatives: Readonly<Record<string, Record<string, null>>> = {
  'chat_messages.sender_agent_id': { sender_user_id: null },
  'chat_room_members.team_id': { agent_id: null },
  'workspace_members.agent_id': { user_id: null },
  'workspace_members.team_id': { user_id: null },
};

type Side = 'here' | 'there';
/** `left` gets the references that cross once the statement is through. */
type Act = (stage: Stage, caller: Caller, one: Reference, side: Side, left?: string[]) => Promise<Answer>;

const look = (stage: Stage, left?: string[]) =>
  left && (async () => void left.push(...(await column<string>(stage.client, crossing))));

/** Points the company's row at a parent. */
const update: Act = (stage, caller, one, side, left) => {
  const beside = Object.keys(alternatives[`${one.table}.${one.column}`] ?? {}).map(
    (name) => `, ${name} = null`,
  );
  return alone(stage, one.table, ['there'], () =>
    stage.attempt(
      caller,
      `update public.${one.table} set ${one.column} = $1${beside} where ${world.here.where.get(one.table)}`,
      [idOf(side, one.parent)],
      look(stage, left),
    ),
  );
};

/** Inserts a row that is the company's but for the one column. */
const insert: Act = (stage, caller, one, side, left) => {
  const user = stage.userOf(caller) ?? world.here.author;
  const { text, values } = insertText(`public.${one.table}`, {
    ...newRow[one.table]?.({ ...world.here.place, user }),
    ...alternatives[`${one.table}.${one.column}`],
    [one.column]: idOf(side, one.parent),
  });
  return alone(stage, one.table, ['here', 'there'], () =>
    stage.attempt(caller, text, values, look(stage, left)),
  );
};

/** Takes rows away whose key the new one would have, so that nothing but a rule of isolation refuses it. */
async function alone(
  stage: Stage,
  table: string,
  sides: Side[],
  act: () => Promise<Answer>,
): Promise<Answer> {
  await stage.client.query('savepoint alone');
  if (oneOfAKind.has(table))
    for (const side of sides)
      await stage.client.query(`delete from public.${table} where ${world[side].where.get(table)}`);
  const answer = await act();
  await stage.client.query('rollback to savepoint alone');
  return answer;
}

test('the references are those of the catalog, and none crosses before anybody tries', async () => {
  expect(all.length).toBeGreaterThan(80);
  expect(await column(db.pool, crossing)).toEqual([]);
  for (const one of all) expect(world.here.where.has(one.table), one.table).toBe(true);
});

/** Who is taken out of a workspace keeps his own user_agents, as an address book: they show him nothing of the agents. */
const leavers = ['user_roles.workspace_id', 'workspace_members.workspace_id'];

/** What is written once and for all. */
const fixed: Readonly<Record<string, string>> = {
  'budgets.agent_id': 'a budget keeps its scope',
  'budgets.task_id': 'a budget keeps its scope',
};

describe.each([['owner'], ['manager'], ['author'], ['viewer']] as const)('the %s of a company', (caller) => {
  test('points no row of his at another company’s, by insert or update', async () => {
    const crossed: string[] = [];
    await onStage(db, world, async (stage) => {
      for (const one of all) {
        for (const act of [insert, update]) {
          const answer = await act(stage, caller, one, 'there');
          const refused = answer.code === 'ok' ? answer.count === 0 : refusals.includes(answer.code);
          if (!refused)
            crossed.push(`${act.name} ${one.table}.${one.column}: ${answer.code} ${answer.message}`);
        }
      }
    });
    expect(crossed).toEqual([]);
  }, 60_000);
});

describe.each([['service_role'], ['agentd_worker']] as const)('%s', (caller) => {
  test('may write each reference within a company', async () => {
    const refused: string[] = [];
    await onStage(db, world, async (stage) => {
      for (const one of all) {
        const answers = [await insert(stage, caller, one, 'here')];
        if (!fixed[`${one.table}.${one.column}`]) answers.push(await update(stage, caller, one, 'here'));
        for (const answer of answers)
          if (answer.code !== 'ok' || answer.count !== 1)
            refused.push(`${one.table}.${one.column}: ${answer.code} ${answer.message}`);
      }
    });
    expect(refused).toEqual([]);
  }, 60_000);

  test('leaves no reference that crosses, whatever of it is let through', async () => {
    const crossed: string[] = [];
    let refused = 0;
    await onStage(db, world, async (stage) => {
      for (const one of all) {
        for (const act of [insert, update]) {
          const left: string[] = [];
          const { code, message } = await act(stage, caller, one, 'there', left);
          if (left.length > 0 && !leavers.includes(`${one.table}.${one.column}`))
            crossed.push(`${act.name} ${one.table}.${one.column}: ${[...new Set(left)]}`);
          if (code !== 'ok') refused++;
          if (code !== 'ok' && !refusals.includes(code))
            crossed.push(`${one.table}.${one.column}: ${code} ${message}`);
        }
      }
    });
    expect(crossed).toEqual([]);
    expect(refused).toBeGreaterThan(60);
  }, 120_000);
});

test('a public agent of another company is used through its users, logs and messages, and through nothing else', async () => {
  await onStage(db, world, async (stage) => {
    await stage.client.query('update public.agents set is_public = true where id = $1', [world.there.agent]);
    const open: string[] = [];
    for (const one of all.filter((reference) => reference.parent === 'agents')) {
      for (const caller of ['author', 'service_role'] as const) {
        const left: string[] = [];
        const answer = await insert(stage, caller, one, 'there', left);
        expect(left, one.table).toEqual([]);
        if (answer.code === 'ok' && throughPublicAgent.includes(one.table))
          open.push(`${caller} ${one.table}`);
        else if (caller === 'author')
          expect(refusals, `${one.table} ${answer.message}`).toContain(answer.code);
      }
    }
    expect(open).toEqual([
      'service_role agent_logs',
      'author agent_messages',
      'service_role agent_messages',
      'author user_agents',
      'service_role user_agents',
    ]);
  });
});
