import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadConfig } from '../../src/config.ts';
import { migrateDown, migrateUp } from '../../src/db/migrate.ts';
import {
  callableHelpers,
  publicFunctions,
  secretColumns,
  tableRules,
} from '../../src/db/migrations/access-rules.ts';
import { emptyDatabase, type TestDatabase, testDatabase } from '../support/database.ts';
import { catalogSnapshot } from './catalog-snapshot.ts';
import { column } from './schema-support.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db.dispose());

/** Functions that are ours: of agentd, or of public and of no extension. */
const ourFunctions = `
  select p.*
    from pg_proc p
   where p.pronamespace in ('agentd'::regnamespace, 'public'::regnamespace)
     and not exists (
       select 1 from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
     )`;

const ourTables = `
  select c.*
    from pg_class c
   where c.relnamespace in ('agentd'::regnamespace, 'public'::regnamespace)
     and c.relkind in ('r', 'p')
     and c.relname not in ('migrations', 'migration_lock')`;

test('no function of schema public runs as its definer', async () => {
  const definers = await column(
    db.pool,
    `select f.oid::regprocedure::text from (${ourFunctions}) f where f.prosecdef and f.pronamespace = 'public'::regnamespace`,
  );
  expect(definers).toEqual([]);
});

test('every foreign key has an index that finds the referencing rows', async () => {
  // The index starts with a column of the key that tells rows apart: workspace_id alone does so only where it is the key.
  const bare = await column(
    db.pool,
    `select c.conrelid::regclass || ' ' || c.conname
       from pg_constraint c
       join (${ourTables}) t on t.oid = c.conrelid
      where c.contype = 'f'
        and not t.relispartition
        and not exists (
          select 1
            from pg_index i
            join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
           where i.indrelid = c.conrelid
             and (i.indpred is null or pg_get_expr(i.indpred, i.indrelid) = format('(%I IS NOT NULL)', a.attname))
             and (
               (cardinality(c.conkey) = 1 and i.indkey[0] = c.conkey[1])
               or (cardinality(c.conkey) > 1 and i.indkey[0] = any (c.conkey) and a.attname <> 'workspace_id')
               or (cardinality(c.conkey) > 1 and i.indkey[0] = any (c.conkey) and i.indkey[1] = any (c.conkey))
             )
        )
      order by 1`,
  );
  expect(bare).toEqual([]);
});

test('no two indexes are the same', async () => {
  const twins = await column(
    db.pool,
    `select a.indexrelid::regclass || ' = ' || b.indexrelid::regclass
       from pg_index a
       join pg_index b on b.indrelid = a.indrelid and b.indexrelid > a.indexrelid
       join (${ourTables}) t on t.oid = a.indrelid
      where a.indkey::text = b.indkey::text
        and a.indclass::text = b.indclass::text
        and coalesce(pg_get_expr(a.indpred, a.indrelid), '') = coalesce(pg_get_expr(b.indpred, b.indrelid), '')
        and coalesce(pg_get_expr(a.indexprs, a.indrelid), '') = coalesce(pg_get_expr(b.indexprs, b.indrelid), '')`,
  );
  expect(twins).toEqual([]);
});

test('every table has row security, and its policies are for signed-in users alone, one a command', async () => {
  const bare = await column(
    db.pool,
    `select t.oid::regclass::text from (${ourTables}) t where not t.relrowsecurity`,
  );
  expect(bare).toEqual([]);
  const odd = await column(
    db.pool,
    `select polrelid::regclass || ' ' || polcmd::text
       from pg_policy
      where polname <> 'agentd_worker_all'
      group by polrelid, polcmd
     having count(*) > 1 or bool_or(polroles <> array['authenticated'::regrole::oid]) or not bool_and(polpermissive)`,
  );
  expect(odd).toEqual([]);
  const publicTables = await column<string>(
    db.pool,
    `select t.relname::text from (${ourTables}) t where t.relnamespace = 'public'::regnamespace order by 1`,
  );
  expect(publicTables).toEqual(Object.keys(tableRules).sort());
});

test('private tables and partitions have no policy and no grant to signed-in users', async () => {
  const open = await column(
    db.pool,
    `select c.oid::regclass::text
       from pg_class c
      where c.relnamespace = 'agentd'::regnamespace
        and c.relkind in ('r', 'p', 'v', 'm', 'S')
        and (has_table_privilege('authenticated', c.oid, 'SELECT, INSERT, UPDATE, DELETE')
             or exists (select 1 from pg_policy p where p.polrelid = c.oid and p.polname <> 'agentd_worker_all'))`,
  );
  expect(open).toEqual([]);
});

