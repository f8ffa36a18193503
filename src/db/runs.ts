/**
 * Runs: claiming, journaling, keeping and giving back their leases.
 *
 * Each statement takes many runs at once and answers each of them for itself.
 */
import type { Queryable, Statement } from './database.ts';
import { toJson } from './json.ts';
import { type HeldRow, type NotRenewed, renew, renewStatement } from './leases.ts';

/** A step as copied into the run when it was created. */
export type StepPlan = {
  readonly id: string | null;
  readonly order: number;
  readonly name: string;
  readonly instructions: string;
  readonly include_previous_context: boolean;
  readonly max_retries: number | null;
  readonly timeout_seconds: number | null;
  /** What the last failed attempt does to the run; absent in runs of an earlier version: stop. */
  readonly on_failure?: 'stop' | 'skip' | 'continue';
};

/** Which tool calls a person must allow first: none, those that write, or all but reads. */
export type ApprovalPolicy = 'none' | 'writes' | 'all';

/** The task's settings as copied into the run. */
export type RunSettings = {
  readonly task_name: string;
  readonly instructions: string;
  readonly selected_tools: unknown;
  readonly timeout_seconds: number;
  readonly max_retries: number;
  /** Absent in runs of an earlier version. */
  readonly approval_policy?: ApprovalPolicy;
  readonly target_conversation_id: string | null;
  readonly target_channel_id: string | null;
};

/** Secrets as they are stored, with what is needed to open them. */
export type StoredCredential = {
  readonly id: string;
  readonly provider: string;
  readonly secret: string | null;
  readonly vault_id: string | null;
};

export type ClaimedAgent = {
  readonly name: string;
  readonly instructions: string | null;
  readonly assistant_instructions: string | null;
  readonly goals: readonly string[];
  readonly capabilities: unknown;
  readonly temperature: number;
  readonly max_tokens: number | null;
  readonly context_window_size: number;
  readonly approval_policy: ApprovalPolicy;
  readonly persona: { readonly name: string; readonly tone: string; readonly greeting: string | null } | null;
  readonly has_knowledge: boolean;
  /** Whether it may look up messages: its workspace has them embedded. */
  readonly has_messages: boolean;
  /** Whether it is connected with servers of tools, and the agent is its workspace's own. */
  readonly has_connections: boolean;
};

export type ClaimedModel = {
  readonly id: string | null;
  /** Null where the agent names a model that llm_models does not list. */
  readonly provider: string | null;
  readonly model: string;
  readonly context_window: number | null;
  /** US dollars per 1,000 tokens; null where no price is known. */
  readonly input_cost_per_1k: number | null;
  readonly output_cost_per_1k: number | null;
};

export type JournaledStep = {
  readonly step_order: number;
  readonly attempt: number;
  readonly status: 'pending' | 'running' | 'completed' | 'failed' | 'skipped';
  readonly context: unknown;
  readonly result: unknown;
  readonly step_id?: string | null;
  /** ISO 8601. */
  readonly started_at?: string | null;
  readonly reason_code?: string | null;
  readonly error_message?: string | null;
};

export type JournaledModelCall = {
  readonly step_order: number;
  readonly turn: number;
  readonly status: 'started' | 'waiting' | 'completed' | 'failed' | 'denied' | 'unknown';
  readonly attempt: number;
  readonly failures: number;
  readonly provider: string | null;
  readonly model: string | null;
  /** While it waits for its turn under a rate limit: the try of number `attempt` has not been made. */
  readonly ticket_at: string | null;
  readonly ticket_kind: 'place' | 'return' | null;
  readonly response: unknown;
  readonly finish_reason: string | null;
  readonly error_code: string | null;
};

/** A row of public.budgets that bounds a run. */
export type ClaimedBudget = {
  readonly id: string;
  /** Whose runs it bounds. */
  readonly scope: 'workspace' | 'agent' | 'task';
  readonly period: 'run' | 'month';
  /** Null: no limit. Cost in millionths of a US dollar. */
  readonly max_turns: number | null;
  readonly max_tool_calls: number | null;
  readonly max_tokens: number | null;
  readonly max_cost_micros: number | null;
  readonly max_seconds: number | null;
  readonly when_exhausted: 'fail' | 'wait';
};

