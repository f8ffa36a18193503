/** The documents' schemas, view by view: what schema public keeps apart is kept apart through them. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { crossingQuery, references } from './isolation-references.ts';
import { expectations, group } from './isolation-rules.ts';
import { type Caller, makeWorld, onStage, type Stage, type World } from './isolation-world.ts';
import { column, denied, value } from './schema-support.ts';

const schemas = ['agentopia', 'agentopia_diagram', 'agentcenter', 'agent_platform', 'agentexpress'];

type View = {
  readonly name: string;
  readonly columns: readonly string[];
  /** A column that a signed-in user may update, where there is one. */
  readonly target: string;
};

let db: TestDatabase;
let world: World;
let views: View[];
/** What tells this company's rows, and the other's: the ids of their rows and people. */
let here: Set<string>;
let there: Set<string>;
/** A fingerprint of every row of this company. */
let fingerprint: string;
let crossing: string;
beforeAll(async () => {
  db = await testDatabase();
  world = await makeWorld(db);
  await db.pool.query(
    'update public.chat_channels c set room_id = r.id from public.chat_rooms r where r.workspace_id = c.workspace_id',
  );
  await db.pool.query(
    'insert into public.user_roles (user_id, role_id) select $1, id from public.roles limit 1',
    [world.here.author],
  );
  views = (
    await db.pool.query<View>(
      `select c.oid::regclass::text as name, array_agg(quote_ident(a.attname) order by a.attnum) as columns,
              (array_agg(quote_ident(a.attname) order by
                 -- Any will do that is no reference and that the view does not compute.
                 (a.attname <> 'id' and a.attname not like '%\\_id'
                    and pg_column_is_updatable(c.oid, a.attnum, true)) desc, a.attnum))[1] as target
         from pg_class c
         join pg_namespace n on n.oid = c.relnamespace
         join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        where n.nspname = any ($1) and c.relkind = 'v'
        group by c.oid order by 1`,
      [schemas],
    )
  ).rows;
  const idsOf = (side: 'here' | 'there') => {
    const { where, place, workspace, author, owner, manager, viewer } = world[side];
    const rows = [...where.keys()].map(place.of).filter((id) => id.length === 36);
    return new Set([...rows, workspace, author, owner, manager, viewer]);
  };
  [here, there] = [idsOf('here'), idsOf('there')];
  fingerprint = [...world.here.where]
    .map(
      ([table, where]) =>
        `select '${table}' as t, xmin::text || ctid::text as v from public.${table} where ${where}`,
    )
    .join(' union all ');
  fingerprint = `select jsonb_object_agg(t, v) from (${fingerprint}) x`;
  crossing = await crossingQuery(db.pool, await references(db.pool));
});
afterAll(() => db.dispose());

const holds = (rows: readonly unknown[], ids: ReadonlySet<string>): boolean => {
  const said = JSON.stringify(rows);
  return [...ids].some((id) => said.includes(id));
};

/** The tables of which a statement changed this company's row. */
async function changedBy(
  stage: Stage,
  caller: Caller,
  text: string,
): Promise<{ code: string; tables: string[] }> {
  const read = () => value<Record<string, string>>(stage.client, fingerprint);
  const before = (await read()) ?? {};
  let tables: string[] = [];
  const { code } = await stage.attempt(caller, text, [], async () => {
    const after = (await read()) ?? {};
    tables = Object.keys(before).filter((table) => before[table] !== after[table]);
  });
  return { code, tables };
}

/** Statements that change no row of this company even for the platform, and why. */
const inertStatements: Readonly<Record<string, string>> = {
  'update agentopia_diagram.user_roles set created_at = created_at': 'named roles are rows of their own',
  'delete from agentopia_diagram.user_roles': 'named roles are rows of their own',
};

/** Views that have nothing of a tenant's: data of the platform. */
const platformViews = [
  'agentcenter.llm_models',
  'agentcenter.pricing_plans',
  'agentexpress.plans',
  'agentopia.integration_capabilities',
  'agentopia.service_providers',
  'agentopia.tool_catalog',
  'agentopia_diagram.roles',
];

test('every document has its views, and the platform sees this company’s rows in them', async () => {
  for (const schema of schemas)
    expect(views.filter((view) => view.name.startsWith(`${schema}.`)).length, schema).toBeGreaterThan(3);
  const without: string[] = [];
  await onStage(db, world, async (stage) => {
    for (const view of views) {
      const { rows, code } = await stage.attempt('service_role', `select * from ${view.name}`);
      expect(code, view.name).toBe('ok');
      if (!holds(rows, here)) without.push(view.name);
    }
  });
  expect(without).toEqual(platformViews);
});

