/** What `agentd doctor` asks of a database. Nothing here leaves a trace: what is written is rolled back. */
import { randomUUID } from 'node:crypto';
import pg from 'pg';
import { PgBoss } from 'pg-boss';
import { bossOptions } from './boss.ts';
import type { Database, Queryable } from './database.ts';

export type ServerFacts = {
  readonly version: string;
  /** 150004 for 15.4. */
  readonly version_number: number;
  readonly role: string;
  readonly database: string;
  readonly read_only: boolean;
  /** Null while pgvector is not installed in this database. */
  readonly pgvector: string | null;
  readonly pgvector_available: string | null;
};

/** The server, the role and pgvector. Works on an empty database. */
export async function serverFacts(db: Queryable): Promise<ServerFacts> {
  const [row] = await db.query<ServerFacts>(
    `select current_setting('server_version') as version,
            current_setting('server_version_num')::integer as version_number,
            current_user::text as role, current_database()::text as database,
            current_setting('transaction_read_only') = 'on' as read_only,
            (select extversion from pg_catalog.pg_extension where extname = 'vector') as pgvector,
            (select default_version from pg_catalog.pg_available_extensions where name = 'vector') as pgvector_available`,
  );
  if (!row) throw new Error('The server gave no facts about itself.');
  return row;
}

/** Milliseconds by which the database's clock is ahead of this machine's; half the round trip is its error. */
export async function clockSkew(
  db: Queryable,
): Promise<{ readonly skewMs: number; readonly errorMs: number }> {
  const before = Date.now();
  const [row] = await db.query<{ ms: number }>(
    'select (extract(epoch from clock_timestamp()) * 1000)::double precision as ms',
  );
  const after = Date.now();
  return { skewMs: (row?.ms ?? Number.NaN) - (before + after) / 2, errorMs: (after - before) / 2 };
}

/** A right that the worker needs, as a call that the catalog answers. */
const RIGHTS: Readonly<Record<string, string>> = {
  'select on public.task_runs': `has_table_privilege('public.task_runs', 'select')`,
  'update on public.task_runs': `has_table_privilege('public.task_runs', 'update')`,
  'insert on public.task_runs': `has_table_privilege('public.task_runs', 'insert')`,
  'insert on public.llm_calls': `has_table_privilege('public.llm_calls', 'insert')`,
  'insert on public.tool_calls': `has_table_privilege('public.tool_calls', 'insert')`,
  'insert on agentd.job_runs': `has_table_privilege('agentd.job_runs', 'insert')`,
  'execute agentd.enqueue': `has_function_privilege('agentd.enqueue(text,jsonb,text,uuid,timestamptz)', 'execute')`,
  'insert on pgboss.job': `has_table_privilege('pgboss.job', 'insert')`,
  'update on pgboss.job': `has_table_privilege('pgboss.job', 'update')`,
  'delete on pgboss.job': `has_table_privilege('pgboss.job', 'delete')`,
};

/** Rights that the current role lacks, and whether row policies could hide rows from it. */
export async function missingRights(
  db: Queryable,
): Promise<{ readonly missing: string[]; readonly rowsMayBeHidden: boolean }> {
  const names = Object.keys(RIGHTS);
  const [row] = await db.query<{ held: boolean[]; hidden: boolean }>(
    `select array[${Object.values(RIGHTS).join(', ')}] as held,
            row_security_active('public.task_runs')
              and not pg_has_role(current_user, 'agentd_worker', 'member') as hidden`,
  );
  return {
    missing: names.filter((_, index) => row?.held[index] !== true),
    rowsMayBeHidden: row?.hidden ?? false,
  };
}

/** Columns of `pgboss.job` that agentd.enqueue writes. */
const ENQUEUE_COLUMNS = [
  'name',
  'data',
  'singleton_key',
  'start_after',
  'policy',
  'priority',
  'retry_limit',
  'retry_delay',
  'retry_backoff',
  'retry_delay_max',
  'expire_seconds',
  'deletion_seconds',
  'keep_until',
  'dead_letter',
  'heartbeat_seconds',
];

export type BossFacts = {
  readonly installed: boolean;
  readonly schemaVersion: number | null;
  readonly missingColumns: readonly string[];
  /** Kinds of difference between the schema and what the package expects; empty when there is none. */
  readonly drift: readonly string[];
};

