/** A database of a benchmark's own on the server of TEST_DATABASE_URL, dropped when it is over. */
import pg from 'pg';
import { loadConfig } from '../../src/config.ts';
import { openDatabase } from '../../src/db/database.ts';
import { migrateUp } from '../../src/db/migrate.ts';

/** Where the server is. It must be one that may be loaded fully while the benchmark runs. */
export const serverUrl = process.env.TEST_DATABASE_URL ?? 'postgres://postgres@127.0.0.1:55440/postgres';

export type BenchDatabase = {
  readonly url: string;
  /** As an application would use it. */
  readonly pool: pg.Pool;
  /** Ends the pool and drops the database, whoever is connected. */
  dispose(): Promise<void>;
};

/** Creates a database: empty, or migrated to agentd's newest schema. */
export async function benchDatabase(
  label: string,
  options: { migrated?: boolean } = {},
): Promise<BenchDatabase> {
  const name = `agentd_bench_${label}_${process.pid}`;
  await onServer(`drop database if exists ${name} with (force)`);
  await onServer(`create database ${name}`);
  const url = new URL(serverUrl);
  url.pathname = `/${name}`;
  if (options.migrated) {
    const db = openDatabase({ url: url.href, embedded: false, max: 2 });
    await migrateUp(db, loadConfig({ DATABASE_URL: url.href }).queues);
    await db.close();
  }
  const pool = new pg.Pool({ connectionString: url.href, max: 20 });
  pool.on('error', () => {});
  return {
    url: url.href,
    pool,
    async dispose() {
      await pool.end();
      await onServer(`drop database if exists ${name} with (force)`);
    },
  };
}

async function onServer(text: string): Promise<void> {
  const client = new pg.Client({ connectionString: serverUrl });
  await client.connect();
  try {
    await client.query(text);
  } finally {
    await client.end();
  }
}

/** Runs `work` with a database and drops it, whatever happens. */
export async function withDatabase<T>(
  label: string,
  options: { migrated?: boolean },
  work: (db: BenchDatabase) => Promise<T>,
): Promise<T> {
  const db = await benchDatabase(label, options);
  try {
    return await work(db);
  } finally {
    await db.dispose();
  }
}