test('anon can read, write and call nothing', async () => {
  const relations = await column(
    db.pool,
    `select c.oid::regclass::text
       from pg_class c
      where c.relnamespace in ('agentd'::regnamespace, 'public'::regnamespace, 'auth'::regnamespace)
        and c.relkind in ('r', 'p', 'v', 'm')
        and (has_table_privilege('anon', c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
             or has_any_column_privilege('anon', c.oid, 'SELECT, INSERT, UPDATE, REFERENCES'))`,
  );
  expect(relations).toEqual([]);
  const functions = await column(
    db.pool,
    `select f.oid::regprocedure::text from (${ourFunctions}) f where has_function_privilege('anon', f.oid, 'EXECUTE')`,
  );
  expect(functions).toEqual([]);
});

test('signed-in users call the functions that are listed for them and no others', async () => {
  const callable = await column<string>(
    db.pool,
    `select distinct f.pronamespace::regnamespace || '.' || f.proname
       from (${ourFunctions}) f
      where has_function_privilege('authenticated', f.oid, 'EXECUTE')
      order by 1`,
  );
  const listed = new Set([
    ...callableHelpers.map((name) => `agentd.${name}`),
    ...publicFunctions.map((name) => `public.${name}`),
  ]);
  expect(callable.filter((name) => !listed.has(name))).toEqual([]);
  expect(callable).not.toContain('public.vault_decrypt');
  expect(callable).not.toContain('public.create_vault_secret');
  expect(callable).toContain('agentd.my_workspace_ids');
});

test('signed-in users can read no secret column and every other column that a policy shows', async () => {
  const hidden = await column<string>(
    db.pool,
    `select c.relname || '.' || a.attname
       from (${ourTables}) c
       join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
      where c.relnamespace = 'public'::regnamespace
        and not has_column_privilege('authenticated', c.oid, a.attnum, 'SELECT')
      order by 1`,
  );
  const secrets = Object.entries(secretColumns).flatMap(([table, columns]) =>
    columns.map((name) => `${table}.${name}`),
  );
  expect(hidden).toEqual(secrets.sort());
});

test('the owner of the objects is agentd_owner, and the worker has no right to change them', async () => {
  const others = await column(
    db.pool,
    `select t.oid::regclass::text from (${ourTables}) t where t.relowner <> 'agentd_owner'::regrole
     union all
     select f.oid::regprocedure::text from (${ourFunctions}) f where f.proowner <> 'agentd_owner'::regrole`,
  );
  expect(others).toEqual([]);
  const rights = await db.pool.query(
    `select pg_has_role('agentd_worker', 'agentd_owner', 'MEMBER') as is_owner,
            has_schema_privilege('agentd_worker', 'agentd', 'CREATE') as may_create,
            has_schema_privilege('agentd_worker', 'public', 'CREATE') as may_create_public`,
  );
  expect(rights.rows[0]).toEqual({ is_owner: false, may_create: false, may_create_public: false });
});

test('the index names that the documents give are there to the letter', async () => {
  const names = [
    'idx_agents_user_id',
    'idx_chat_messages_channel_id',
    'idx_user_integration_credentials_user_id',
    'idx_agent_tasks_next_run_at',
    'idx_workspace_members_composite',
    'idx_agent_permissions_composite',
    'idx_agents_workspace',
    'idx_agents_status',
    'idx_sessions_agent',
    'idx_sessions_status',
    'idx_leads_workspace',
    'idx_knowledge_agent',
    'agents_name_idx',
    'api_connections_user_id_idx',
    'api_connections_service_idx',
    'agent_api_connections_agent_id_idx',
    'agent_api_connections_api_connection_id_idx',
    'agent_api_connections_unique_connection_idx',
    'agent_messages_agent_id_idx',
    'agent_messages_user_id_idx',
    'agent_messages_conversation_id_idx',
    'agent_messages_created_at_idx',
    'agent_feedback_message_id_idx',
    'agent_feedback_user_id_idx',
  ];
  const found = await column<string>(
    db.pool,
    `select relname::text from pg_class where relkind = 'i' and relname = any ($1)`,
    [names],
  );
  expect(found.sort()).toEqual(names.sort());
});

test('up, down and up again leaves an identical catalog, and down leaves nothing', async () => {
  const fresh = await emptyDatabase();
  try {
    const { queues } = loadConfig({});
    const before = await catalogSnapshot(fresh.pool);
    await migrateUp(fresh, queues);
    const first = await catalogSnapshot(fresh.pool);
    expect(first.length).toBeGreaterThan(1_000);
    await migrateDown(fresh, { all: true, queue: true });
    expect(await catalogSnapshot(fresh.pool)).toEqual(before);
    await migrateUp(fresh, queues);
    expect(await catalogSnapshot(fresh.pool)).toEqual(first);
  } finally {
    await fresh.dispose();
  }
}, 120_000);
