/** Tasks as the scheduler sees them. */
import { first, type Queryable } from './database.ts';
import { toJson } from './json.ts';

/** A task that is due, or whose first occurrence has yet to be computed. */
export type DueTask = {
  readonly id: string;
  readonly cron_expression: string | null;
  readonly timezone: string;
  readonly next_run_at: Date | null;
  readonly start_date: string | null;
  readonly end_date: string | null;
  readonly max_executions: number | null;
  readonly total_executions: number;
  readonly misfire_policy: 'run_once' | 'skip' | 'run_all';
  readonly overlap_policy: 'skip' | 'queue' | 'allow';
  /** A run of the task that has not ended, if there is one. */
  readonly live_run: string | null;
  /** Why nothing of this task is to be started by schedule: its agent is a draft or inactive; else null. */
  readonly agent_blocked: 'agent_draft' | 'agent_inactive' | null;
  /** The database's time, which alone decides what is due. */
  readonly now: Date;
};

/** Milliseconds until the next task is due; 0 if one is, null if no task is active. */
export async function nextDueInMs(db: Queryable): Promise<number | null> {
  const row = await first(
    db.query<{ due_in_ms: string | null }>({
      name: 'next_due',
      text: `
select case when exists (
         select 1 from public.agent_tasks
          where status = 'active' and task_type = 'scheduled' and next_run_at is null and cron_expression is not null)
       then 0
       else (select extract(epoch from next_run_at - agentd.now()) * 1000
               from public.agent_tasks
              where status = 'active' and task_type = 'scheduled' and next_run_at is not null
              order by next_run_at
              limit 1)
       end as due_in_ms`,
    }),
  );
  if (row?.due_in_ms == null) return null;
  return Math.max(Math.ceil(Number(row.due_in_ms)), 0);
}

/**
 * Locks due tasks, the longest due first; tasks that another daemon has locked are left to it. Call in the
 * transaction that advances them.
 */
export async function lockDueTasks(tx: Queryable, limit: number): Promise<DueTask[]> {
  return tx.query<DueTask>(
    {
      name: 'lock_due_tasks',
      text: `
with due as (
  select id from public.agent_tasks
   where status = 'active' and task_type = 'scheduled' and next_run_at <= agentd.now()
   order by next_run_at
   limit $1
     for no key update skip locked
),
unplanned as (
  select id from public.agent_tasks
   where status = 'active' and task_type = 'scheduled' and next_run_at is null and cron_expression is not null
   order by created_at
   limit $1
     for no key update skip locked
)
select t.id, t.cron_expression, t.timezone, t.next_run_at, to_char(t.start_date, 'YYYY-MM-DD') as start_date,
       to_char(t.end_date, 'YYYY-MM-DD') as end_date, t.max_executions, t.total_executions, t.misfire_policy,
       t.overlap_policy, agentd.now() as now,
       case when not a.is_active then 'agent_inactive' when a.status <> 'live' then 'agent_draft' end as agent_blocked,
       (select r.id from public.task_runs r
         where r.task_id = t.id and r.status in ('queued', 'running', 'waiting') limit 1) as live_run
  from (select id from due union all select id from unplanned) locked
  join public.agent_tasks t using (id)
  join public.agents a on a.id = t.agent_id`,
    },
    [limit],
  );
}

/** A run to insert for an occurrence: queued, or skipped with its reason. */
export type OccurrenceRow = {
  readonly task_id: string;
  readonly trigger: 'schedule' | 'catch_up';
  readonly scheduled_for: Date;
  readonly status: 'queued' | 'skipped';
  readonly is_serial: boolean;
  readonly reason_code: string | null;
  readonly reason: string | null;
};

/** How a task goes on. */
export type TaskAdvance = {
  readonly id: string;
  readonly next_run_at: Date | null;
  readonly executions: number;
  readonly ran: boolean;
  readonly status: 'active' | 'completed' | 'paused';
  readonly reason_code: string | null;
  readonly reason: string | null;
};

/**
 * Inserts occurrences and advances their tasks. An occurrence that exists already is not inserted again. A run is
 * created at the time of this statement, never before it was due: the transaction may have begun before that.
 */
export async function advanceTasks(
  tx: Queryable,
  occurrences: readonly OccurrenceRow[],
  advances: readonly TaskAdvance[],
): Promise<void> {
  if (occurrences.length > 0) {
    await tx.query(
      {
        name: 'insert_occurrences',
        text: `
insert into public.task_runs (task_id, trigger, scheduled_for, status, is_serial, reason_code, reason, created_at, finished_at)
select x.task_id, x.trigger, x.scheduled_for, x.status, x.is_serial, x.reason_code, x.reason, agentd.now(),
       case when x.status = 'skipped' then agentd.now() end
  from jsonb_to_recordset($1::jsonb) as x (
    task_id uuid, trigger public.run_trigger, scheduled_for timestamptz, status public.run_status, is_serial boolean,
    reason_code text, reason text)
 order by x.scheduled_for
    on conflict (task_id, scheduled_for) do nothing`,
      },
      [toJson(occurrences)],
    );
  }
  await tx.query(
    {
      name: 'advance_tasks',
      text: `
update public.agent_tasks t
   set next_run_at = x.next_run_at,
       total_executions = t.total_executions + x.executions,
       last_run_at = case when x.ran then agentd.now() else t.last_run_at end,
       status = x.status,
       reason_code = x.reason_code,
       reason = x.reason
  from jsonb_to_recordset($1::jsonb) as x (
    id uuid, next_run_at timestamptz, executions integer, ran boolean, status public.task_status,
    reason_code text, reason text)
 where t.id = x.id`,
    },
    [toJson(advances)],
  );
}

/** Pauses a task whose row the scheduler can't advance; touches nothing else of it. */
export async function pauseTask(db: Queryable, id: string, code: string, reason: string): Promise<void> {
  await db.query(
    `update public.agent_tasks set status = 'paused', reason_code = $2, reason = $3 where id = $1`,
    [id, code, reason],
  );
}
