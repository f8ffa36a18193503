/**
 * Migrations up and down, and pg-boss's schema with agentd's queues, by one command.
 *
 * Kysely runs the whole batch in one transaction: a migration that fails leaves the database as it was.
 */
import { type Kysely, sql } from 'kysely';
import { type Migration, type MigrationResult, Migrator } from 'kysely/migration';
import { PgBoss } from 'pg-boss';
import type { QueueConfig } from '../config.ts';
import { bossOptions } from './boss.ts';
import { type Collision, findCollisions, markQueueSchema, queueSchema } from './collisions.ts';
import type { Database } from './database.ts';
import * as m0001 from './migrations/0001_platform.ts';
import * as m0002 from './migrations/0002_identity.ts';
import * as m0003 from './migrations/0003_models.ts';
import * as m0004 from './migrations/0004_agents.ts';
import * as m0005 from './migrations/0005_knowledge.ts';
import * as m0006 from './migrations/0006_conversations.ts';
import * as m0007 from './migrations/0007_tools.ts';
import * as m0008 from './migrations/0008_tasks.ts';
import * as m0009 from './migrations/0009_billing.ts';
import * as m0010 from './migrations/0010_engine.ts';
import * as m0011 from './migrations/0011_policies.ts';
import * as m0012 from './migrations/0012_waiting_room.ts';
import * as m0013 from './migrations/0013_run_control.ts';
import * as m0014 from './migrations/0014_rate_limits.ts';
import * as m0015 from './migrations/0015_budgets.ts';
import * as m0016 from './migrations/0016_compatibility.ts';
import * as m0017 from './migrations/0017_dashboards.ts';
import * as m0018 from './migrations/0018_profiles.ts';
import * as m0019 from './migrations/0019_isolation.ts';
import * as m0020 from './migrations/0020_platforms.ts';
import * as m0021 from './migrations/0021_ingestion.ts';
import * as m0022 from './migrations/0022_retrieval.ts';
import * as m0023 from './migrations/0023_hardening.ts';
import * as m0024 from './migrations/0024_document_repairs.ts';
import * as m0025 from './migrations/0025_remote_vectors.ts';
import * as m0026 from './migrations/0026_message_embeddings.ts';
import * as m0027 from './migrations/0027_embedding_migrations.ts';
import * as m0028 from './migrations/0028_tenancy.ts';
import * as m0029 from './migrations/0029_zep_graphs.ts';
import * as m0030 from './migrations/0030_limits.ts';
import * as m0031 from './migrations/0031_credentials.ts';
import * as m0032 from './migrations/0032_mcp.ts';
import * as m0033 from './migrations/0033_secrets.ts';
import * as m0034 from './migrations/0034_event_triggers.ts';
import * as m0035 from './migrations/0035_usage_rollup.ts';
import * as m0036 from './migrations/0036_housekeeping.ts';
import * as m0037 from './migrations/0037_limits_and_periods.ts';
import { withoutAccess } from './migrations/access.ts';

const migrations: Record<string, Migration> = {
  '0001_platform': m0001,
  '0002_identity': m0002,
  '0003_models': m0003,
  '0004_agents': m0004,
  '0005_knowledge': m0005,
  '0006_conversations': m0006,
  '0007_tools': m0007,
  '0008_tasks': m0008,
  '0009_billing': m0009,
  '0010_engine': m0010,
  '0011_policies': m0011,
  '0012_waiting_room': m0012,
  '0013_run_control': m0013,
  '0014_rate_limits': m0014,
  '0015_budgets': m0015,
  '0016_compatibility': m0016,
  '0017_dashboards': m0017,
  '0018_profiles': m0018,
  '0019_isolation': m0019,
  '0020_platforms': m0020,
  '0021_ingestion': m0021,
  '0022_retrieval': m0022,
  '0023_hardening': m0023,
  '0024_document_repairs': m0024,
  '0025_remote_vectors': m0025,
  '0026_message_embeddings': m0026,
  '0027_embedding_migrations': m0027,
  '0028_tenancy': m0028,
  '0029_zep_graphs': m0029,
  '0030_limits': m0030,
  '0031_credentials': m0031,
  '0032_mcp': m0032,
  '0033_secrets': m0033,
  '0034_event_triggers': m0034,
  '0035_usage_rollup': m0035,
  '0036_housekeeping': m0036,
  '0037_limits_and_periods': m0037,
};

/** Name of the newest migration that this version of agentd knows. */
export const newestMigration = Object.keys(migrations).at(-1) as string;

/** The database is in a state that agentd can't work with; the message says what to do. */
export class DatabaseStateError extends Error {
  override readonly name = 'DatabaseStateError';
}

