/** Tasks as operators read and start them. */
import type { Queryable } from './database.ts';

export type TaskRow = {
  readonly id: string;
  readonly workspace_id: string;
  readonly workspace_name: string | null;
  readonly agent_id: string;
  readonly agent_name: string | null;
  readonly name: string;
  readonly task_type: string;
  readonly status: string;
  readonly reason_code: string | null;
  readonly reason: string | null;
  readonly cron_expression: string | null;
  readonly timezone: string;
  readonly next_run_at: Date | null;
  readonly last_run_at: Date | null;
  /** Days in the task's zone, as YYYY-MM-DD. */
  readonly start_date: string | null;
  readonly end_date: string | null;
  readonly max_executions: number | null;
  readonly total_executions: number;
  readonly step_count: number;
};

const TASKS = `
  select t.id, t.workspace_id, w.name as workspace_name, t.agent_id, a.name as agent_name, t.name, t.task_type,
         t.status, t.reason_code, t.reason, t.cron_expression, t.timezone, t.next_run_at, t.last_run_at,
         t.start_date::text as start_date, t.end_date::text as end_date, t.max_executions, t.total_executions,
         t.step_count
    from public.agent_tasks t
    left join public.workspaces w on w.id = t.workspace_id
    left join public.agents a on a.id = t.agent_id`;

export type TaskFilter = { readonly workspaceId?: string; readonly status?: string; readonly limit: number };

/** Tasks that pass the filter: those with a next time first, the earliest at the top. */
export function listTasks(db: Queryable, filter: TaskFilter): Promise<TaskRow[]> {
  return db.query<TaskRow>(
    `${TASKS}
      where ($1::uuid is null or t.workspace_id = $1)
        and ($2::public.task_status is null or t.status = $2)
      order by t.status, t.next_run_at nulls last, t.name, t.id
      limit $3`,
    [filter.workspaceId ?? null, filter.status ?? null, filter.limit],
  );
}

/** One task; null if there is none. */
export async function findTask(db: Queryable, id: string): Promise<TaskRow | null> {
  const [row] = await db.query<TaskRow>(`${TASKS} where t.id = $1`, [id]);
  return row ?? null;
}

/** Starts a run of a task at once, as `public.run_task` does for users. Returns the run's id. */
export async function runTask(db: Queryable, taskId: string, input: unknown): Promise<string> {
  const [row] = await db.query<{ id: string }>('select public.run_task($1, $2::jsonb) as id', [
    taskId,
    JSON.stringify(input),
  ]);
  if (!row) throw new Error('run_task returned no row');
  return row.id;
}
