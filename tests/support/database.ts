/** A migrated database of a test file's own, on whichever server the run uses. */
import pg from 'pg';
import { inject } from 'vitest';
import { type Database, openDatabase } from '../../src/db/database.ts';
import { serveEmbedded } from '../../src/db/embedded.ts';
import { databaseUrl } from './global-setup.ts';
import { loadEmbedded } from './prepared-database.ts';

export type TestDatabase = Database & {
  /** A plain pool, as an application would use. In embedded mode it shares the one backend with `Database`. */
  readonly pool: pg.Pool;
  dispose(): Promise<void>;
};

/** True when the run is on a PostgreSQL server; tests that need several sessions are marked with it. */
export const onServer = Boolean(process.env.TEST_DATABASE_URL);

let counter = 0;

/** Clones the migrated template. Dispose of it in afterAll. */
export async function testDatabase(options: { max?: number } = {}): Promise<TestDatabase> {
  const template = inject('template');
  if ('migrated' in template) {
    const server = await serveEmbedded(await loadEmbedded(template.migrated), 0);
    return wrap(server.url, true, options, () => server.stop());
  }
  const name = `agentd_test_${process.pid}_${++counter}_${Date.now().toString(36)}`;
  const admin = openDatabase({ url: template.url, embedded: false, max: 1 });
  await admin.query(`create database ${name} template ${template.name}`);
  return wrap(databaseUrl(template.url, name), false, options, async () => {
    await admin.query(`drop database if exists ${name} with (force)`);
    await admin.close();
  });
}

/** A database without agentd's schema. */
export async function emptyDatabase(): Promise<TestDatabase> {
  const template = inject('template');
  if ('empty' in template) {
    const server = await serveEmbedded(await loadEmbedded(template.empty), 0);
    return wrap(server.url, true, {}, () => server.stop());
  }
  const name = `agentd_test_${process.pid}_${++counter}_${Date.now().toString(36)}`;
  const admin = openDatabase({ url: template.url, embedded: false, max: 1 });
  await admin.query(`create database ${name}`);
  return wrap(databaseUrl(template.url, name), false, {}, async () => {
    await admin.query(`drop database if exists ${name} with (force)`);
    await admin.close();
  });
}

function wrap(
  url: string,
  embedded: boolean,
  options: { max?: number },
  drop: () => Promise<void>,
): TestDatabase {
  const db = openDatabase({ url, embedded, ...options });
  const pool = new pg.Pool({ connectionString: url, max: 4 });
  pool.on('error', () => {});
  return Object.assign(db, {
    pool,
    async dispose() {
      await pool.end();
      await db.close();
      await drop();
    },
  });
}

/**
 * Sets the database's clock for every session: the body of agentd.now() is the one place that SQL reads
 * the time from. Null gives the real time back.
 */
export async function setDatabaseClock(db: Database, at: Date | null): Promise<void> {
  await setClockBody(
    db,
    at === null ? 'select pg_catalog.statement_timestamp()' : `select timestamptz '${at.toISOString()}'`,
  );
}

/** Lets the database's clock go on at so many milliseconds from the real time, for every session. */
export async function shiftDatabaseClock(db: Database, ms: number): Promise<void> {
  await setClockBody(db, `select pg_catalog.statement_timestamp() + interval '${ms} milliseconds'`);
}

async function setClockBody(db: Database, body: string): Promise<void> {
  await db.query(
    `create or replace function agentd.now() returns timestamptz language sql stable as $$ ${body} $$`,
  );
}