/** Something of an application's own is where a pending migration makes something. Nothing was changed. */
export class CollisionError extends DatabaseStateError {
  readonly collisions: readonly Collision[];
  constructor(collisions: readonly Collision[]) {
    const names = collisions
      .slice(0, 5)
      .map(({ made }) => [made.schema, made.name].filter(Boolean).join('.'));
    const more = collisions.length > names.length ? ` and ${collisions.length - names.length} more` : '';
    super(
      `This database holds objects of others under names that agentd needs, so nothing was changed: ${names.join(', ')}${more}. ` +
        'Run: agentd migrate up --check',
    );
    this.collisions = collisions;
  }
}

/** The names of the pending migrations, and what is in their way. Changes nothing, and works on an empty database. */
export function checkMigrations(db: Database): ReturnType<typeof findCollisions> {
  return findCollisions(db, Object.keys(migrations));
}

/** Migrations after which the next one changes policies that have to be there. */
const NEEDED: ReadonlySet<string> = new Set(['0018_profiles', '0019_isolation']);

/** To the newest at once: who may do what is said when all is made, or it would take longer than the migrations themselves. */
const together: Record<string, Migration> = Object.fromEntries(
  Object.entries(migrations).map(([name, migration]) => [
    name,
    name === newestMigration || NEEDED.has(name)
      ? migration
      : { ...migration, up: (db: Kysely<unknown>) => withoutAccess(() => migration.up(db)) },
  ]),
);

function migrator(kysely: Kysely<unknown>, from = migrations): Migrator {
  return new Migrator({
    db: kysely,
    provider: { getMigrations: async () => from },
    migrationTableSchema: 'agentd',
    migrationTableName: 'migrations',
    migrationLockTableName: 'migration_lock',
  });
}

/** One migration and when it was applied; null while it is pending. */
export type MigrationState = { readonly name: string; readonly appliedAt: Date | null };

/** Lists every migration, oldest first. Works on an empty database. */
export async function migrationStatus(db: Database): Promise<MigrationState[]> {
  const [exists] = await db.query<{ exists: boolean }>(
    `select to_regclass('agentd.migrations') is not null as exists`,
  );
  const applied = exists?.exists
    ? await db.query<{ name: string; timestamp: string }>('select name, timestamp from agentd.migrations')
    : [];
  const times = new Map(applied.map((row) => [row.name, new Date(row.timestamp)]));
  return Object.keys(migrations).map((name) => ({ name, appliedAt: times.get(name) ?? null }));
}

/** Names of migrations that the database has and this version does not know: those of a newer one. */
export async function unknownMigrations(db: Database): Promise<string[]> {
  const [exists] = await db.query<{ exists: boolean }>(
    `select to_regclass('agentd.migrations') is not null as exists`,
  );
  if (!exists?.exists) return [];
  const applied = await db.query<{ name: string }>('select name from agentd.migrations order by name');
  return applied.map((row) => row.name).filter((name) => migrations[name] === undefined);
}

/**
 * Brings the database to this version and installs or updates pg-boss's schema and agentd's queues.
 *
 * Safe to run from several processes at once. Throws DatabaseStateError for a server that is too old,
 * read-only, or without pgvector, CollisionError where something is in the way; otherwise the driver's error. Returns the
 * names applied.
 */
export async function migrateUp(
  db: Database,
  queues: Readonly<Record<string, QueueConfig>>,
): Promise<string[]> {
  await requireUsableServer(db);
  const { collisions } = await checkMigrations(db);
  if (collisions.length > 0) throw new CollisionError(collisions);
  const results = unwrap(await migrator(db.kysely as Kysely<unknown>, together).migrateToLatest());
  await installQueues(db, queues);
  return results.map((result) => result.migrationName);
}

/** Applies the oldest pending migration and nothing else. Returns its name; null when there is none. For tools that look at each. */
export async function migrateOne(db: Database): Promise<string | null> {
  const [result] = unwrap(await migrator(db.kysely as Kysely<unknown>).migrateUp());
  return result?.migrationName ?? null;
}

/**
 * Takes migrations back, newest first: one of them, or all. pg-boss has no way down of its own: its
 * schema goes only with `queue: true`.
 *
 * Throws DatabaseStateError, before anything is changed, where that schema holds an application's own.
 */
export async function migrateDown(
  db: Database,
  options: { all?: boolean; queue?: boolean } = {},
): Promise<string[]> {
  const kysely = db.kysely as Kysely<unknown>;
  if (options.queue) {
    const { is, holds } = await queueSchema(db);
    if (is === 'foreign') {
      throw new DatabaseStateError(
        `Schema pgboss is not agentd's alone (${holds}), so nothing was changed. Run the command without --queue, and delete agentd's queues task-run and document-ingest yourself.`,
      );
    }
  }
  const names: string[] = [];
  do {
    const results = unwrap(await migrator(kysely).migrateDown());
    names.push(...results.map((result) => result.migrationName));
    if (results.length === 0) break;
  } while (options.all);
  if (options.queue) await sql`drop schema if exists pgboss cascade`.execute(kysely);
  if ((await migrationStatus(db)).every((m) => m.appliedAt === null)) {
    // Kysely's own tables, and with them the schema, are the last of what migrate made.
    await sql`drop schema if exists agentd cascade`.execute(kysely);
  }
  return names;
}

