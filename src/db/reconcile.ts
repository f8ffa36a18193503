/**
 * Repairs: rows whose job is missing, jobs whose row is stuck, workers that are gone. Each statement is safe
 * on every node at once and repairs a bounded number.
 */
import type { Queryable } from './database.ts';

const LIMIT = 500;

async function count(
  db: Queryable,
  name: string,
  text: string,
  values: readonly unknown[] = [LIMIT],
): Promise<number> {
  const [row] = await db.query<{ repaired: number | null }>({ name, text }, values);
  return Number(row?.repaired ?? 0);
}

/**
 * Runs whose worker has lost its lease go back to the queue: their old job is dropped and a new one made.
 * Their epoch stays until they are claimed, but as they are not running any more, the old worker's
 * checkpoints change nothing.
 *
 * @param expected the time that it should be; does nothing where the database's clock says another, which was just set then
 */
export function requeueLapsedRuns(db: Queryable, expected: Date | null = null): Promise<number> {
  return count(
    db,
    'requeue_lapsed_runs',
    `
with lapsed as (
  select id, workspace_id, job_id from public.task_runs
   where status = 'running'
     -- one that holds for so long was given before the clock was set back
     and (lease_expires_at < agentd.now() or lease_expires_at > agentd.now() + interval '10 minutes')
     and ($2::timestamptz is null or agentd.now() between $2 - interval '5 seconds' and $2 + interval '5 seconds')
   order by lease_expires_at
   limit $1
     for no key update skip locked
),
dropped as materialized (
  select id, workspace_id, agentd.drop_job('task-run', job_id) from lapsed
),
requeued as (
  update public.task_runs r
     set status = 'queued', lease_expires_at = null, paused_at = agentd.now(),
         job_id = agentd.enqueue('task-run', jsonb_build_object('run_id', d.id), d.id::text, d.workspace_id, null)
    from dropped d
   where r.id = d.id
  returning r.id
)
select count(*) as repaired from requeued`,
    [LIMIT, expected],
  );
}

/** Waiting runs that are due are queued again, without a job: they come through the waiting room like new ones. */
export function wakeDueRuns(db: Queryable): Promise<number> {
  return count(
    db,
    'wake_due_runs',
    `
with due as (
  select id from public.task_runs
   where status = 'waiting' and wake_at <= agentd.now()
   order by wake_at
   limit $1
     for no key update skip locked
),
queued as (
  update public.task_runs r set status = 'queued', wake_at = null, job_id = null, is_parked = false
    from due where r.id = due.id
  returning r.id
)
select n as repaired from (select count(*) as n from queued) q
 where n = 0 or agentd.wake('task-run') is not null`,
  );
}

/**
 * Whether a run that was let in has no job that could still execute it: a probe of pg-boss's primary key for each that is let in.
 * Finding such runs by their jobs would read all finished ones, which may be millions.
 */
export async function isAnyJobLost(db: Queryable): Promise<boolean> {
  const [row] = await db.query<{ found: boolean }>({
    name: 'is_any_job_lost',
    text: `
select exists (
  select 1 from public.task_runs r
   where r.status = 'queued' and r.job_id is not null
     and not exists (select 1 from pgboss.job j
                      where j.name = 'task-run' and j.id = r.job_id and j.state in ('created', 'retry', 'active'))
) as found`,
  });
  return row?.found ?? false;
}

/** Queued runs whose job is gone (expired, deleted, dropped) get a new one. */
export function enqueueRunsWithoutJob(db: Queryable): Promise<number> {
  return count(
    db,
    'enqueue_runs_without_job',
    `
with orphaned as (
  select r.id, r.workspace_id, r.job_id from public.task_runs r
   where r.status = 'queued' and r.job_id is not null
     and r.created_at < agentd.now() - interval '5 seconds'
     and not exists (select 1 from pgboss.job j
                      where j.name = 'task-run' and j.id = r.job_id
                        and j.state in ('created', 'retry', 'active', 'failed'))
   limit $1
     for no key update of r skip locked
),
enqueued as (
  update public.task_runs r
     set job_id = agentd.enqueue('task-run', jsonb_build_object('run_id', o.id), o.id::text, o.workspace_id, null)
    from orphaned o
   where r.id = o.id
  returning r.job_id
)
select count(job_id) as repaired from enqueued`,
  );
}