export type JournaledToolCall = {
  readonly step_order: number;
  readonly turn: number;
  readonly call_index: number;
  readonly provider_call_id: string;
  readonly tool_name: string;
  readonly source: string;
  readonly effect: 'read' | 'idempotent' | 'write';
  readonly arguments: unknown;
  readonly status: 'started' | 'waiting' | 'completed' | 'failed' | 'denied' | 'unknown';
  readonly result: unknown;
  readonly error_message: string | null;
  /** What a person decided; null where nobody was asked or has answered. */
  readonly approved?: boolean | null;
};

/** Everything that a worker needs to execute a run, read when it is claimed. */
export type ClaimedRun = {
  readonly id: string;
  readonly workspace_id: string;
  readonly task_id: string | null;
  readonly agent_id: string | null;
  readonly user_id: string | null;
  readonly lease_epoch: number;
  readonly journal_seq: number;
  readonly claims_without_progress: number;
  readonly trigger: string;
  readonly scheduled_for: string | null;
  readonly steps: readonly StepPlan[] | null;
  readonly settings: RunSettings;
  readonly input: unknown;
  readonly turns: number;
  readonly tool_calls: number;
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly cost_micros: number;
  /** W3C trace context as the application wrote it, never checked; null where the run has a trace of its own. */
  readonly traceparent: string | null;
  /** Milliseconds since the epoch by the database's clock: the insert (any moment that an application wrote), the first claim, this claim. */
  readonly created_at_ms: number;
  readonly started_at_ms: number;
  readonly claimed_at_ms: number;
  /** Likewise: since when it had waited for a person or a budget; null if this claim ends no such wait. */
  readonly paused_at_ms: number | null;
  /** Milliseconds since the run was first started, by the database's clock, without the time in which no worker had it. */
  readonly elapsed_ms: number;
  /** Milliseconds in which no worker had it, since it was first started. */
  readonly waited_ms: number;
  /** Those of its workspace, agent and task. */
  readonly budgets: readonly ClaimedBudget[];
  /** Whether its workspace's plan bounds its tokens. */
  readonly has_token_limit: boolean;
  readonly agent: ClaimedAgent | null;
  readonly model: ClaimedModel | null;
  /** The models to fall back to, in their order. */
  readonly fallback_models: readonly ClaimedModel[];
  readonly credentials: {
    readonly agent: readonly StoredCredential[];
    readonly workspace: readonly StoredCredential[];
  };
  /** Empty for a run that is claimed for the first time. */
  readonly journal: {
    readonly steps: readonly JournaledStep[];
    readonly llm: readonly JournaledModelCall[];
    readonly tools: readonly JournaledToolCall[];
  };
};

/** Why a run was not claimed: it is gone, has ended, waits, is held by another worker, or its workspace is paused. */
export type RefusedRun = {
  readonly id: string;
  readonly refused: true;
  readonly status: string | null;
  /** When to look again, in milliseconds from now; null if never. */
  readonly again_in_ms: number | null;
};

