/**
 * Budgets: what a run, an agent, a task or a workspace may use.
 *
 * A budget of the period `run` bounds each single run; its use is in the run's own row, which only its worker writes. A budget of the
 * period `month` bounds the sum over all runs of its scope in the calendar month of the workspace's zone. Its use is in
 * agentd.budget_counters: reserved before a call (agentd.reserve_budgets), settled in the transaction that records the call's outcome
 * (agentd.settle_budgets). Both lock the counters in their order. The invariant: used + reserved never passes the limit by calls or turns,
 * and what a call used is booked once, in the month in which it was set aside, whatever dies. A counter begins with what the
 * journal has of its month.
 *
 * Counters and reservations have no foreign keys: a budget that a tenant is deleting in an open transaction must not hold up a worker.
 */
import { type Kysely, sql } from 'kysely';
import { applyAccess } from './access.ts';
import { keepUpdatedAt } from './run-sql.ts';

export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    create table public.budgets (
      id              uuid primary key default gen_random_uuid(),
      workspace_id    uuid not null references public.workspaces (id) on delete cascade,
      -- whose runs: the agent's, the task's, or, where both are null, all of the workspace
      agent_id        uuid,
      task_id         uuid,
      period          text not null default 'month' check (period in ('run', 'month')),
      -- null: no limit
      max_turns       bigint check (max_turns >= 0),
      max_tool_calls  bigint check (max_tool_calls >= 0),
      max_tokens      bigint check (max_tokens >= 0),
      -- millionths of a US dollar
      max_cost_micros bigint check (max_cost_micros >= 0),
      -- time that workers spend on runs
      max_seconds     bigint check (max_seconds between 0 and 1000000000),
      -- wait: the run goes on when the month ends or the budget is raised
      when_exhausted  text not null default 'fail' check (when_exhausted in ('fail', 'wait')),
      is_active       boolean not null default true,
      created_at      timestamptz not null default now(),
      updated_at      timestamptz not null default now(),
      check (agent_id is null or task_id is null),
      unique nulls not distinct (workspace_id, agent_id, task_id, period),
      foreign key (workspace_id, agent_id) references public.agents (workspace_id, id) on delete cascade,
      foreign key (workspace_id, task_id) references public.agent_tasks (workspace_id, id) on delete cascade
    );
    create index budgets_task_idx on public.budgets (workspace_id, task_id);
    ${keepUpdatedAt('budgets')}

    create table agentd.budget_counters (
      budget_id            uuid not null,
      -- the first day of the month in the workspace's zone
      month                date not null,
      turns                bigint not null default 0,
      tool_calls           bigint not null default 0,
      tokens               bigint not null default 0,
      cost_micros          bigint not null default 0,
      active_ms            bigint not null default 0,
      reserved_turns       bigint not null default 0,
      reserved_tool_calls  bigint not null default 0,
      reserved_tokens      bigint not null default 0,
      reserved_cost_micros bigint not null default 0,
      primary key (budget_id, month)
    ) with (fillfactor = 50);

    create table agentd.budget_reservations (
      -- the call's idempotency key
      call_key    text not null,
      budget_id   uuid not null,
      month       date not null,
      run_id      uuid not null,
      turns       bigint not null,
      tool_calls  bigint not null,
      tokens      bigint not null,
      cost_micros bigint not null,
      primary key (call_key, budget_id)
    ) with (fillfactor = 70);
    create index budget_reservations_run_idx on agentd.budget_reservations (run_id);
  `.execute(db);

  await sql`
    -- What a budget's scope has used since the start of a month, by the journal: where a counter begins.
    create function agentd.budget_use(
      p_budget public.budgets, p_from timestamptz, p_to timestamptz,
      out turns bigint, out tool_calls bigint, out tokens bigint, out cost_micros bigint, out active_ms bigint
    )
    language sql stable security definer set search_path = pg_catalog, pg_temp
    as $$
      select l.turns, t.tool_calls, l.tokens, l.cost_micros, r.active_ms
        from (
          select count(*) as turns, coalesce(sum(c.prompt_tokens + c.completion_tokens), 0)::bigint as tokens,
                 coalesce(sum(c.cost_micros), 0)::bigint as cost_micros
            from public.llm_calls c
           where c.workspace_id = p_budget.workspace_id and c.status = 'completed'
             -- the index is by creation: no model call takes two days
             and c.created_at >= p_from - interval '2 days'
             and c.finished_at >= p_from and c.finished_at < p_to
             and (p_budget.agent_id is null or c.agent_id = p_budget.agent_id)
             and (p_budget.task_id is null or exists (
               select 1 from public.task_runs r where r.id = c.run_id and r.task_id = p_budget.task_id))
        ) l,
        (
          select count(*) as tool_calls
            from public.tool_calls c
           where c.workspace_id = p_budget.workspace_id
             and (c.status in ('completed', 'unknown') or (c.status = 'failed' and c.duration_ms is not null))
             and c.created_at >= p_from - interval '2 days'
             and c.finished_at >= p_from and c.finished_at < p_to
             and (p_budget.agent_id is null or c.agent_id = p_budget.agent_id)
             and (p_budget.task_id is null or exists (
               select 1 from public.task_runs r where r.id = c.run_id and r.task_id = p_budget.task_id))
        ) t,
        (
          select coalesce(sum(r.active_ms), 0)::bigint as active_ms
            from public.task_runs r
           where r.workspace_id = p_budget.workspace_id and r.created_at >= p_from and r.created_at < p_to
             and (p_budget.agent_id is null or r.agent_id = p_budget.agent_id)
             and (p_budget.task_id is null or r.task_id = p_budget.task_id)
        ) r
    $$;

    -- Sets aside what calls are about to use, in every monthly budget that bounds them. Of each item all is set aside, or nothing:
    -- then a row says which budget refused it, and when its month ends. A key that has its reservation keeps it.
    -- Items: [{key, run, budgets: [id], turns, tool_calls, tokens, cost_micros}]
    create function agentd.reserve_budgets(p_items jsonb)
    returns table (
      key text, budget_id uuid, metric text, max_amount bigint, used_amount bigint, asked_amount bigint, ends_in_ms double precision
    )
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set jit = off
    as $$
    declare
      v_budgets uuid[];
      v_item    record;
      v_refused record;
    begin
      select array_agg(distinct b.id::uuid) into v_budgets
        from jsonb_array_elements(p_items) i, jsonb_array_elements_text(i -> 'budgets') b (id);

      insert into agentd.budget_counters (budget_id, month, turns, tool_calls, tokens, cost_micros, active_ms)
      select b.id, m.month, u.turns, u.tool_calls, u.tokens, u.cost_micros, u.active_ms
        from public.budgets b
       cross join lateral agentd.month_bounds(b.workspace_id, agentd.now()) m
       cross join lateral agentd.budget_use(b, m.period_start, m.period_end) u
       where b.id = any (v_budgets) and b.period = 'month'
         and not exists (select 1 from agentd.budget_counters c where c.budget_id = b.id and c.month = m.month)
       order by b.id
          on conflict do nothing;

      -- everybody locks them in this order
      perform 1 from agentd.budget_counters c
        where c.budget_id = any (v_budgets) order by c.budget_id, c.month for no key update;

      for v_item in
        select x.* from jsonb_to_recordset(p_items) as x (
          key text, run uuid, budgets uuid[], turns bigint, tool_calls bigint, tokens bigint, cost_micros bigint)
      loop
        select b.id, v.metric, v.max_amount, v.used_amount, v.asked_amount,
               extract(epoch from m.period_end - agentd.now())::double precision * 1000 as ends_in_ms
          into v_refused
          from public.budgets b
         cross join lateral agentd.month_bounds(b.workspace_id, agentd.now()) m
          join agentd.budget_counters c on c.budget_id = b.id and c.month = m.month
         cross join lateral (values
           ('turns', b.max_turns, c.turns + c.reserved_turns, v_item.turns),
           ('tool calls', b.max_tool_calls, c.tool_calls + c.reserved_tool_calls, v_item.tool_calls),
           ('tokens', b.max_tokens, c.tokens + c.reserved_tokens, v_item.tokens),
           ('cost', b.max_cost_micros, c.cost_micros + c.reserved_cost_micros, v_item.cost_micros),
           ('seconds', b.max_seconds, c.active_ms / 1000, least(v_item.turns, 1))
         ) v (metric, max_amount, used_amount, asked_amount)
         where b.id = any (v_item.budgets) and b.is_active and b.period = 'month'
           and v.asked_amount > 0 and v.used_amount + v.asked_amount > v.max_amount
           and not exists (select 1 from agentd.budget_reservations r
                            where r.call_key = v_item.key and r.budget_id = b.id)
         order by m.period_end desc, b.id
         limit 1;
        if found then
          key := v_item.key;
          budget_id := v_refused.id;
          metric := v_refused.metric;
          max_amount := v_refused.max_amount;
          used_amount := v_refused.used_amount;
          asked_amount := v_refused.asked_amount;
          ends_in_ms := v_refused.ends_in_ms;
          return next;
          continue;
        end if;
        with reserved as (
          insert into agentd.budget_reservations as r (call_key, budget_id, month, run_id, turns, tool_calls, tokens, cost_micros)
          select v_item.key, b.id, m.month, v_item.run, v_item.turns, v_item.tool_calls, v_item.tokens, v_item.cost_micros
            from public.budgets b
           cross join lateral agentd.month_bounds(b.workspace_id, agentd.now()) m
           where b.id = any (v_item.budgets) and b.is_active and b.period = 'month'
              on conflict do nothing
          returning r.budget_id, r.month, r.turns, r.tool_calls, r.tokens, r.cost_micros
        )
        update agentd.budget_counters c
           set reserved_turns = c.reserved_turns + r.turns, reserved_tool_calls = c.reserved_tool_calls + r.tool_calls,
               reserved_tokens = c.reserved_tokens + r.tokens, reserved_cost_micros = c.reserved_cost_micros + r.cost_micros
          from reserved r
         where c.budget_id = r.budget_id and c.month = r.month;
      end loop;
    end
    $$;

    -- (Without statistics of the item lists their plans look dear enough to be compiled, which takes longer than they do.)
    -- Books what calls have used in every monthly budget whose scope the run is in, also one that was made, or switched on, after the run was
    -- claimed, and gives back what was set aside for them; at the end of a run all that is still set aside
    -- for it. A call is booked in the month in which it was set aside.
    -- Items: [{run, active_ms, ended, calls: [{key, turns, tool_calls, tokens, cost_micros}]}]
    create function agentd.settle_budgets(p_items jsonb) returns integer
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set jit = off
    as $$
    declare
      v_budgets uuid[];
      v_ended   uuid[];
      v_changed integer;
    begin
      if p_items is null then
        return 0;
      end if;
      select array_agg(distinct b.id) into v_budgets
        from jsonb_array_elements(p_items) i
        join public.task_runs r on r.id = (i ->> 'run')::uuid
        join public.budgets b on b.workspace_id = r.workspace_id and b.period = 'month'
         and (b.agent_id is null or b.agent_id = r.agent_id) and (b.task_id is null or b.task_id = r.task_id);
      select v_budgets || array_agg(distinct s.budget_id) into v_budgets
        from jsonb_array_elements(p_items) i
        join agentd.budget_reservations s on s.run_id = (i ->> 'run')::uuid;
      if v_budgets is null then
        return 0;
      end if;
      select array_agg((i ->> 'run')::uuid) into v_ended
        from jsonb_array_elements(p_items) i where (i ->> 'ended')::boolean;
      perform 1 from agentd.budget_counters c
        where c.budget_id = any (v_budgets) order by c.budget_id, c.month for no key update;

      with item as (
        select x.*, array(
                 select b.id from public.budgets b
                   join public.task_runs r on r.id = x.run
                  where b.workspace_id = r.workspace_id and b.period = 'month'
                    and (b.agent_id is null or b.agent_id = r.agent_id) and (b.task_id is null or b.task_id = r.task_id)) as budgets
          from jsonb_to_recordset(p_items) as x (run uuid, active_ms bigint, calls jsonb)
      ),
      call as (
        select c.*, item.budgets
          from item, jsonb_to_recordset(item.calls) as c (key text, turns bigint, tool_calls bigint, tokens bigint, cost_micros bigint)
      ),
      released as (
        delete from agentd.budget_reservations r
         where r.call_key in (select c.key from call c) or r.run_id = any (v_ended)
        returning r.*
      ),
      current_month as (
        select b.id, m.month from public.budgets b, lateral agentd.month_bounds(b.workspace_id, agentd.now()) m
         where b.id = any (v_budgets)
      ),
      delta as (
        select r.budget_id, r.month, 0::bigint as turns, 0::bigint as tool_calls, 0::bigint as tokens, 0::bigint as cost_micros,
               0::bigint as active_ms, r.turns as free_turns, r.tool_calls as free_tool_calls, r.tokens as free_tokens,
               r.cost_micros as free_cost
          from released r
        union all
        select x.budget_id, coalesce(r.month, m.month), c.turns, c.tool_calls, c.tokens, c.cost_micros, 0, 0, 0, 0, 0
          from call c
         cross join lateral unnest(c.budgets) as x (budget_id)
          join current_month m on m.id = x.budget_id
          left join released r on r.call_key = c.key and r.budget_id = x.budget_id
        union all
        select x.budget_id, m.month, 0, 0, 0, 0, i.active_ms, 0, 0, 0, 0
          from item i
         cross join lateral unnest(i.budgets) as x (budget_id)
          join current_month m on m.id = x.budget_id
      ),
      total as (
        select d.budget_id, d.month, sum(d.turns) as turns, sum(d.tool_calls) as tool_calls, sum(d.tokens) as tokens,
               sum(d.cost_micros) as cost_micros, sum(d.active_ms) as active_ms, sum(d.free_turns) as free_turns,
               sum(d.free_tool_calls) as free_tool_calls, sum(d.free_tokens) as free_tokens, sum(d.free_cost) as free_cost
          from delta d
         group by d.budget_id, d.month
      )
      update agentd.budget_counters c
         set turns = c.turns + t.turns, tool_calls = c.tool_calls + t.tool_calls, tokens = c.tokens + t.tokens,
             cost_micros = c.cost_micros + t.cost_micros, active_ms = c.active_ms + t.active_ms,
             reserved_turns = c.reserved_turns - t.free_turns, reserved_tool_calls = c.reserved_tool_calls - t.free_tool_calls,
             reserved_tokens = c.reserved_tokens - t.free_tokens, reserved_cost_micros = c.reserved_cost_micros - t.free_cost
        from total t
       where c.budget_id = t.budget_id and c.month = t.month;
      get diagnostics v_changed = row_count;
      return v_changed;
    end
    $$;

    -- Gives back what is set aside for runs that ended other than by their worker, and forgets counters that are of no more use.
    create function agentd.sweep_budgets(p_limit integer) returns integer
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_items jsonb;
      v_swept integer;
    begin
      select jsonb_agg(jsonb_build_object('run', s.run_id, 'active_ms', 0, 'ended', true, 'calls', jsonb_build_array())),
             count(*)
        into v_items, v_swept
        from (
          select r.run_id
            from agentd.budget_reservations r
           where not exists (select 1 from public.task_runs t
                              where t.id = r.run_id and t.status in ('queued', 'running', 'waiting'))
           group by r.run_id
           order by r.run_id
           limit p_limit) s;
      perform agentd.settle_budgets(v_items);
      delete from agentd.budget_counters c
       where c.month < (agentd.now() - interval '400 days')::date
          or not exists (select 1 from public.budgets b where b.id = c.budget_id);
      return v_swept;
    end
    $$;

    -- A budget that is changed lets the runs that wait for it look again.
    create function agentd.wake_for_budget() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    begin
      update public.task_runs r
         set wake_at = agentd.now()
       where r.id in (
         select w.id from public.task_runs w
          where w.workspace_id = coalesce(new.workspace_id, old.workspace_id)
            and w.status = 'waiting' and w.reason_code = 'budget_exhausted'
            for no key update skip locked);
      perform agentd.audit(lower(tg_op), 'budget', coalesce(new.id, old.id)::text, coalesce(new.workspace_id, old.workspace_id),
                           jsonb_strip_nulls(jsonb_build_object('from', to_jsonb(old), 'to', to_jsonb(new))));
      return null;
    end
    $$;
    -- A counter is of a scope: another scope is another budget.
    create function agentd.keep_budget_scope() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp
    as $$
    begin
      raise exception using
        errcode = 'object_not_in_prerequisite_state',
        message = 'the workspace, agent, task and period of a budget do not change',
        hint = 'Delete it and make another.';
    end
    $$;
    create trigger keep_budget_scope before update on public.budgets
      for each row when ((new.workspace_id, new.agent_id, new.task_id, new.period)
                         is distinct from (old.workspace_id, old.agent_id, old.task_id, old.period))
      execute function agentd.keep_budget_scope();

    create trigger wake_for_budget after insert or update or delete on public.budgets
      for each row execute function agentd.wake_for_budget();
    create index task_runs_waiting_idx on public.task_runs (workspace_id) where status = 'waiting';

    create function agentd.budget_usage(p_workspace_id uuid)
    returns table (
      budget_id uuid, agent_id uuid, task_id uuid, metric text, max_amount bigint, used_amount bigint, reserved_amount bigint, period_end timestamptz
    )
    language sql stable security definer set search_path = pg_catalog, pg_temp
    as $$
      select b.id, b.agent_id, b.task_id, v.metric, v.max_amount, v.used_amount, v.reserved_amount, m.period_end
        from public.budgets b
       cross join lateral agentd.month_bounds(b.workspace_id, agentd.now()) m
        left join agentd.budget_counters c on c.budget_id = b.id and c.month = m.month
       cross join lateral (values
         ('turns', b.max_turns, c.turns, c.reserved_turns),
         ('tool calls', b.max_tool_calls, c.tool_calls, c.reserved_tool_calls),
         ('tokens', b.max_tokens, c.tokens, c.reserved_tokens),
         ('cost', b.max_cost_micros, c.cost_micros, c.reserved_cost_micros),
         ('seconds', b.max_seconds, c.active_ms / 1000, 0::bigint)
       ) v (metric, max_amount, used_amount, reserved_amount)
       where b.workspace_id = p_workspace_id and b.period = 'month' and v.max_amount is not null
         and (agentd.is_service_caller() or b.workspace_id = any (array(select agentd.my_workspace_ids())))
    $$;

    -- What the monthly budgets of a workspace allow, what is used and what calls under way have set aside. Null: nothing was asked yet this month.
    create function public.get_budget_usage(workspace_id uuid)
    returns table (
      budget_id uuid, agent_id uuid, task_id uuid, metric text, max_amount bigint, used_amount bigint, reserved_amount bigint, period_end timestamptz
    )
    language sql stable set search_path = pg_catalog, pg_temp
    as $$ select * from agentd.budget_usage(workspace_id) $$;
  `.execute(db);
  await applyAccess(db);
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await sql`
    drop function public.get_budget_usage(uuid);
    drop function agentd.budget_usage(uuid);
    drop index public.task_runs_waiting_idx;
    drop function agentd.sweep_budgets(integer);
    drop function agentd.settle_budgets(jsonb);
    drop function agentd.reserve_budgets(jsonb);
    drop function agentd.budget_use(public.budgets, timestamptz, timestamptz);
    drop table agentd.budget_reservations, agentd.budget_counters, public.budgets;
    drop function agentd.wake_for_budget();
    drop function agentd.keep_budget_scope();
  `.execute(db);
}
