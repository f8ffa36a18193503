import { PGlite } from '@electric-sql/pglite';
import { afterEach, expect, test } from 'vitest';
import { loadConfig } from '../../src/config.ts';
import { openDatabase } from '../../src/db/database.ts';
import { serveEmbedded } from '../../src/db/embedded.ts';
import { admitArrivals } from '../../src/db/jobs.ts';
import {
  DatabaseStateError,
  migrateDown,
  migrateUp,
  migrationStatus,
  newestMigration,
} from '../../src/db/migrate.ts';
import { emptyDatabase, onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform, startTask } from '../support/platform.ts';
import { catalogSnapshot } from './catalog-snapshot.ts';
import { rowsOf } from './schema-rows.ts';
import { company } from './schema-support.ts';

const { queues } = loadConfig({});

let db: TestDatabase;
const opened: TestDatabase[] = [];
afterEach(async () => {
  for (const one of opened.splice(0)) await one.dispose();
});

async function newDatabase(): Promise<TestDatabase> {
  const made = await emptyDatabase();
  opened.push(made);
  return made;
}

/** What `migrateUp` with the queues of the default configuration made of an empty one. */
async function migratedDatabase(): Promise<TestDatabase> {
  const made = await testDatabase();
  opened.push(made);
  return made;
}

async function schemasLeft(): Promise<string[]> {
  const rows = await db.query<{ name: string }>(
    `select nspname as name from pg_namespace where nspname in ('agentd', 'pgboss', 'auth') order by 1`,
  );
  return rows.map((row) => row.name);
}

const known = async (): Promise<string[]> => (await migrationStatus(db)).map(({ name }) => name);
const pending = async (): Promise<string[]> =>
  (await migrationStatus(db)).filter((migration) => migration.appliedAt === null).map(({ name }) => name);

/** Rows of what an application and the engine keep, a queued run with its job among them. */
async function fill(): Promise<void> {
  await rowsOf(db.pool, await company(db.pool));
  await startTask(db, await makePlatform(db), 'Say yes.');
  await admitArrivals(db);
  const [row] = await db.query<{ jobs: number }>('select count(*) as jobs from pgboss.job');
  expect(row?.jobs).toBeGreaterThan(0);
}

test('an empty database gets every migration and every queue; a second time there is nothing to do', async () => {
  db = await newDatabase();
  const all = await pending();
  expect(all.at(-1)).toBe(newestMigration);
  expect(await migrateUp(db, queues)).toEqual(all);
  expect(await pending()).toEqual([]);

  const before = await catalogSnapshot(db.pool);
  const made = await db.query<{ name: string }>('select name from pgboss.queue order by name');
  expect(made.map((queue) => queue.name)).toEqual(
    Object.keys(queues)
      .flatMap((name) => [name, `${name}-failed`])
      .sort(),
  );
  const times = await migrationStatus(db);
  expect(await migrateUp(db, queues)).toEqual([]);
  expect(await migrationStatus(db)).toEqual(times);
  expect(await catalogSnapshot(db.pool)).toEqual(before);
  expect(await db.query('select name from pgboss.queue order by name')).toEqual(made);
});

test('a second time brings changed settings of a queue to it', async () => {
  db = await migratedDatabase();
  const [name, queue] = Object.entries(queues)[0] ?? [];
  if (!name || !queue) throw new Error('There is no queue in the configuration.');
  await migrateUp(db, { [name]: { ...queue, retryLimit: 17, workspaceCeiling: 23 } });
  const [row] = await db.query(
    `select q.retry_limit, s.workspace_ceiling from pgboss.queue q join agentd.queue_settings s on s.queue = q.name
      where q.name = $1`,
    [name],
  );
  expect(row).toEqual({ retry_limit: 17, workspace_ceiling: 23 });
});