const CLAIM: Statement = {
  name: 'claim_runs',
  text: `
with locked as (
  select r.id, case when r.reason_code in ('approval_required', 'budget_exhausted', 'usage_limit_reached') then r.paused_at end as was_paused_at,
         exists (select 1 from agentd.queue_controls q
                  where q.queue = 'task-run' and q.workspace_id = r.workspace_id) as is_paused
    from public.task_runs r
   where r.id = any ($1::uuid[])
     -- one without a job waits for a place of its workspace, whatever job an earlier life of it has left
     -- (wrapped: so that it implies no partial index's predicate, and the runs are found by their ids, not among all admitted)
     and ((r.job_id is not null
           and (r.status = 'queued' or (r.status = 'running' and r.lease_expires_at < agentd.now()))) is true)
   order by r.id
     for no key update skip locked
),
-- an operator has paused the workspace since they were let in
shelved as (
  update public.task_runs r
     set status = 'queued', job_id = null, is_parked = true, lease_expires_at = null
    from locked
   where r.id = locked.id and locked.is_paused
  returning r.id
),
claimed as (
  update public.task_runs r
     set status = 'running',
         lease_epoch = r.lease_epoch + 1,
         worker_id = $2,
         lease_expires_at = agentd.now() + make_interval(secs => $3),
         started_at = coalesce(r.started_at, agentd.now()),
         current_step = greatest(r.current_step, 1),
         wake_at = null,
         waited_ms = r.waited_ms + coalesce(extract(epoch from agentd.now() - r.paused_at) * 1000, 0)::bigint,
         paused_at = null,
         reason_code = null,
         reason = null,
         claims_without_progress = r.claims_without_progress + 1
    from locked
   where r.id = locked.id and not locked.is_paused
  returning r.*, locked.was_paused_at
),
-- a run claimed for the first time: its first step and first call are journaled with the claim
first_step as (
  insert into public.task_step_runs (workspace_id, run_id, step_id, step_order, step_name, status, started_at)
  select c.workspace_id, c.id, (c.steps #>> '{0,id}')::uuid, 1, coalesce(c.steps #>> '{0,name}', ''), 'running', agentd.now()
    from claimed c
   where c.lease_epoch = 1
),
first_call as (
  insert into public.llm_calls (workspace_id, agent_id, run_id, step_order, turn, idempotency_key)
  select c.workspace_id, c.agent_id, c.id, 1, 1, agentd.call_key(c.id, 1, 1)
    from claimed c
   where c.lease_epoch = 1
)
select asked.id,
       c.workspace_id, c.task_id, c.agent_id, c.user_id, c.lease_epoch, c.journal_seq, c.claims_without_progress,
       c.trigger, c.scheduled_for, c.steps, c.settings, c.input, c.turns, c.tool_calls,
       c.prompt_tokens, c.completion_tokens, c.cost_micros, c.waited_ms, c.traceparent,
       extract(epoch from c.created_at)::float8 * 1000 as created_at_ms,
       extract(epoch from c.started_at)::float8 * 1000 as started_at_ms,
       extract(epoch from agentd.now())::float8 * 1000 as claimed_at_ms,
       extract(epoch from c.was_paused_at)::float8 * 1000 as paused_at_ms,
       extract(epoch from agentd.now() - c.started_at) * 1000 - c.waited_ms as elapsed_ms,
       coalesce((
         select jsonb_agg(jsonb_build_object(
                  'id', b.id, 'period', b.period, 'when_exhausted', b.when_exhausted,
                  'scope', case when b.task_id is not null then 'task' when b.agent_id is not null then 'agent' else 'workspace' end,
                  'max_turns', b.max_turns, 'max_tool_calls', b.max_tool_calls, 'max_tokens', b.max_tokens,
                  'max_cost_micros', b.max_cost_micros, 'max_seconds', b.max_seconds))
           from public.budgets b
          where b.workspace_id = c.workspace_id and b.is_active
            and (b.agent_id is null or b.agent_id = c.agent_id) and (b.task_id is null or b.task_id = c.task_id)), '[]') as budgets,
       c.id is not null and agentd.usage_limit(c.workspace_id, 'tokens') is not null as has_token_limit,
       case when c.id is null then r.status end as refused_status,
       case when c.id is not null or r.job_id is null or asked.id in (select s.id from shelved s) then null
            when r.status = 'running' then greatest(extract(epoch from r.lease_expires_at - agentd.now()) * 1000, 200)
            when r.status = 'queued' then 200
       end as again_in_ms,
       case when a.id is not null then jsonb_build_object(
         'name', a.name, 'instructions', a.instructions, 'assistant_instructions', a.assistant_instructions,
         'goals', to_jsonb(a.goals), 'capabilities', a.capabilities, 'temperature', a.temperature,
         'max_tokens', a.max_tokens, 'context_window_size', a.context_window_size, 'approval_policy', a.approval_policy,
         'persona', case when p.id is not null then
            jsonb_build_object('name', p.name, 'tone', p.tone, 'greeting', p.greeting) end,
         -- whether there may be something to search: what exactly, the search decides
         'has_knowledge', exists (select 1 from public.knowledge_sources k
                                   where k.workspace_id = a.workspace_id and (k.agent_id = a.id or k.agent_id is null))
                       or exists (select 1 from public.agent_datastores d where d.agent_id = a.id and d.is_active)
                       or exists (select 1 from public.agent_media_assignments d where d.agent_id = a.id),
         'has_messages', a.workspace_id = c.workspace_id
                     and exists (select 1 from agentd.message_workspaces e where e.id = c.workspace_id and e.is_wanted),
         'has_connections', a.workspace_id = c.workspace_id
                        and exists (select 1 from public.agent_mcp_connections n where n.agent_id = a.id and n.is_active)
       ) end as agent,
       case when a.id is not null then jsonb_build_object(
         'id', m.id, 'provider', m.provider, 'model', coalesce(m.model_id, a.model),
         'context_window', m.context_window,
         'input_cost_per_1k', m.input_cost_per_1k, 'output_cost_per_1k', m.output_cost_per_1k
       ) end as model,
       coalesce(f.models, '[]') as fallback_models,
       case when c.id is not null then jsonb_build_object(
         'agent', coalesce((
           select jsonb_agg(jsonb_build_object('id', ac.id, 'provider', ac.service, 'secret', ac.api_key, 'vault_id', null)
                            order by aac.created_at)
             from public.agent_api_connections aac
             join public.api_connections ac on ac.id = aac.api_connection_id
            where aac.agent_id = c.agent_id), '[]'),
         'workspace', coalesce((
           select jsonb_agg(jsonb_build_object('id', w.id, 'provider', w.provider, 'secret', w.api_key,
                                               'vault_id', w.vault_api_key_id) order by w.created_at)
             from public.workspace_llm_config w
            where w.workspace_id = c.workspace_id and w.is_active), '[]')
       ) end as credentials,
       case when c.lease_epoch > 1 then jsonb_build_object(
         'steps', coalesce((
           select jsonb_agg(to_jsonb(s) - 'workspace_id' order by s.step_order)
             from public.task_step_runs s where s.run_id = c.id), '[]'),
         'llm', coalesce((
           select jsonb_agg(to_jsonb(l) - 'workspace_id' order by l.step_order, l.turn)
             from public.llm_calls l where l.run_id = c.id), '[]'),
         'tools', coalesce((
           select jsonb_agg(to_jsonb(t) - 'workspace_id' order by t.step_order, t.turn, t.call_index)
             from public.tool_calls t where t.run_id = c.id), '[]')
       ) end as journal
  from unnest($1::uuid[]) as asked (id)
  left join claimed c on c.id = asked.id
  left join public.task_runs r on r.id = asked.id
  left join public.agents a on a.id = c.agent_id
  left join public.personas p on p.id = a.persona_id
  left join lateral (
    select m.* from public.llm_models m
     where case when a.llm_model_id is not null then m.id = a.llm_model_id else m.model_id = a.model end
     order by lower(m.provider) = 'openai' desc, m.created_at
     limit 1
  ) m on a.id is not null
  left join lateral (
    select jsonb_agg(jsonb_build_object(
             'id', o.id, 'provider', o.provider, 'model', coalesce(o.model_id, named.name),
             'context_window', o.context_window,
             'input_cost_per_1k', o.input_cost_per_1k, 'output_cost_per_1k', o.output_cost_per_1k
           ) order by named.place) as models
      from unnest(a.fallback_models) with ordinality as named (name, place)
      left join lateral (
        select o.* from public.llm_models o
         where o.model_id = named.name or lower(o.provider) || '/' || o.model_id = named.name
         order by o.model_id = named.name desc, lower(o.provider) = 'openai' desc, o.created_at
         limit 1
      ) o on true
  ) f on cardinality(a.fallback_models) > 0`,
};

