/** Rows about jobs: attempts, sleeping daemons, paused queues. */
import type { Queryable } from './database.ts';

/** One attempt of a job, as agentd.job_runs keeps it. */
export type JobRun = {
  readonly queue: string;
  readonly jobId: string;
  readonly attempt: number;
  readonly workerId: string;
  readonly workspaceId: string | null;
  /** `lost`: another worker held the job by the time it was settled. */
  readonly outcome: 'completed' | 'retry' | 'failed' | 'snoozed' | 'handed_back' | 'lost';
  /** Milliseconds. */
  readonly durationMs: number;
  readonly error: { readonly code: string; readonly message: string } | null;
};

/** Appends attempts, all in one statement. */
export async function insertJobRuns(db: Queryable, runs: readonly JobRun[]): Promise<void> {
  await db.query(
    {
      name: 'insert_job_runs',
      text: `insert into agentd.job_runs (queue, job_id, attempt, worker_id, workspace_id, outcome, started_at, duration_ms, error)
             select queue, job_id, attempt, worker_id, workspace_id, outcome,
                    -- by the database's clock: a node whose date is wrong finds no partition
                    agentd.now() - duration_ms * interval '1 millisecond', duration_ms, error
               from jsonb_to_recordset($1::jsonb) as x (
                 queue text, job_id uuid, attempt integer, worker_id text, workspace_id uuid, outcome text,
                 duration_ms integer, error jsonb)`,
    },
    [
      JSON.stringify(
        runs.map((run) => ({
          queue: run.queue,
          job_id: run.jobId,
          attempt: run.attempt,
          worker_id: run.workerId,
          workspace_id: run.workspaceId,
          outcome: run.outcome,
          duration_ms: run.durationMs,
          error: run.error,
        })),
      ),
    ],
  );
}

/** Makes this attempt of a job its last one, so that failing it leads to the dead letters. */
export async function spendRetries(
  db: Queryable,
  queue: string,
  jobId: string,
  retryCount: number,
): Promise<void> {
  await db.query(
    `update pgboss.job set retry_limit = retry_count
      where name = $1 and id = $2 and retry_count = $3 and state = 'active'`,
    [queue, jobId, retryCount],
  );
}

/** Says that a worker sleeps with free slots on a queue: inserts then notify. */
export async function fallAsleep(db: Queryable, queue: string, workerId: string): Promise<void> {
  await db.query(
    {
      name: 'fall_asleep',
      text: 'insert into agentd.sleepers (queue, worker_id) values ($1, $2) on conflict do nothing',
    },
    [queue, workerId],
  );
}

/** Says that a worker is awake, or gone: inserts need not notify for its sake. */
export async function wakeUp(db: Queryable, queue: string, workerId: string): Promise<void> {
  await db.query(
    { name: 'wake_up', text: 'delete from agentd.sleepers where queue = $1 and worker_id = $2' },
    [queue, workerId],
  );
}

/** Arrivals that one look considers. */
const ARRIVALS_AT_ONCE = 500;
/** Looks that nobody came in by, before others' work is seen to again. */
const MOST_LOOKS = 10;

/**
 * Lets new runs into pg-boss, as many of each workspace as it has room for; parks the others. Goes on until somebody has
 * come in or no arrival is left to be looked at. Returns how many runs have a job now.
 */
export async function admitArrivals(db: Queryable): Promise<number> {
  for (let look = 0; look < MOST_LOOKS; look++) {
    const [row] = await db.query<{ admitted: number; looked_at: number }>(
      { name: 'look_at_arrivals', text: 'select admitted, looked_at from agentd.look_at_arrivals($1)' },
      [ARRIVALS_AT_ONCE],
    );
    if (!row || row.admitted > 0 || row.looked_at === 0) return row?.admitted ?? 0;
  }
  return 0;
}

/** Wakes a daemon that sleeps on a queue, if one does. */
export async function wakeQueue(db: Queryable, queue: string): Promise<void> {
  await db.query({ name: 'wake_queue', text: 'select agentd.wake($1)' }, [queue]);
}

/** Names of the queues that an operator has paused as a whole. */
export async function pausedQueues(db: Queryable): Promise<Set<string>> {
  const rows = await db.query<{ queue: string }>({
    name: 'paused_queues',
    text: 'select queue from agentd.queue_controls where workspace_id is null',
  });
  return new Set(rows.map((row) => row.queue));
}
