/** The checks that ask the database, each one standing for itself: one that throws is one that failed. */
import type { Config } from '../config.ts';
import type { Database } from '../db/database.ts';
import {
  bossFacts,
  clockSkew,
  enqueueSelfTest,
  missingRights,
  notificationsArrive,
  serverFacts,
} from '../db/diagnostics.ts';
import { migrationStatus } from '../db/migrate.ts';
import { heldWork, workerHealth } from '../db/operations.ts';
import { type Check, check } from './doctor-checks.ts';
import { checkSchema } from './doctor-schema.ts';
import { checkSecrets } from './doctor-secrets.ts';
import { checkUsage } from './doctor-usage.ts';
import { explain } from './errors.ts';
import { duration, seconds } from './format.ts';
import { headline, nextStepOf, problemOf } from './held-work.ts';

const MIGRATE = 'Run: agentd migrate up';
const GRANT = 'Grant it the role agentd_worker, or connect as another.';
const LISTEN_DEADLINE_MS = 2_000;
const MOST_REASONS = 100;

/** Runs every check; those that need agentd's tables are skipped while they are not there. */
export async function checkDatabase(db: Database, config: Pick<Config, 'encryption'>): Promise<Check[]> {
  const migrated = await guarded('migrations', () => checkMigrations(db));
  const ready = migrated.status === 'ok';
  const whenMigrated = (name: string, work: () => Promise<Check>): Promise<Check> =>
    ready
      ? guarded(name, work)
      : Promise.resolve(check(name, 'skip', 'Not asked, because the check of the migrations failed.'));
  return [
    await guarded('server', () => checkServer(db)),
    await guarded('pgvector', () => checkVector(db)),
    migrated,
    await whenMigrated('rights', () => checkRights(db)),
    await whenMigrated('schema', () => checkSchema(db)),
    await whenMigrated('queue schema', () => checkBoss(db)),
    await whenMigrated('enqueue', () => checkEnqueue(db)),
    await guarded('notifications', () => checkListen(db)),
    await guarded('clock', () => checkClock(db)),
    await whenMigrated('stored secrets', () => checkSecrets(db, config.encryption)),
    await whenMigrated('workers', () => checkWorkers(db)),
    await whenMigrated('held work', () => checkHeldWork(db)),
    await whenMigrated('usage', () => checkUsage(db)),
  ];
}

async function guarded(name: string, work: () => Promise<Check>): Promise<Check> {
  try {
    return await work();
  } catch (error) {
    const { message, nextStep, reasonCode } = explain(error);
    // The usual advice for lacking rights is to run this command.
    return check(name, 'fail', message, reasonCode === '42501' ? GRANT : nextStep);
  }
}

async function checkServer(db: Database): Promise<Check> {
  const facts = await serverFacts(db);
  const kind = db.embedded ? 'embedded PostgreSQL' : 'PostgreSQL';
  const text = `${kind} ${facts.version}, database ${facts.database}, role ${facts.role}.`;
  if (facts.version_number < 150_000)
    return check('server', 'fail', text, 'agentd needs PostgreSQL 15 or newer.');
  if (facts.read_only) {
    return check('server', 'fail', `${text} It is read-only.`, 'Connect to the primary server.');
  }
  return check('server', 'ok', text);
}

async function checkVector(db: Database): Promise<Check> {
  const { pgvector, pgvector_available: available } = await serverFacts(db);
  if (pgvector === null) {
    return available === null
      ? check(
          'pgvector',
          'fail',
          'pgvector is not on this server.',
          'Install it: package postgresql-NN-pgvector, or image pgvector/pgvector.',
        )
      : check(
          'pgvector',
          'fail',
          `pgvector ${available} is on the server, but not in this database.`,
          MIGRATE,
        );
  }
  const [major = 0, minor = 0] = pgvector.split('.').map(Number);
  return major > 0 || minor >= 8
    ? check('pgvector', 'ok', `pgvector ${pgvector}.`)
    : check(
        'pgvector',
        'fail',
        `pgvector ${pgvector} is too old.`,
        'Install 0.8 or newer, then: alter extension vector update',
      );
}