/**
 * Claims runs for a worker: each that was let in, or whose lease has lapsed, gets the next epoch and a new lease. Those of a
 * workspace that an operator has paused go back to its waiting room. Answers in the order asked. Rows that another transaction holds are refused for now.
 *
 * @param leaseSeconds how long the claim holds without a renewal.
 */
export async function claimRuns(
  db: Queryable,
  ids: readonly string[],
  workerId: string,
  leaseSeconds: number,
): Promise<(ClaimedRun | RefusedRun)[]> {
  type Row = ClaimedRun & { refused_status: string | null; again_in_ms: string | null; elapsed_ms: string };
  const rows = await db.query<Row>(CLAIM, [ids, workerId, leaseSeconds]);
  const byId = new Map(rows.map((row) => [row.id, row]));
  return ids.map((id) => {
    const row = byId.get(id);
    // an id that was asked twice (an old job and a new one) is claimed once
    byId.delete(id);
    if (!row || row.lease_epoch === null) {
      return {
        id,
        refused: true,
        status: row?.refused_status ?? null,
        again_in_ms: row?.again_in_ms == null ? null : Math.ceil(Number(row.again_in_ms)),
      };
    }
    return {
      ...row,
      elapsed_ms: Number(row.elapsed_ms),
      journal: row.journal ?? { steps: [], llm: [], tools: [] },
    };
  });
}

