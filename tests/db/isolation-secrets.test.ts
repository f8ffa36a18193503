/** A word of its own stands in every column that may hold a secret; nobody signed in ever gets to read it. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { type SignedIn, signedIn } from './isolation-rules.ts';
import { type Caller, makeWorld, onStage, rowIn, type Stage, type World } from './isolation-world.ts';
import { column, denied } from './schema-support.ts';

/** Columns that hold a secret, or may, as the documents describe them: with the text of a value that hides the word in their type. */
const text = (word: string) => word;
const json = (word: string) => JSON.stringify({ api_key: word, nested: { token: word } });
/** A word that a uuid can hold. */
const HEX = 'c0ffee00-dead-4bad-8bad-5ec4e7c0de00';
const uuid = () => HEX;
const secrets: Readonly<Record<string, Readonly<Record<string, (word: string) => string>>>> = {
  agents: { discord_bot_key: text, discord_bot_token_id: text },
  workspace_llm_config: { api_key: text, vault_api_key_id: text },
  api_connections: { api_key: text },
  integrations: { credentials: json },
  // encrypted_access_token and encrypted_refresh_token are always null, by their constraints.
  user_integration_credentials: {
    vault_access_token_id: text,
    vault_refresh_token_id: text,
    refresh_lease_token: uuid,
  },
  datastores: { config: json },
  channel_configs: { config: json },
  service_providers: { configuration_metadata: json },
  tool_catalog: { default_config: json },
  mcp_servers: { vault_api_key_id: uuid },
};
const names = Object.entries(secrets).flatMap(([table, columns]) =>
  Object.keys(columns).map((name) => ({ table, name })),
);
const WORD = 'cannery-row';

let db: TestDatabase;
let world: World;
beforeAll(async () => {
  db = await testDatabase();
  world = await makeWorld(db);
  for (const [table, columns] of Object.entries(secrets)) {
    for (const [name, value] of Object.entries(columns))
      await db.pool.query(`update public.${table} set ${name} = $1 where ${rowIn(world, table)}`, [
        value(WORD),
      ]);
  }
  const { here } = world;
  await db.pool.query('update public.user_secrets set vault_id = $1, vault_item_id = $1 where user_id = $2', [
    WORD,
    here.author,
  ]);
  await db.pool.query('update auth.users set encrypted_password = $1', [WORD]);
  await db.pool.query('analyze');
});
afterAll(() => db.dispose());

const leaks = (said: string): boolean => said.includes(WORD) || said.includes(HEX);

/** Everything that a caller reads with a query: its rows, or what the error says. */
async function reading(stage: Stage, caller: Caller, query: string): Promise<string> {
  const { rows, message } = await stage.attempt(caller, query);
  return rows.length > 0 ? JSON.stringify(rows) : message;
}

type Relation = { readonly name: string; readonly columns: string[] };

/** The tables and views, with the columns of each that signed-in users may select. */
async function readable(): Promise<Relation[]> {
  const { rows } = await db.pool.query<Relation>(
    `select c.oid::regclass::text as name, array_agg(quote_ident(a.attname) order by a.attnum) as columns
       from pg_class c
       join pg_namespace n on n.oid = c.relnamespace
       join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
      where n.nspname !~ '^(pg_|information_schema)' and c.relkind in ('r', 'p', 'v', 'm', 'f')
        and has_schema_privilege('authenticated', n.oid, 'USAGE')
        and has_column_privilege('authenticated', c.oid, a.attnum, 'SELECT')
      group by c.oid order by 1`,
  );
  return rows;
}

test('the words are where they should be', async () => {
  for (const { table, name } of names) {
    const [held] = await column<string>(
      db.pool,
      `select ${name}::text from public.${table} where ${rowIn(world, table)} and ${name} is not null limit 1`,
    );
    expect(leaks(held ?? ''), `${table}.${name}`).toBe(true);
  }
});

test.each(signedIn.map((caller) => [caller]))(
  'the %s reads them in no table and no view',
  async (caller: SignedIn) => {
    const relations = await readable();
    expect(relations.map(({ name }) => name)).toEqual(expect.arrayContaining([...world.tables]));
    for (const schema of ['agentopia', 'agentopia_diagram', 'agentcenter', 'agent_platform', 'agentexpress'])
      expect(relations.filter(({ name }) => name.startsWith(`${schema}.`)).length, schema).toBeGreaterThan(3);
    const found: string[] = [];
    let rows = 0;
    await onStage(db, world, async (stage) => {
      for (const { name, columns } of relations) {
        const said = await reading(stage, caller, `select ${columns} from ${name}`);
        if (said.startsWith('[{')) rows++;
        // The ids of his own secrets are a user's to know.
        if (leaks(said) && !(caller === 'author' && name.endsWith('user_secrets'))) found.push(name);
      }
    });
    expect(found).toEqual([]);
    expect(rows).toBeGreaterThan(caller === 'stranger' ? 20 : 50);
  },
  60_000,
);

