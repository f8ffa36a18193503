/** Runs and their journal as operators read them. The worker's own queries are elsewhere: these never lock and never write. */
import type { Queryable } from './database.ts';

export type RunRow = {
  readonly id: string;
  readonly workspace_id: string;
  readonly workspace_name: string | null;
  readonly task_id: string | null;
  readonly task_name: string | null;
  readonly agent_id: string | null;
  readonly agent_name: string | null;
  readonly retry_of_run_id: string | null;
  readonly trigger: string;
  readonly scheduled_for: Date | null;
  readonly status: string;
  readonly reason_code: string | null;
  readonly reason: string | null;
  readonly current_step: number;
  readonly wake_at: Date | null;
  readonly worker_id: string | null;
  readonly turns: number;
  readonly tool_calls: number;
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  /** Millionths of the currency in which models are priced. */
  readonly cost_micros: number;
  readonly created_at: Date;
  readonly started_at: Date | null;
  readonly finished_at: Date | null;
};

const RUN_COLUMNS = `
  r.id, r.workspace_id, w.name as workspace_name, r.task_id,
  coalesce(t.name, r.settings ->> 'task_name') as task_name, r.agent_id, a.name as agent_name,
  r.retry_of_run_id, r.trigger, r.scheduled_for, r.status, r.reason_code, r.reason, r.current_step, r.wake_at,
  r.worker_id, r.turns, r.tool_calls, r.prompt_tokens, r.completion_tokens, r.cost_micros,
  r.created_at, r.started_at, r.finished_at`;

const RUN_TABLES = `
  public.task_runs r
  left join public.workspaces w on w.id = r.workspace_id
  left join public.agent_tasks t on t.id = r.task_id
  left join public.agents a on a.id = r.agent_id`;

export type RunFilter = {
  readonly workspaceId?: string;
  readonly taskId?: string;
  readonly status?: string;
  readonly limit: number;
};

/** The newest runs that pass the filter. */
export function listRuns(db: Queryable, filter: RunFilter): Promise<RunRow[]> {
  return db.query<RunRow>(
    `select ${RUN_COLUMNS}
       from ${RUN_TABLES}
      where ($1::uuid is null or r.workspace_id = $1)
        and ($2::uuid is null or r.task_id = $2)
        and ($3::public.run_status is null or r.status = $3)
      order by r.created_at desc, r.id
      limit $4`,
    [filter.workspaceId ?? null, filter.taskId ?? null, filter.status ?? null, filter.limit],
  );
}

/** One run's row with what it was given and gave back; null if there is none. */
export async function findRun(
  db: Queryable,
  id: string,
): Promise<(RunRow & { readonly input: unknown; readonly output: unknown }) | null> {
  const [row] = await db.query<RunRow & { input: unknown; output: unknown }>(
    `select ${RUN_COLUMNS}, r.input, r.output from ${RUN_TABLES} where r.id = $1`,
    [id],
  );
  return row ?? null;
}

export type StepRunRow = {
  readonly step_order: number;
  readonly step_name: string;
  /** Rises only when an attempt of the step failed. */
  readonly attempt: number;
  readonly status: string;
  readonly context: unknown;
  readonly result: unknown;
  readonly reason_code: string | null;
  readonly error_message: string | null;
  readonly started_at: Date | null;
  readonly finished_at: Date | null;
  readonly duration_ms: number | null;
};

/** A run's steps as the run copied them, in order; those not reached yet are pending. */
export function stepsOfRun(db: Queryable, runId: string): Promise<StepRunRow[]> {
  return db.query<StepRunRow>(
    `select coalesce(s.step_order, (copied.step ->> 'order')::integer) as step_order,
            coalesce(s.step_name, copied.step ->> 'name') as step_name,
            coalesce(s.attempt, 1) as attempt, coalesce(s.status, 'pending') as status, s.context, s.result,
            s.reason_code, s.error_message, s.started_at, s.finished_at, s.duration_ms
       from (select r.id, step
               from public.task_runs r, jsonb_array_elements(r.steps) as step
              where r.id = $1) copied
       full join (select * from public.task_step_runs where run_id = $1) s
         on s.step_order = (copied.step ->> 'order')::integer
      order by 1`,
    [runId],
  );
}