/** A row of task_step_runs as it is to be. */
export type StepChange = {
  order: number;
  step_id: string | null;
  name: string;
  attempt: number;
  status: 'running' | 'completed' | 'failed' | 'skipped';
  context?: unknown;
  result?: unknown;
  reason_code?: string | null;
  error?: string | null;
};

/** A row of llm_calls as it is to be: an intent, or an outcome. */
export type ModelCallChange = {
  order: number;
  turn: number;
  /** Null for a call that was never made. */
  provider: string | null;
  model: string | null;
  model_id: string | null;
  credential_source: string | null;
  status: 'started' | 'waiting' | 'completed' | 'failed';
  attempt: number;
  failures?: number;
  /** Only with the change that falls back: is added to what the row says already. */
  fallback_reason?: string;
  ticket_at?: string | null;
  ticket_kind?: 'place' | 'return' | null;
  response?: unknown;
  finish_reason?: string;
  prompt_tokens?: number;
  completion_tokens?: number;
  cached_tokens?: number;
  cost_micros?: number;
  latency_ms?: number;
  /** What was not sent because the conversation outgrew the window. */
  left_out?: readonly string[];
  error_code?: string | null;
  error?: string | null;
};

/** A row of tool_calls as it is to be. */
export type ToolCallChange = {
  order: number;
  turn: number;
  index: number;
  provider_call_id: string;
  tool: string;
  source: string;
  effect: 'read' | 'idempotent' | 'write';
  /** A row of agent_mcp_connections, and the account that it signs in with; absent for a tool of ours. */
  connection_id?: string | null;
  credential_id?: string | null;
  arguments: unknown;
  status: 'started' | 'waiting' | 'completed' | 'failed' | 'denied' | 'unknown';
  result?: unknown;
  error_code?: string | null;
  error?: string | null;
  duration_ms?: number;
};

export type UsageChange = {
  metric: string;
  quantity: number;
  cost_micros: number;
  key: string;
  dimensions: Record<string, unknown>;
};

export type MessageChange = {
  conversation_id: string | null;
  channel_id: string | null;
  content: string;
  /** The run's own answer: at most one a run. */
  is_answer: boolean;
  metadata: Record<string, unknown>;
};

/** What a call used of the budgets, under the key by which it was set aside; zeros give back what was. */
export type CallSpend = {
  key: string;
  turns: number;
  tool_calls: number;
  tokens: number;
  cost_micros: number;
};

/** One transaction of a run's journal. */
export type Checkpoint = {
  run: string;
  epoch: number;
  seq: number;
  /** Whether something was finished: only that shows that the run gets on. */
  progress: boolean;
  current_step: number;
  turns: number;
  tool_calls: number;
  prompt_tokens: number;
  completion_tokens: number;
  cost_micros: number;
  /** Milliseconds that the worker spent on the run since the checkpoint before. */
  active_ms: number;
  /** What calls used, for the monthly budgets that bound the run. */
  spend: CallSpend[];
  steps: StepChange[];
  llm: ModelCallChange[];
  tools: ToolCallChange[];
  usage: UsageChange[];
  messages: MessageChange[];
  /** Null while the run goes on; otherwise the state in which the worker leaves it. */
  end: null | {
    status: 'completed' | 'failed' | 'waiting' | 'queued';
    reason_code: string | null;
    reason: string | null;
    output: unknown;
    /** Milliseconds from now; only with waiting. Null: when the row changes. */
    wake_in_ms: number | null;
    /** It waits for a person or a budget. */
    for_somebody?: boolean;
    log: { input: string; output: string; metadata: unknown } | null;
  };
};