test('no statement of a signed-in user takes a secret out of its column', async () => {
  const taken: string[] = [];
  await onStage(db, world, async (stage) => {
    for (const { table, name } of names) {
      const [shown] = await column<string>(
        stage.client,
        `select quote_ident(attname) from pg_attribute
          where attrelid = ('public.' || $1)::regclass and attnum > 0 and not attisdropped
            and atttypid in ('text'::regtype, 'jsonb'::regtype)
            and has_column_privilege('authenticated', attrelid, attnum, 'SELECT')
            and has_column_privilege('authenticated', attrelid, attnum, 'UPDATE') limit 1`,
        [table],
      );
      const where = rowIn(world, table);
      const attempts = [
        `select ${name} from public.${table}`,
        `select t from public.${table} t`,
        `select * from public.${table}`,
        `select 1 from public.${table} where ${name} is not null`,
        `select 1 from public.${table} order by ${name}`,
        `delete from public.${table} where ${name}::text like '%c%'`,
        `update public.${table} set ${name} = ${name} where ${where} returning ${name}`,
        `copy public.${table} (${name}) to stdout`,
        ...(shown
          ? [
              `update public.${table} set ${shown} = ${name}::text::${shown === 'settings' ? 'jsonb' : 'text'}`,
            ]
          : []),
      ];
      for (const caller of signedIn) {
        for (const attempt of attempts) {
          const answer = await stage.attempt(caller, attempt);
          if (answer.code !== denied || leaks(answer.message))
            taken.push(`${caller}: ${attempt}: ${answer.code}`);
        }
      }
    }
  });
  expect(taken).toEqual([]);
}, 60_000);

test('an error says nothing of a row that its reader may not read', async () => {
  const said: string[] = [];
  let violated = 0;
  await onStage(db, world, async (stage) => {
    for (const table of Object.keys(secrets)) {
      const required = await column<string>(
        stage.client,
        `select quote_ident(attname) from pg_attribute
          where attrelid = ('public.' || $1)::regclass and attnum > 0 and attnotnull and not attisdropped and attgenerated = ''`,
        [table],
      );
      for (const caller of signedIn) {
        for (const name of required) {
          const answer = await stage.attempt(
            caller,
            `update public.${table} set ${name} = null where ${rowIn(world, table)}`,
          );
          if (answer.code === '23502') violated++;
          if (leaks(answer.message)) said.push(`${caller} ${table}.${name}: ${answer.message}`);
        }
      }
    }
  });
  expect(said).toEqual([]);
  expect(violated).toBeGreaterThan(50);
}, 60_000);

test('the planner’s statistics show a signed-in user nothing of them', async () => {
  expect(
    await column(db.pool, `select 1 from pg_stats where most_common_vals::text like '%${WORD}%'`),
  ).not.toEqual([]);
  await onStage(db, world, async (stage) => {
    for (const caller of signedIn) {
      const said = await reading(
        stage,
        caller,
        `select tablename, attname, most_common_vals::text as common, histogram_bounds::text as bounds from pg_stats where schemaname not like 'pg_%'`,
      );
      expect(leaks(said), caller).toBe(false);
    }
  });
});

test('no function that a signed-in user may call gives one back, whatever it is asked for', async () => {
  const { rows: functions } = await db.pool.query<{ name: string; types: string[] }>(
    `select p.oid::regproc::text as name,
            array(select format_type(t, null) from unnest(p.proargtypes::oid[]) with ordinality as x (t, n) order by n) as types
       from pg_proc p join pg_namespace n on n.oid = p.pronamespace
      where n.nspname in ('public', 'agentd', 'agentopia', 'agentopia_diagram', 'agentcenter', 'agent_platform', 'agentexpress')
        and p.prorettype not in ('trigger'::regtype, 'event_trigger'::regtype)
        and has_schema_privilege('authenticated', n.oid, 'USAGE') and has_function_privilege('authenticated', p.oid, 'EXECUTE')
        and not exists (
          select 1 from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')`,
  );
  expect(functions.length).toBeGreaterThan(25);
  const { place } = world.here;
  const ids = [
    ...new Set([world.here.workspace, world.here.author, ...[...world.here.where.keys()].map(place.of)]),
  ].filter((id) => id.length === 36);
  const words = names.map(({ table, name }) => `${table}.${name}`);
  /** Values that an argument of a type is tried with. */
  const values = (type: string, id: string, word: string): string => {
    if (type === 'uuid') return `'${id}'`;
    if (type === 'text') return `'${word}'`;
    if (type === 'app_role') return `'VIEWER'`;
    if (type === 'boolean') return 'true';
    if (type === 'integer' || type === 'bigint') return '1';
    if (type === 'jsonb') return `'{}'`;
    if (type === 'text[]') return `'{}'`;
    if (type === 'uuid[]') return `array['${id}']`;
    if (type === 'vector') return `'[1,0]'`;
    if (type === 'double precision') return '0';
    if (type.startsWith('timestamp')) return 'now()';
    throw new Error(`No value to try an argument of type ${type} with.`);
  };
  const told: string[] = [];
  let answered = 0;
  await onStage(db, world, async (stage) => {
    for (const { name, types } of functions) {
      const asks = new Set<string>();
      for (const id of types.includes('uuid') ? ids : [ids[0] as string])
        for (const word of types.includes('text') && types.length <= 2 ? words : [id])
          asks.add(
            `${name}(${types.map((type) => `${values(type, id, word)}::${type === 'app_role' ? 'public.app_role' : type}`)})`,
          );
      for (const caller of ['viewer', 'manager', 'stranger'] as const) {
        for (const ask of asks) {
          const said = await reading(stage, caller, `select x::text from ${ask} x`);
          if (said.startsWith('[{')) answered++;
          if (leaks(said)) told.push(`${caller}: ${ask}`);
        }
      }
    }
  });
  expect(told).toEqual([]);
  expect(answered).toBeGreaterThan(200);
}, 180_000);