export type ModelCallRow = {
  readonly id: string;
  readonly step_order: number;
  readonly turn: number;
  readonly provider: string | null;
  readonly model: string | null;
  readonly status: string;
  readonly attempt: number;
  readonly finish_reason: string | null;
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly cached_tokens: number;
  readonly cost_micros: number;
  readonly latency_ms: number | null;
  readonly error_code: string | null;
  readonly error_message: string | null;
  readonly created_at: Date;
  readonly finished_at: Date | null;
};

/** A run's model calls, by step and turn. */
export function modelCallsOfRun(db: Queryable, runId: string): Promise<ModelCallRow[]> {
  return db.query<ModelCallRow>(
    `select id, step_order, turn, provider, model, status, attempt, finish_reason, prompt_tokens, completion_tokens,
            cached_tokens, cost_micros, latency_ms, error_code, error_message, created_at, finished_at
       from public.llm_calls
      where run_id = $1
      order by step_order, turn`,
    [runId],
  );
}

export type ToolCallRow = {
  readonly id: string;
  readonly step_order: number;
  readonly turn: number;
  readonly call_index: number;
  readonly tool_name: string;
  readonly source: string;
  readonly effect: string;
  readonly arguments: unknown;
  readonly status: string;
  readonly error_code: string | null;
  readonly error_message: string | null;
  readonly duration_ms: number | null;
  readonly decided_at: Date | null;
  readonly created_at: Date;
  readonly finished_at: Date | null;
};

/** A run's tool calls, by step, turn and index. Results are left out: they may be megabytes. */
export function toolCallsOfRun(db: Queryable, runId: string): Promise<ToolCallRow[]> {
  return db.query<ToolCallRow>(
    `select id, step_order, turn, call_index, tool_name, source, effect, arguments, status, error_code, error_message,
            duration_ms, decided_at, created_at, finished_at
       from public.tool_calls
      where run_id = $1
      order by step_order, turn, call_index`,
    [runId],
  );
}

/** Ends a run that has not ended, as `public.cancel_run` does for users. False if it had ended. */
export async function cancelRun(db: Queryable, runId: string): Promise<boolean> {
  const [row] = await db.query<{ cancelled: boolean }>('select public.cancel_run($1) as cancelled', [runId]);
  return row?.cancelled ?? false;
}

/** Starts a run that has ended once more. Returns the new run's id. Throws SQLSTATE 55000 where that can't be, with a hint. */
export async function retryRun(db: Queryable, runId: string): Promise<string> {
  const [row] = await db.query<{ id: string }>('select public.retry_run($1) as id', [runId]);
  if (!row) throw new Error('retry_run() answered nothing.');
  return row.id;
}

/** A tool call that waits for a person. */
export type WaitingCall = { readonly id: string; readonly tool_name: string; readonly arguments: unknown };

/** Calls of a run on which nobody has decided yet, in their order. */
export function waitingCalls(db: Queryable, runId: string): Promise<WaitingCall[]> {
  return db.query<WaitingCall>(
    `select id, tool_name, arguments
       from public.tool_calls
      where run_id = $1 and status = 'waiting' and decided_at is null
      order by step_order, turn, call_index`,
    [runId],
  );
}

/** Allows or denies a waiting tool call; false when it no longer waits. */
export async function decideToolCall(
  db: Queryable,
  callId: string,
  approve: boolean,
  reason: string | null,
): Promise<boolean> {
  const [row] = await db.query<{ decided: boolean }>(
    'select public.decide_tool_call($1, $2, $3) as decided',
    [callId, approve, reason],
  );
  return row?.decided ?? false;
}