const CHECKPOINT: Statement = {
  name: 'checkpoint_runs',
  text: `
with item as materialized (
  select x.* from jsonb_to_recordset($1::jsonb) as x (
    run uuid, epoch integer, seq integer, progress boolean, current_step integer, turns integer, tool_calls integer,
    prompt_tokens bigint, completion_tokens bigint, cost_micros bigint, active_ms bigint, spend jsonb,
    steps jsonb, llm jsonb, tools jsonb, usage jsonb, messages jsonb, "end" jsonb)
),
-- in order, as everybody locks them
locked as materialized (
  select r.id from public.task_runs r where r.id in (select i.run from item i) order by r.id for no key update
),
-- The fence: this epoch, this place in the journal, and still wanted. It also extends the lease.
run as (
  update public.task_runs r
     set journal_seq = r.journal_seq + 1,
         claims_without_progress = case when i.progress then 0 else r.claims_without_progress end,
         current_step = i.current_step,
         turns = r.turns + i.turns,
         tool_calls = r.tool_calls + i.tool_calls,
         prompt_tokens = r.prompt_tokens + i.prompt_tokens,
         completion_tokens = r.completion_tokens + i.completion_tokens,
         cost_micros = r.cost_micros + i.cost_micros,
         active_ms = r.active_ms + i.active_ms,
         -- a run that no worker has does not use up its time
         paused_at = case when i."end" ->> 'status' in ('waiting', 'queued') then agentd.now() end,
         status = coalesce((i."end" ->> 'status')::public.run_status, r.status),
         reason_code = i."end" ->> 'reason_code',
         reason = i."end" ->> 'reason',
         output = coalesce(nullif(i."end" -> 'output', 'null'), r.output),
         -- a waiting run has no job: when it wakes it comes through the waiting room like a new one
         job_id = case when i."end" ->> 'status' = 'waiting' then null else r.job_id end,
         is_parked = false,
         wake_at = agentd.now() + (i."end" ->> 'wake_in_ms')::double precision * interval '1 millisecond',
         lease_expires_at = case when i."end" is null then agentd.now() + make_interval(secs => $2) end,
         finished_at = case when i."end" ->> 'status' in ('completed', 'failed') then agentd.now() end
    from item i
    join locked on locked.id = i.run
   where r.id = locked.id and r.lease_epoch = i.epoch and r.journal_seq = i.seq and r.status = 'running'
  returning r.id, r.workspace_id, r.task_id, r.agent_id, r.user_id, r.started_at, r.status, r.reason_code,
            i.steps, i.llm, i.tools, i.usage, i.messages, i.spend, i.active_ms, i."end" as ending
),
step as (
  insert into public.task_step_runs as s (
    workspace_id, run_id, step_id, step_order, step_name, attempt, status, context, result, reason_code, error_message,
    started_at, finished_at)
  select run.workspace_id, run.id, x.step_id, x."order", x.name, x.attempt, x.status, x.context, x.result, x.reason_code,
         x.error, agentd.now(), case when x.status <> 'running' then agentd.now() end
    from run, jsonb_to_recordset(run.steps) as x (
      "order" integer, step_id uuid, name text, attempt integer, status public.task_step_status,
      context jsonb, result jsonb, reason_code text, error text)
  on conflict (run_id, step_order) do update
     set attempt = excluded.attempt, status = excluded.status,
         context = coalesce(excluded.context, s.context), result = coalesce(excluded.result, s.result),
         reason_code = excluded.reason_code, error_message = excluded.error_message,
         finished_at = excluded.finished_at,
         -- a step that waited for a person may have taken longer than an integer of milliseconds holds
         duration_ms = case when excluded.finished_at is not null then
           least(greatest(extract(epoch from excluded.finished_at - s.started_at) * 1000, 0), 2147483647) end
  returning s.run_id, s.step_id, s.status, s.result, s.error_message, s.attempt, s.started_at, s.finished_at, s.duration_ms
),
llm as (
  insert into public.llm_calls as l (
    workspace_id, agent_id, run_id, step_order, turn, idempotency_key, provider, model, llm_model_id, credential_source,
    status, attempt, failures, response, finish_reason, prompt_tokens, completion_tokens, cached_tokens, cost_micros, latency_ms,
    left_out, error_code, error_message, finished_at, fallback_reason, ticket_at, ticket_kind)
  select run.workspace_id, run.agent_id, run.id, x."order", x.turn, agentd.call_key(run.id, x."order", x.turn),
         x.provider, x.model, x.model_id, x.credential_source, x.status, x.attempt, coalesce(x.failures, 0), x.response, x.finish_reason,
         coalesce(x.prompt_tokens, 0), coalesce(x.completion_tokens, 0), coalesce(x.cached_tokens, 0),
         coalesce(x.cost_micros, 0), x.latency_ms, x.left_out, x.error_code, x.error,
         case when x.status in ('completed', 'failed') then agentd.now() end, x.fallback_reason, x.ticket_at, x.ticket_kind
    from run, jsonb_to_recordset(run.llm) as x (
      "order" integer, turn integer, provider text, model text, model_id uuid, credential_source text,
      status public.call_status, attempt integer, failures integer, response jsonb, finish_reason text,
      prompt_tokens integer, completion_tokens integer, cached_tokens integer, cost_micros bigint, latency_ms integer,
      left_out jsonb, error_code text, error text, fallback_reason text, ticket_at timestamptz, ticket_kind text)
  on conflict (idempotency_key) do update
     set provider = coalesce(excluded.provider, l.provider), model = coalesce(excluded.model, l.model),
         -- a model that llm_models does not list has none
         llm_model_id = case when excluded.model is null then l.llm_model_id else excluded.llm_model_id end,
         credential_source = coalesce(excluded.credential_source, l.credential_source), status = excluded.status, attempt = excluded.attempt, failures = excluded.failures,
         response = excluded.response, finish_reason = excluded.finish_reason, prompt_tokens = excluded.prompt_tokens,
         completion_tokens = excluded.completion_tokens, cached_tokens = excluded.cached_tokens,
         cost_micros = excluded.cost_micros, latency_ms = excluded.latency_ms, left_out = excluded.left_out, error_code = excluded.error_code,
         error_message = excluded.error_message, finished_at = excluded.finished_at,
         fallback_reason = nullif(concat_ws(' ', l.fallback_reason, excluded.fallback_reason), ''),
         ticket_at = excluded.ticket_at, ticket_kind = excluded.ticket_kind
),
tool as (
  insert into public.tool_calls as t (
    workspace_id, agent_id, run_id, step_order, turn, call_index, idempotency_key, provider_call_id, tool_name, source,
    effect, arguments, status, result, error_code, error_message, duration_ms, finished_at, connection_id, credential_id)
  select run.workspace_id, run.agent_id, run.id, x."order", x.turn, x.index,
         agentd.call_key(run.id, x."order", x.turn, x.index), x.provider_call_id, x.tool, x.source, x.effect, x.arguments,
         x.status, x.result, x.error_code, x.error, x.duration_ms,
         case when x.status not in ('started', 'waiting') then agentd.now() end, x.connection_id, x.credential_id
    from run, jsonb_to_recordset(run.tools) as x (
      "order" integer, turn integer, index integer, provider_call_id text, tool text, source text, effect text,
      arguments jsonb, status public.call_status, result jsonb, error_code text, error text, duration_ms integer,
      connection_id uuid, credential_id uuid)
  on conflict (idempotency_key) do update
     set status = excluded.status, result = excluded.result, error_code = excluded.error_code,
         error_message = excluded.error_message, duration_ms = excluded.duration_ms, finished_at = excluded.finished_at
),
-- The fence lets each of these through once, so the ledger of keys that applications' events need is not written.
usage as (
  insert into public.usage_events (
    workspace_id, agent_id, run_id, metric, quantity, cost_micros, idempotency_key, dimensions, occurred_at)
  select run.workspace_id, run.agent_id, run.id, x.metric, x.quantity, x.cost_micros, x.key, x.dimensions, agentd.now()
    from run, jsonb_to_recordset(run.usage) as x (
      metric text, quantity bigint, cost_micros bigint, key text, dimensions jsonb)
),
message as materialized (
  select run.id as run_id, run.workspace_id, run.agent_id, run.user_id, x.*
    from run, jsonb_to_recordset(run.messages) as x (
      conversation_id uuid, channel_id uuid, content text, is_answer boolean, metadata jsonb)
),
-- A conversation or channel that is gone takes no message and stops no run. One that somebody holds, or is deleting,
-- is waited for (lock_timeout, then again by itself): a held row is not gone.
conversation as materialized (
  select c.id, c.workspace_id from public.conversations c
   where c.id in (select m.conversation_id from message m) order by c.id for key share
),
channel as materialized (
  select c.id, c.workspace_id from public.chat_channels c
   where c.id in (select m.channel_id from message m) order by c.id for key share
),
conversation_message as (
  insert into public.agent_messages (workspace_id, conversation_id, agent_id, user_id, role, content, metadata, run_id)
  select m.workspace_id, c.id, m.agent_id, coalesce(m.user_id, a.user_id), 'assistant', m.content, m.metadata,
         case when m.is_answer then m.run_id end
    from message m
    join conversation c on c.id = m.conversation_id and c.workspace_id = m.workspace_id
    join public.agents a on a.id = m.agent_id
  on conflict do nothing
  returning 1
),
-- In the channels' order: the trigger that touches a channel locks it until the end of the transaction.
channel_message as (
  insert into public.chat_messages (workspace_id, channel_id, sender_agent_id, content, metadata, run_id)
  select m.workspace_id, c.id, m.agent_id, m.content, m.metadata, case when m.is_answer then m.run_id end
    from message m
    join channel c on c.id = m.channel_id and c.workspace_id = m.workspace_id
   order by c.id
  on conflict do nothing
  returning 1
),
log as (
  insert into public.agent_logs (workspace_id, agent_id, user_id, input, output, metadata)
  select run.workspace_id, run.agent_id, run.user_id, run.ending #>> '{log,input}', run.ending #>> '{log,output}',
         run.ending #> '{log,metadata}'
    from run
   where jsonb_typeof(run.ending -> 'log') = 'object' and run.agent_id is not null
),
finished as materialized (
  select id, workspace_id, task_id, status, reason_code, started_at from run where status in ('completed', 'failed')
),
told as (
  select count(agentd.notify_run(id, workspace_id, task_id, status, reason_code)) from run
   -- what ended, and what waits for somebody
   where status in ('completed', 'failed') or reason_code in ('approval_required', 'budget_exhausted', 'usage_limit_reached')
),
spent as materialized (
  select agentd.settle_budgets(jsonb_agg(jsonb_build_object(
           'run', run.id, 'active_ms', run.active_ms, 'calls', run.spend,
           -- nothing stays set aside for a run that makes no call
           'ended', run.status in ('completed', 'failed') or run.reason_code in ('budget_exhausted', 'usage_limit_reached')))) as counters
    from run
   where exists (select 1 from public.budgets b where b.workspace_id = run.workspace_id)
),
-- Last of all that locks: everybody locks counters before workspaces, and workspaces all at once, in their order; and while a
-- tenant holds a channel, nobody's door is held.
admitted as (
  select agentd.admit_workspaces(array_agg(distinct workspace_id)) as sum
    from run
   where ending is not null and (select count(*) from spent) = 1
     and (select count(*) from conversation_message) + (select count(*) from channel_message) >= 0
),
paused as (
  select agentd.pause_failing_tasks(array_agg(distinct task_id)) as tasks from finished where status = 'failed'
),
projected as (
  -- counting the steps makes sure that they are written before they are read
  select agentd.project_steps(array_agg(id)) from finished where (select count(*) from step) >= 0
)
-- "in", because a join with the CTE is planned for one row and compares every pair
select i.run, i.run in (select id from run) as applied, r.status, r.lease_epoch, r.journal_seq, r.reason_code
  from item i
  left join public.task_runs r on r.id = i.run
 where (select count from told) is not null and (select coalesce(sum, 0) from admitted) is not null
   and (select count(*) from projected) = 1 and (select count(tasks) from paused) >= 0`,
};