/** Whether pg-boss's schema is what the pinned package and agentd.enqueue expect. */
export async function bossFacts(db: Database): Promise<BossFacts> {
  const boss = new PgBoss({ ...bossOptions(db), supervise: false });
  boss.on('error', () => {});
  if (!(await boss.isInstalled()))
    return { installed: false, schemaVersion: null, missingColumns: [], drift: [] };
  const columns = await db.query<{ name: string }>(
    `select attname::text as name from pg_catalog.pg_attribute
      where attrelid = to_regclass('pgboss.job') and attnum > 0 and not attisdropped`,
  );
  const present = new Set(columns.map((column) => column.name));
  const report = await boss.detectSchemaDrift();
  const kinds: readonly [string, number][] = [
    ['missing tables', report.missingTables.length],
    ['missing indexes', report.missing.length],
    ['invalid indexes', report.invalid.length],
    ['other indexes', report.mismatched.length],
    ['missing functions', report.missingFunctions.length],
    ['other functions', report.mismatchedFunctions.length],
    ['other columns', report.columnDrift.length],
    ['other constraints', report.constraintDrift.length],
    ['other job states', report.enumDrift === null ? 0 : 1],
  ];
  return {
    installed: true,
    schemaVersion: await boss.schemaVersion(),
    missingColumns: ENQUEUE_COLUMNS.filter((name) => !present.has(name)),
    drift: report.ok ? [] : kinds.filter(([, found]) => found > 0).map(([kind, found]) => `${found} ${kind}`),
  };
}

/** Ends the self-test's transaction without keeping anything. */
class RolledBack extends Error {}

/**
 * Inserts a workspace, an agent, a task and a run, looks whether the run became a job, and takes it all back.
 * True when it did. Throws the driver's error when a row could not be inserted.
 */
export async function enqueueSelfTest(db: Database): Promise<boolean> {
  let enqueued = false;
  try {
    await db.transaction(async (tx) => {
      const [workspace, agent, task, run] = [1, 2, 3, 4].map(() => randomUUID());
      // a user of the platform, since a worker's role may not make one
      const [system] = await tx.query<{ id: string }>('select agentd.system_user_id() as id');
      const user = system?.id;
      await tx.query(
        `insert into public.workspaces (id, name, slug, owner_user_id) values ($1::uuid, 'agentd doctor', 'agentd-doctor-' || $1::text, $2)`,
        [workspace, user],
      );
      await tx.query(
        `insert into public.agents (id, workspace_id, user_id, name) values ($1, $2, $3, 'agentd doctor')`,
        [agent, workspace, user],
      );
      // event_based: a scheduled task would be picked up by nobody, but why let it look like one
      await tx.query(
        `insert into public.agent_tasks (id, workspace_id, user_id, agent_id, name, task_type)
         values ($1, $2, $3, $4, 'agentd doctor', 'event_based')`,
        [task, workspace, user, agent],
      );
      await tx.query('insert into public.task_runs (id, task_id) values ($1, $2)', [run, task]);
      // as a daemon does for rows that came while none slept
      await tx.query('select agentd.admit_arrivals(1000)');
      const rows = await tx.query(
        `select 1 from pgboss.job j join public.task_runs r on r.job_id = j.id
          where r.id = $1 and j.name = 'task-run'`,
        [run],
      );
      enqueued = rows.length === 1;
      throw new RolledBack();
    });
  } catch (error) {
    if (!(error instanceof RolledBack)) throw error;
  }
  return enqueued;
}

/**
 * Whether a notification reaches a listener: false behind a pooler that hands connections from transaction to
 * transaction, where LISTEN is accepted and then nothing arrives. Waits at most `deadlineMs`.
 */
export async function notificationsArrive(db: Database, deadlineMs: number): Promise<boolean> {
  const channel = `agentd_doctor_${randomUUID().replaceAll('-', '')}`;
  const client = new pg.Client({
    connectionString: db.url,
    application_name: 'agentd-doctor',
    connectionTimeoutMillis: deadlineMs,
  });
  client.on('error', () => {});
  await client.connect();
  let timer: NodeJS.Timeout | undefined;
  try {
    const arrived = new Promise<boolean>((resolve) => {
      client.on('notification', () => resolve(true));
      timer = setTimeout(() => resolve(false), deadlineMs);
    });
    await client.query(`listen ${channel}`);
    await db.query('select pg_notify($1, $2)', [channel, 'doctor']);
    return await arrived;
  } finally {
    clearTimeout(timer);
    await client.end();
  }
}
