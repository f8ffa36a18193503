import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadConfig } from '../../src/config.ts';
import { migrateDown, migrateUp } from '../../src/db/migrate.ts';
import { emptyDatabase, setDatabaseClock, type TestDatabase, testDatabase } from '../support/database.ts';
import { asRole, asUser, column, company, inserted, signUp, value } from './schema-support.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db.dispose());

test('current_user_id is the token subject, else the application setting, else null, and never an error', async () => {
  const user = randomUUID();
  const other = randomUUID();
  const ask = (claims: Record<string, unknown>, setting: string) =>
    asRole(db.pool, 'authenticated', claims, async (client) => {
      await client.query(`select set_config('app.current_user_id', $1, true)`, [setting]);
      return value<string | null>(client, 'select public.current_user_id()');
    });
  expect(await ask({ sub: user }, other)).toBe(user);
  expect(await ask({}, other)).toBe(other);
  expect(await ask({}, '')).toBeNull();
  expect(await ask({ sub: 'not-a-uuid' }, 'neither is this')).toBeNull();
});

test('auth.jwt, auth.role and auth.email read the token', async () => {
  const claims = { sub: randomUUID(), role: 'authenticated', email: 'ann@example.test' };
  const seen = await asRole(db.pool, 'authenticated', claims, async (client) => {
    const result = await client.query(
      'select auth.jwt() as jwt, auth.role() as role, auth.email() as email, auth.uid() as uid',
    );
    return result.rows[0];
  });
  expect(seen).toEqual({ jwt: claims, role: 'authenticated', email: 'ann@example.test', uid: claims.sub });
});

test('is_service_caller tells the platform from a signed-in user, inside a definer function too', async () => {
  const ask = (role: string) =>
    asRole(db.pool, role, {}, (client) => value(client, 'select agentd.is_service_caller()'));
  expect(await ask('service_role')).toBe(true);
  expect(await ask('agentd_worker')).toBe(true);
  // The users' role may not even call it, so it is asked by the guard that calls it: see the owner of an agent.
  const { manager, viewer, agent } = await company(db.pool);
  await expect(
    asUser(db.pool, manager, (client) =>
      client.query('update public.agents set user_id = $1 where id = $2', [viewer, agent]),
    ),
  ).rejects.toThrow(/only an owner/);
});

test('agentd.now is the one clock: updated_at follows it', async () => {
  const user = await signUp(db.pool);
  const at = new Date('2031-05-06T07:08:09Z');
  await db.pool.query('insert into public.user_preferences (user_id) values ($1)', [user]);
  await setDatabaseClock(db, at);
  try {
    await db.pool.query(`update public.user_preferences set theme = 'dark' where user_id = $1`, [user]);
  } finally {
    await setDatabaseClock(db, null);
  }
  const updatedAt = await value<Date>(
    db.pool,
    'select updated_at from public.user_preferences where user_id = $1',
    [user],
  );
  expect(updatedAt).toEqual(at);
  const drift = await value<number>(
    db.pool,
    'select extract(epoch from agentd.now() - statement_timestamp())::float8',
  );
  expect(drift).toBe(0);
});

test('every table with updated_at keeps it true', async () => {
  const bare = await column(
    db.pool,
    `select c.oid::regclass::text
       from pg_class c
       join pg_attribute a on a.attrelid = c.oid and a.attname = 'updated_at' and not a.attisdropped
      where c.relnamespace = 'public'::regnamespace
        and c.relkind in ('r', 'p')
        and not exists (
          select 1 from pg_trigger t
           where t.tgrelid = c.oid and t.tgname = 'set_updated_at'
             and t.tgfoid = 'agentd.set_updated_at'::regproc and t.tgenabled = 'O'
        )`,
  );
  expect(bare).toEqual([]);
});

test('down drops what the platform lacked and leaves what it had', async () => {
  const fresh = await emptyDatabase();
  const { queues } = loadConfig({});
  try {
    await fresh.pool.query(`
      create schema auth;
      create table auth.users (id uuid primary key, email text, raw_app_meta_data jsonb, raw_user_meta_data jsonb);
      create function auth.uid() returns uuid language sql stable as 'select null::uuid';
      create table public.notes (id integer);
      insert into auth.users (id, email) values (gen_random_uuid(), 'early@example.test');
    `);
    await migrateUp(fresh, queues);
    expect(await column(fresh.pool, 'select name from agentd.platform_objects order by name')).toEqual([
      'auth.email()',
      'auth.jwt()',
      'auth.role()',
      'vector',
    ]);
    // A user who was there before has a workspace too, and somebody else's table is as it was.
    expect(await value(fresh.pool, 'select count(*)::int from public.workspaces where is_personal')).toBe(1);
    expect(await value(fresh.pool, `select relrowsecurity from pg_class where relname = 'notes'`)).toBe(
      false,
    );

    await migrateDown(fresh, { all: true, queue: true });
    expect(await value(fresh.pool, 'select count(*)::int from auth.users')).toBe(1);
    expect(
      await column(
        fresh.pool,
        `select proname::text from pg_proc where pronamespace = 'auth'::regnamespace order by 1`,
      ),
    ).toEqual(['uid']);
    expect(
      await column(
        fresh.pool,
        `select tgname::text from pg_trigger where tgrelid = 'auth.users'::regclass and not tgisinternal`,
      ),
    ).toEqual([]);
    expect(await value(fresh.pool, `select to_regclass('public.notes')::text`)).toBe('notes');
  } finally {
    await fresh.dispose();
  }
}, 120_000);

test('two databases of one cluster can be migrated at the same moment', async () => {
  const { queues } = loadConfig({});
  const pair = [await emptyDatabase(), await emptyDatabase()];
  try {
    await Promise.all(pair.map((fresh) => migrateUp(fresh, queues)));
    for (const fresh of pair) {
      expect(
        await inserted(fresh.pool, `insert into auth.users (email) values ('a@example.test')`),
      ).toBeTruthy();
    }
  } finally {
    await Promise.all(pair.map((fresh) => fresh.dispose()));
  }
}, 120_000);