/** What became of a checkpoint. */
export type CheckpointResult =
  | { readonly applied: true }
  /** Why not: the run was cancelled or has ended, is gone, or another worker has it. Nothing was written. */
  | { readonly applied: false; readonly status: string | null; readonly reasonCode: string | null };

/**
 * Writes checkpoints of several runs in one transaction. Each is fenced: it is applied whole, or not at all
 * where the run is no longer this worker's. A repeated checkpoint whose first answer was lost counts as applied.
 */
export async function writeCheckpoints(
  db: Queryable,
  items: readonly Checkpoint[],
  leaseSeconds: number,
): Promise<CheckpointResult[]> {
  type Row = {
    run: string;
    applied: boolean;
    status: string | null;
    lease_epoch: number | null;
    journal_seq: number | null;
    reason_code: string | null;
  };
  const rows = await db.query<Row>(CHECKPOINT, [toJson(items), leaseSeconds]);
  const byRun = new Map(rows.map((row) => [row.run, row]));
  return items.map((item) => {
    const row = byRun.get(item.run);
    const before = row && row.lease_epoch === item.epoch && row.journal_seq === item.seq + 1;
    if (row?.applied || before) return { applied: true };
    return { applied: false, status: row?.status ?? null, reasonCode: row?.reason_code ?? null };
  });
}

const RENEW = renewStatement('renew_leases', 'public.task_runs', `r.status = 'running'`);

/** Renews the leases of a worker's runs. */
export function renewLeases(
  db: Queryable,
  held: readonly HeldRow[],
  leaseSeconds: number,
): Promise<NotRenewed> {
  return renew(db, RENEW, held, leaseSeconds);
}