// The embedded database has one backend: there is no second session to race with.
test.runIf(onServer)(
  'processes that migrate at the same moment all succeed, and each step runs once',
  async () => {
    db = await newDatabase();
    const all = await pending();
    const others = [1, 2, 3].map(() => openDatabase({ url: db.url, embedded: false }));
    try {
      const applied = await Promise.all([db, ...others].map((one) => migrateUp(one, queues)));
      expect(applied.flat().sort()).toEqual(all);
      expect(await pending()).toEqual([]);
      const [row] = await db.query<{ queues: number }>('select count(*) as queues from pgboss.queue');
      expect(row?.queues).toBe(2 * Object.keys(queues).length);
    } finally {
      for (const other of others) await other.close();
    }
  },
);

test('one by one down with rows in the tables, and up again', async () => {
  db = await migratedDatabase();
  const all = await known();
  expect(await pending()).toEqual([]);
  const first = await catalogSnapshot(db.pool);
  await fill();
  for (const name of all.toReversed()) {
    expect(await migrateDown(db)).toEqual([name]);
  }
  expect(await migrateDown(db)).toEqual([]);
  expect(await pending()).toEqual(all);
  // pg-boss's schema, and the jobs in it, go only when told to
  expect(await schemasLeft()).toEqual(['pgboss']);
  expect(await migrateUp(db, queues)).toEqual(all);
  expect(await catalogSnapshot(db.pool)).toEqual(first);
  await fill();
});

test('down with all and queue leaves a database without the schemas of agentd and pg-boss', async () => {
  db = await migratedDatabase();
  const all = await known();
  await fill();
  expect(await migrateDown(db, { all: true, queue: true })).toEqual(all.toReversed());
  expect(await schemasLeft()).toEqual([]);
  const left = await db.query<{ name: string }>(
    `select tablename as name from pg_tables where schemaname = 'public'`,
  );
  expect(left).toEqual([]);
});

test('a step that fails names itself and leaves nothing of the others', async () => {
  db = await newDatabase();
  // what the look beforehand can't see: somebody refuses the table when it is made
  await db.query(`
    create function public.refuse() returns event_trigger language plpgsql as $$
    begin
      if exists (select 1 from pg_event_trigger_ddl_commands() where object_identity = 'public.task_runs') then
        raise exception 'no table task_runs here';
      end if;
    end $$;
    create event trigger refuse on ddl_command_end when tag in ('CREATE TABLE') execute function public.refuse()`);
  const failure = await migrateUp(db, queues).catch((error: unknown) => error);
  expect(failure).toBeInstanceOf(DatabaseStateError);
  expect((failure as Error).message).toMatch(
    /^Migration 0008_tasks failed and nothing was changed: .*task_runs/,
  );
  expect(await pending()).toEqual(await known());
  const tables = await db.query<{ name: string }>(
    `select schemaname || '.' || tablename as name from pg_tables
      where schemaname in ('public', 'auth', 'pgboss')`,
  );
  expect(tables).toEqual([]);
  // out of the way, it goes on as if nothing had been
  await db.query('drop event trigger refuse');
  expect((await migrateUp(db, queues)).at(-1)).toBe(newestMigration);
});

test.runIf(onServer)('a read-only database is refused with the way out, and not touched', async () => {
  db = await newDatabase();
  const [row] = await db.query<{ name: string }>('select current_database() as name');
  await db.query(`alter database ${row?.name} set default_transaction_read_only = on`);
  // the setting is for connections that come after it
  const reader = openDatabase({ url: db.url, embedded: false });
  try {
    const failure = await migrateUp(reader, queues).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(DatabaseStateError);
    expect((failure as Error).message).toMatch(/read-only.*default_transaction_read_only/);
  } finally {
    await reader.close();
  }
  expect(await schemasLeft()).toEqual([]);
});

test('a server without pgvector is refused with the package to install, and not touched', async () => {
  const server = await serveEmbedded(await PGlite.create(), 0);
  const bare = openDatabase({ url: server.url, embedded: true });
  try {
    const failure = await migrateUp(bare, queues).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(DatabaseStateError);
    expect((failure as Error).message).toMatch(/pgvector is missing.*Install it/);
    expect(await bare.query(`select 1 from pg_namespace where nspname in ('agentd', 'pgboss')`)).toEqual([]);
  } finally {
    await bare.close();
    await server.stop();
  }
});