function unwrap(outcome: { error?: unknown; results?: MigrationResult[] }): MigrationResult[] {
  if (outcome.error) {
    const failed = outcome.results?.find((result) => result.status === 'Error');
    const cause = outcome.error instanceof Error ? outcome.error : new Error(String(outcome.error));
    throw failed
      ? new DatabaseStateError(
          `Migration ${failed.migrationName} failed and nothing was changed: ${cause.message}`,
          { cause },
        )
      : cause;
  }
  return outcome.results ?? [];
}

/**
 * Refuses a server that agentd can't work with, before anything is changed.
 *
 * Throws DatabaseStateError: too old, read-only, or without pgvector.
 */
export async function requireUsableServer(db: Database): Promise<void> {
  const [server] = await db.query<{ version: number; read_only: string; vector: string | null }>(
    `select current_setting('server_version_num')::integer as version,
            current_setting('transaction_read_only') as read_only,
            (select default_version from pg_catalog.pg_available_extensions where name = 'vector') as vector`,
  );
  if (!server) return;
  if (server.version < 150000) {
    throw new DatabaseStateError(
      `PostgreSQL ${Math.floor(server.version / 10000)} is too old: agentd needs version 15 or newer. Upgrade the server.`,
    );
  }
  if (server.read_only === 'on') {
    throw new DatabaseStateError(
      'The database is read-only. Connect to the primary server, or end its read-only mode (default_transaction_read_only).',
    );
  }
  if (server.vector === null) {
    throw new DatabaseStateError(
      'The extension pgvector is missing on this server. Install it (package postgresql-NN-pgvector, or image pgvector/pgvector) and run the command again.',
    );
  }
}

/** Installs pg-boss's schema and makes agentd's queues, each with its dead letters. */
async function installQueues(db: Database, queues: Readonly<Record<string, QueueConfig>>): Promise<void> {
  const boss = new PgBoss({ ...bossOptions(db), migrate: true, createSchema: true, supervise: false });
  boss.on('error', () => {});
  await boss.start();
  try {
    for (const [name, queue] of Object.entries(queues)) {
      const options = {
        retryLimit: queue.retryLimit,
        retryDelay: queue.retryDelaySeconds,
        retryDelayMax: queue.retryDelayMaxSeconds,
        retryBackoff: true,
        expireInSeconds: queue.expireSeconds,
        deleteAfterSeconds: queue.deleteAfterSeconds,
        ...(queue.heartbeatSeconds === null ? {} : { heartbeatSeconds: queue.heartbeatSeconds }),
      };
      const failed = `${name}-failed`;
      if (!(await boss.getQueue(failed))) await boss.createQueue(failed, { retryLimit: 0 });
      if (await boss.getQueue(name)) await boss.updateQueue(name, options);
      else await boss.createQueue(name, { ...options, policy: 'exclusive', deadLetter: failed });
      await db.query(
        `insert into agentd.queue_settings (queue, workspace_ceiling, workspace_buffer) values ($1, $2, $3)
         on conflict (queue) do update set workspace_ceiling = excluded.workspace_ceiling,
                                           workspace_buffer = excluded.workspace_buffer`,
        [name, queue.workspaceCeiling, queue.workspaceBuffer],
      );
    }
    await grantQueueRights(db);
    await db.query(markQueueSchema);
  } finally {
    await boss.stop({ graceful: false });
  }
}

/** The worker's role works the queues; it owns none of them. */
async function grantQueueRights(db: Database): Promise<void> {
  await db.query(`
    do $$
    begin
      -- Two processes that grant on one object at the same moment fail with "tuple concurrently updated".
      perform agentd.hold_lock('queue_rights');
      if exists (select 1 from pg_catalog.pg_roles where rolname = 'agentd_worker') then
        grant usage on schema pgboss to agentd_worker;
        grant select, insert, update, delete on all tables in schema pgboss to agentd_worker;
        grant usage on all sequences in schema pgboss to agentd_worker;
        grant execute on all functions in schema pgboss to agentd_worker;
      end if;
      -- agentd.enqueue and its neighbours run as their owner
      if exists (select 1 from pg_catalog.pg_roles where rolname = 'agentd_owner') then
        grant usage on schema pgboss to agentd_owner;
        grant select, insert, update, delete on all tables in schema pgboss to agentd_owner;
        grant execute on all functions in schema pgboss to agentd_owner;
      end if;
    end
    $$`);
}