async function checkMigrations(db: Database): Promise<Check> {
  const states = await migrationStatus(db);
  const pending = states.filter((state) => state.appliedAt === null).map((state) => state.name);
  if (pending.length === 0) return check('migrations', 'ok', `${states.length} applied.`);
  return check(
    'migrations',
    'fail',
    `${pending.length} of ${states.length} are pending, first ${pending[0]}.`,
    MIGRATE,
  );
}

async function checkRights(db: Database): Promise<Check> {
  const { missing, rowsMayBeHidden } = await missingRights(db);
  if (missing.length > 0) {
    return check('rights', 'fail', `This role lacks: ${missing.join(', ')}.`, GRANT);
  }
  return rowsMayBeHidden
    ? check('rights', 'fail', 'Row policies hide tenants’ rows from this role.', GRANT)
    : check('rights', 'ok', 'This role can do what the worker does.');
}

async function checkBoss(db: Database): Promise<Check> {
  const name = 'queue schema';
  const facts = await bossFacts(db);
  if (!facts.installed) return check(name, 'fail', 'pg-boss’s schema is not installed.', MIGRATE);
  if (facts.missingColumns.length > 0) {
    return check(
      name,
      'fail',
      `pgboss.job lacks ${facts.missingColumns.join(', ')}, which agentd.enqueue writes.`,
      MIGRATE,
    );
  }
  const text = `pg-boss schema ${facts.schemaVersion}`;
  return facts.drift.length > 0
    ? check(
        name,
        'warn',
        `${text} differs from what the package expects: ${facts.drift.join(', ')}.`,
        MIGRATE,
      )
    : check(name, 'ok', `${text}, as the package expects.`);
}

async function checkEnqueue(db: Database): Promise<Check> {
  try {
    return (await enqueueSelfTest(db))
      ? check('enqueue', 'ok', 'An inserted run becomes a job (tried in a transaction that was rolled back).')
      : check(
          'enqueue',
          'fail',
          'An inserted run did not become a job.',
          `${MIGRATE}. It makes the queues that are missing.`,
        );
  } catch (error) {
    // A worker need not be allowed to create users: the test can't be made then, and nothing is wrong.
    if ((error as { code?: unknown }).code !== '42501') throw error;
    return check(
      'enqueue',
      'warn',
      'Not tried: this role may not insert the rows of the test.',
      'Run agentd doctor as the owner to try it.',
    );
  }
}

async function checkListen(db: Database): Promise<Check> {
  const name = 'notifications';
  if (db.embedded)
    return check(name, 'skip', 'The embedded database has none across sessions; the worker polls.');
  return (await notificationsArrive(db, LISTEN_DEADLINE_MS))
    ? check(name, 'ok', 'A notification reaches a listener.')
    : check(
        name,
        'warn',
        'A notification did not arrive, as behind a pooler in transaction mode. Work is found by polling, later.',
        'Point DATABASE_URL at the server itself or at a pooler in session mode.',
      );
}

async function checkClock(db: Database): Promise<Check> {
  const { skewMs, errorMs } = await clockSkew(db);
  const sure = Math.max(0, Math.abs(skewMs) - errorMs);
  const text = `The database’s clock is ${duration(Math.abs(skewMs))} ${skewMs >= 0 ? 'ahead' : 'behind'} (± ${duration(errorMs)}).`;
  return sure > 1_000
    ? check('clock', 'warn', text, 'Run a time service (NTP) on both machines.')
    : check('clock', 'ok', text);
}

async function checkWorkers(db: Database): Promise<Check> {
  const workers = await workerHealth(db);
  const alive = workers.filter((worker) => worker.alive);
  if (alive.length > 0) return check('workers', 'ok', `${alive.length} alive.`);
  const [last] = workers;
  const text = last
    ? `None is alive; the last was seen ${seconds(last.silent_seconds)} ago.`
    : 'None was seen in the last day.';
  return check('workers', 'warn', text, 'Run: agentd start');
}

async function checkHeldWork(db: Database): Promise<Check> {
  const name = 'held work';
  const held = await heldWork(db, MOST_REASONS);
  if (held.length === 0)
    return check(name, 'ok', 'No store of vectors, message or move to another model waits for a reason.');
  return check(
    name,
    'warn',
    `Something waits or was given up, for ${held.length === 1 ? 'one reason' : `${held.length} reasons`}.`,
    null,
    held.map((row) => ({
      object: headline(row),
      problem: problemOf(row),
      next_step: nextStepOf(row),
    })),
  );
}
