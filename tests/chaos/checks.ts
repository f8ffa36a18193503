/** What must be true of the database when everything has ended. Each query finds what is wrong; nothing is right. */
import type { Queryable } from '../../src/db/database.ts';
import { hasBudgets, type Load } from './load.ts';
import { CALLS, STEPS } from './script.ts';

type Check = { readonly name: string; readonly sql: string; readonly values?: readonly unknown[] };

function checks(load: Load): Check[] {
  return [
    {
      name: 'no run is lost',
      sql: `select asked.id from unnest($1::uuid[]) as asked (id)
             where not exists (select 1 from public.task_runs r where r.id = asked.id)`,
      values: [[...load.asked]],
    },
    {
      name: 'every run completed',
      sql: `select id, status, reason_code, reason from public.task_runs where status <> 'completed' or reason_code is not null`,
    },
    {
      name: 'every occurrence has exactly one run',
      sql: `
        select t.id, o.at, count(r.id) as runs
          from public.agent_tasks t
          join (select task_id, min(scheduled_for) as first from public.task_runs group by task_id) f on f.task_id = t.id
         cross join lateral generate_series(f.first, t.next_run_at - make_interval(secs => $2), make_interval(secs => $2)) as o (at)
          left join public.task_runs r on r.task_id = t.id and r.scheduled_for = o.at
         where t.id = any ($1::uuid[])
         group by t.id, o.at
        having count(r.id) <> 1
        union all
        select t.id, null, t.total_executions
          from public.agent_tasks t
         where t.id = any ($1::uuid[])
           and (t.total_executions <> (select count(*) from public.task_runs r where r.task_id = t.id)
                or t.total_executions < 1)`,
      values: [load.scheduled, load.periodSeconds],
    },
    {
      name: 'every run has its answer in the channel once, and what it told once',
      sql: `
        select r.id, count(m.id) filter (where m.run_id is not null) as answers,
               count(m.id) filter (where m.run_id is null) as told
          from public.task_runs r
          left join public.chat_messages m on m.metadata ->> 'run_id' = r.id::text
         group by r.id
        having count(m.id) filter (where m.run_id is not null) <> 1
            or count(m.id) filter (where m.run_id is null) <> 1`,
    },
    {
      name: 'steps are completed at their first attempt',
      sql: `
        select r.id, array_agg(s.status || ' ' || s.attempt order by s.step_order) as steps
          from public.task_runs r left join public.task_step_runs s on s.run_id = r.id
         group by r.id
        having count(*) filter (where s.status = 'completed' and s.attempt = 1) <> $1 or count(*) <> $1`,
      values: [STEPS.length],
    },
    {
      name: 'every call has one outcome, and only a write an unknown one',
      sql: `
        select r.id, l.calls as model_calls, t.calls as tool_calls
          from public.task_runs r
          left join lateral (select count(*) as calls, count(*) filter (where c.status = 'completed') as settled
                               from public.llm_calls c where c.run_id = r.id) l on true
          left join lateral (select count(*) as calls,
                                    count(*) filter (where c.status = 'completed' or (c.status = 'unknown' and c.effect = 'write' and c.source <> 'builtin')) as settled
                               from public.tool_calls c where c.run_id = r.id) t on true
         where l.calls <> $1 or l.settled <> $1 or t.calls <> $2 or t.settled <> $2`,
      values: [CALLS.model, CALLS.tools],
    },
    {
      name: 'usage events are the completed calls of the journal',
      sql: `
        with journal as (
          select 'llm:' || run_id || ':' || step_order || ':' || turn as key, 'tokens' as metric,
                 prompt_tokens::bigint + completion_tokens as quantity, cost_micros
            from public.llm_calls where status = 'completed'
          union all
          select 'tool:' || run_id || ':' || step_order || ':' || turn || ':' || call_index, 'tool_call', 1, 0
            from public.tool_calls where status in ('completed', 'failed')
          union all
          select 'run:' || id, 'task_run', 1, 0 from public.task_runs where status = 'completed'
        ),
        event as (
          select idempotency_key as key, min(metric) as metric, sum(quantity) as quantity, sum(cost_micros) as cost_micros,
                 count(*) as events
            from public.usage_events where metric in ('tokens', 'tool_call', 'task_run') group by idempotency_key
        )
        select coalesce(j.key, e.key) as key, e.events, j.quantity, e.quantity as counted
          from journal j full join event e using (key)
         where j.key is null or e.key is null or e.events <> 1
            or (j.metric, j.quantity, j.cost_micros) is distinct from (e.metric, e.quantity, e.cost_micros)`,
    },
    {
      name: 'totals of the runs are the sums of the journal',
      sql: `
        select r.id, r.turns, r.tool_calls, r.prompt_tokens, r.completion_tokens, r.cost_micros
          from public.task_runs r
          left join lateral (
            select count(*) as turns, coalesce(sum(c.prompt_tokens), 0) as prompt, coalesce(sum(c.completion_tokens), 0) as completion,
                   coalesce(sum(c.cost_micros), 0) as cost
              from public.llm_calls c where c.run_id = r.id and c.status = 'completed') l on true
          left join lateral (
            select count(*) as calls from public.tool_calls c where c.run_id = r.id and c.status in ('completed', 'failed', 'unknown')) t on true
         -- a write of which nobody knows whether it was made counts as made
         where (r.turns, r.prompt_tokens, r.completion_tokens, r.cost_micros, r.tool_calls)
               is distinct from (l.turns, l.prompt, l.completion, l.cost, t.calls)
            or r.cost_micros = 0`,
    },
    {
      name: 'no attempt of a job failed',
      sql: `select queue, outcome, worker_id, error, count(*) from agentd.job_runs
             where outcome in ('retry', 'failed') group by queue, outcome, worker_id, error`,
    },
    {
      name: 'no job is dead',
      sql: `select name, state, output from pgboss.job where state = 'failed' or name like '%-failed'`,
    },
    {
      name: 'nobody wrote a call of a run that another held',
      sql: `select key, status, owner, writer from chaos.call_writes where writer <> 'agentd ' || owner`,
    },
    { name: 'nothing is stuck', sql: 'select * from agentd.stuck_work' },
  ];
}