/** Runs whose job has used up its attempts end as failed; the trigger on task_runs closes what they left open. */
export function failRunsWithDeadJob(db: Queryable): Promise<number> {
  return count(
    db,
    'fail_runs_with_dead_job',
    `
with dead as (
  select r.id, j.output from public.task_runs r
    join pgboss.job j on j.name = 'task-run' and j.id = r.job_id and j.state = 'failed'
   where r.status = 'queued'
   limit $1
     for no key update of r skip locked
),
failed as (
  update public.task_runs r
     set status = 'failed', reason_code = 'job_failed',
         reason = 'The job of this run failed for good: ' || coalesce(dead.output ->> 'message', 'no reason was given') ||
                  ' Its dead letter is in the queue task-run-failed.'
    from dead
   where r.id = dead.id
  returning r.id
)
select count(*) as repaired from failed`,
  );
}

/** An active job of a run that is not running proves nothing after this time: its worker is dead. */
const CLAIM_PATIENCE = `interval '30 seconds'`;

/**
 * Jobs that a dead worker left active: fetched and never claimed, or their run has ended, waits or is gone, which
 * was committed while the job's end was not. What the run needs, it gets a new one.
 */
export function dropStaleJobs(db: Queryable): Promise<number> {
  return count(
    db,
    'drop_stale_jobs',
    `
with stale as (
  select j.id from pgboss.job j
   where j.name = 'task-run' and j.policy = 'exclusive' and j.state = 'active'
     and j.started_on < agentd.now() - ${CLAIM_PATIENCE}
     and not exists (select 1 from public.task_runs r where r.id::text = j.singleton_key and r.status = 'running')
   limit $1
),
dropped as (
  delete from pgboss.job j using stale
   where j.name = 'task-run' and j.id = stale.id and j.state = 'active'
  returning j.id
)
select count(*) as repaired from dropped`,
  );
}

/** Workspaces that one look through the waiting rooms considers. */
export const WAITING_AT_ONCE = 100;

/**
 * Lets runs in that wait although there is room: what a race, a restart or a shut door has left behind.
 *
 * @param after the last workspace of the look before; null: from the first on
 * @returns how many were let in, and the last workspace looked at: null at the end
 */
export async function admitWaitingRuns(
  db: Queryable,
  after: string | null = null,
): Promise<{ admitted: number; last: string | null }> {
  const [row] = await db.query<{ admitted: number; last_id: string | null }>(
    { name: 'look_at_waiting', text: 'select admitted, last_id from agentd.look_at_waiting($1, $2)' },
    [after, WAITING_AT_ONCE],
  );
  return { admitted: row?.admitted ?? 0, last: row?.last_id ?? null };
}

/** Gives back what is set aside in budgets for runs that others than their worker ended, and forgets old counters. */
export function sweepBudgets(db: Queryable): Promise<number> {
  return count(db, 'sweep_budgets', 'select agentd.sweep_budgets($1) as repaired');
}

/** Makes the months ahead of the tables that are partitioned by time. Gives way to writers: it is tried again. */
export async function ensurePartitions(db: Queryable): Promise<number> {
  const [row] = await db.query<{ made: number }>(
    `select agentd.ensure_partitions('public.usage_events') + agentd.ensure_partitions('agentd.job_runs') as made`,
  );
  return row?.made ?? 0;
}

/** Workers that have been silent for a minute are taken for dead; they no longer ask for notifications. */
export function sweepWorkers(db: Queryable): Promise<number> {
  return count(
    db,
    'sweep_workers',
    `
with dead as (
  update agentd.workers set state = 'stopped', stopped_at = agentd.now()
   where state <> 'stopped' and last_seen_at < agentd.now() - interval '1 minute'
  returning id
),
asleep as (
  delete from agentd.sleepers s
   where not exists (select 1 from agentd.workers w
                      where w.id = s.worker_id and w.state <> 'stopped'
                        and w.last_seen_at > agentd.now() - interval '1 minute')
),
forgotten as (
  delete from agentd.workers where state = 'stopped' and last_seen_at < agentd.now() - interval '7 days'
)
select count(*) as repaired from dead`,
    [],
  );
}