test('the views of schema public show each his own workspaces', async () => {
  await db.pool.query('refresh materialized view agentd.workspace_overview');
  const seen = async (caller: Caller) =>
    onStage(
      db,
      world,
      async (stage) => (await stage.attempt(caller, 'select * from public.workspace_overview')).rows,
    );
  expect(holds(await seen('service_role'), here)).toBe(true);
  expect(holds(await seen('viewer'), here)).toBe(true);
  expect(holds(await seen('viewer'), there)).toBe(false);
  expect(holds(await seen('stranger'), here)).toBe(false);
  for (const caller of ['no user', 'anon'] as const) expect(await seen(caller), caller).toEqual([]);
});

describe('through the views', () => {
  test('a stranger sees nothing of this company, and a viewer nothing of the other', async () => {
    const open: string[] = [];
    await onStage(db, world, async (stage) => {
      for (const view of views) {
        const text = `select * from ${view.name}`;
        if (holds((await stage.attempt('stranger', text)).rows, here)) open.push(`stranger ${view.name}`);
        if (holds((await stage.attempt('outsider', text)).rows, here)) open.push(`outsider ${view.name}`);
        for (const caller of ['viewer', 'manager', 'owner', 'author'] as const)
          if (holds((await stage.attempt(caller, text)).rows, there)) open.push(`${caller} ${view.name}`);
        const anon = await stage.attempt('anon', text);
        if (anon.code !== denied) open.push(`anon ${view.name} ${anon.code}`);
        const nobody = await stage.attempt('no user', text);
        if (nobody.rows.length > 0) open.push(`no user ${view.name}`);
      }
    });
    expect(open).toEqual([]);
  });

  test('a member sees no row that he does not see in the table', async () => {
    const seen: string[] = [];
    await onStage(db, world, async (stage) => {
      for (const view of views.filter(({ columns }) => columns.includes('id'))) {
        for (const caller of ['viewer', 'manager', 'owner'] as const) {
          const { rows } = await stage.attempt(caller, `select id::text from ${view.name}`);
          const ids = new Set(rows.map((row) => row.id));
          for (const [table, where] of world.here.where) {
            if (!where.startsWith('id = ')) continue;
            const rule = expectations[table]?.select;
            if (rule && !group(rule).includes(caller) && ids.has(world.here.place.of(table)))
              seen.push(`${caller} ${view.name} ${table}`);
          }
        }
      }
    });
    expect(seen).toEqual([]);
  });

  test('strangers, viewers and those without a user change and delete nothing of this company', async () => {
    const open: string[] = [];
    const inert: string[] = [];
    await onStage(db, world, async (stage) => {
      for (const view of views) {
        for (const text of [
          `update ${view.name} set ${view.target} = ${view.target}`,
          `delete from ${view.name}`,
        ]) {
          for (const caller of ['stranger', 'outsider', 'viewer', 'no user', 'anon'] as const) {
            const { code, tables } = await changedBy(stage, caller, text);
            if (tables.length > 0) open.push(`${caller}: ${text}: ${tables}`);
            if (caller === 'anon' && code !== denied) open.push(`${caller}: ${text}: ${code}`);
          }
          // The same statement of the platform's does change something, or the test above would prove nothing.
          const { tables } = await changedBy(stage, 'service_role', text);
          if (tables.length === 0 && !platformViews.includes(view.name)) inert.push(text);
        }
      }
    });
    expect(open).toEqual([]);
    expect(inert.sort()).toEqual(Object.keys(inertStatements).sort());
  }, 120_000);

  test('nobody moves a row of his into the other company, or points it there', async () => {
    const moved: string[] = [];
    let tried = 0;
    /** Of each row of the other company the one of this. People are nobody's: anybody may be named. */
    const twin = new Map<string, string>();
    for (const table of world.there.where.keys())
      twin.set(world.there.place.of(table), world.here.place.of(table));
    twin.set(world.there.workspace, world.here.workspace);
    twin.delete(world.there.author);
    await onStage(db, world, async (stage) => {
      for (const view of views) {
        const { rows } = await stage.attempt('stranger', `select * from ${view.name}`);
        for (const row of rows) {
          for (const [name, from] of Object.entries(row)) {
            const to = twin.get(String(from));
            if (to === undefined || name === 'id') continue;
            tried++;
            const text = `update ${view.name} set ${name} = '${to}' where ${name}::text = '${from}'`;
            let left: string[] = [];
            const answer = await stage.attempt('stranger', text, [], async () => {
              left = await column<string>(stage.client, crossing);
            });
            if (left.length > 0 || (answer.code === 'ok' && answer.count > 0))
              moved.push(`${text}: ${answer.count} rows, ${left}`);
          }
        }
      }
    });
    expect(moved).toEqual([]);
    expect(tried).toBeGreaterThan(50);
  }, 60_000);
});