/** Facts that break an invariant: its name, how many there are, and the first few. */
export type Violation = {
  readonly invariant: string;
  readonly count: number;
  readonly examples: readonly unknown[];
};

export async function checkDatabase(
  db: Queryable,
  load: Load,
): Promise<{ checked: number; violations: Violation[] }> {
  const violations: Violation[] = [];
  const all = [...checks(load), ...(await budgetChecks(db))];
  for (const { name, sql, values } of all) {
    const wrong = await db.query(sql, values ?? []);
    if (wrong.length > 0)
      violations.push({ invariant: name, count: wrong.length, examples: wrong.slice(0, 5) });
  }
  return { checked: all.length, violations };
}

/** Where the schema has monthly budgets: nothing stays set aside, and what is used is what the journal has. */
async function budgetChecks(db: Queryable): Promise<Check[]> {
  if (!(await hasBudgets(db))) return [];
  return [
    { name: 'no budget is reserved', sql: 'select * from agentd.budget_reservations' },
    {
      name: 'the counters of budgets are the sums of the journal',
      sql: `
        with used as (
          select b.id, count(*) filter (where c.is_turn) as turns, count(*) filter (where not c.is_turn) as tool_calls,
                 coalesce(sum(c.tokens), 0) as tokens, coalesce(sum(c.cost_micros), 0) as cost_micros
            from public.budgets b
            join (
              select workspace_id, agent_id, true as is_turn, prompt_tokens + completion_tokens as tokens, cost_micros
                from public.llm_calls where status = 'completed'
              union all
              select workspace_id, agent_id, false, 0, 0
                from public.tool_calls where status in ('completed', 'failed', 'unknown')
            ) c on c.workspace_id = b.workspace_id and (b.agent_id is null or c.agent_id = b.agent_id)
           group by b.id
        ),
        counted as (
          select budget_id as id, sum(turns) as turns, sum(tool_calls) as tool_calls, sum(tokens) as tokens,
                 sum(cost_micros) as cost_micros,
                 sum(reserved_turns + reserved_tool_calls + reserved_tokens + reserved_cost_micros) as reserved
            from agentd.budget_counters group by budget_id
        )
        select id, to_jsonb(used) as journal, to_jsonb(counted) as counters
          from used full join counted using (id)
         where (used.turns, used.tool_calls, used.tokens, used.cost_micros, 0)
               is distinct from (counted.turns, counted.tool_calls, counted.tokens, counted.cost_micros, counted.reserved)`,
    },
  ];
}
