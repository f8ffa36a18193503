/** Migrating as the owner of a database who may make roles and is no superuser, as managed servers give it. */
import { randomUUID } from 'node:crypto';
import { expect, test } from 'vitest';
import { loadConfig } from '../../src/config.ts';
import { openDatabase } from '../../src/db/database.ts';
import { migrateDown, migrateUp } from '../../src/db/migrate.ts';
import { emptyDatabase, onServer } from '../support/database.ts';
import { signUp, value } from './schema-support.ts';

test('an owner without superuser migrates up, hands the objects to agentd_owner, works, and migrates down', async () => {
  const { queues } = loadConfig({});
  const fresh = await emptyDatabase();
  const login = `agentd_test_owner_${randomUUID().slice(0, 8)}`;
  await fresh.query(`create role ${login} login createrole password 'owner'`);
  await fresh.query(
    `do $$ begin execute format('alter database %I owner to ${login}', current_database()); end $$`,
  );
  await fresh.query('create extension vector');
  const url = new URL(fresh.url);
  if (onServer) Object.assign(url, { username: login, password: 'owner' });
  // the embedded database lets nobody log in: its one session takes the role's place
  else await fresh.pool.query(`set session authorization ${login}`);
  const own = openDatabase({ url: url.toString(), embedded: !onServer });
  try {
    const [role] = await own.query(
      'select rolsuper, rolbypassrls from pg_roles where rolname = current_user',
    );
    expect(role).toEqual({ rolsuper: false, rolbypassrls: false });
    await migrateUp(own, queues);
    const owners = await own.query(
      `select distinct relowner::regrole::text as owner from pg_class
        where relkind = 'r' and relname <> 'migrations' and relname <> 'migration_lock'
          and relnamespace in ('public'::regnamespace, 'agentd'::regnamespace)`,
    );
    expect(owners).toEqual([{ owner: 'agentd_owner' }]);
    if (!onServer) await fresh.pool.query('set session authorization postgres');
    // the definer functions do their work as agentd_owner
    const user = await signUp(fresh.pool);
    expect(await value(fresh.pool, 'select 1 from public.profiles where id = $1', [user])).toBe(1);
    expect(await value(fresh.pool, 'select agentd.system_user_id()')).toBeTruthy();
    if (!onServer) await fresh.pool.query(`set session authorization ${login}`);
    await migrateDown(own, { all: true, queue: true });
    expect(
      await own.query(`select 1 from pg_namespace where nspname in ('agentd', 'auth', 'pgboss')`),
    ).toEqual([]);
  } finally {
    await own.close();
    if (!onServer) await fresh.pool.query('set session authorization postgres');
    await fresh.dispose();
    if (onServer) {
      const admin = openDatabase({ url: String(process.env.TEST_DATABASE_URL), embedded: false, max: 1 });
      await admin.query(`drop role ${login}`);
      await admin.close();
    }
  }
});
