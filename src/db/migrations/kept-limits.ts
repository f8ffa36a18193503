/**
 * Limits that counters keep: which plan gives a counter's limit, and from when until when that is so. With it a grant that stays under 80 of a hundred is
 * one statement, which looks at the counter, its plan and what is on its way, and at no period or subscription.
 *
 * Only the fold writes down what holds, one at a time, while it has the workspace's counters. Whatever changes the answer, other than time and the kept
 * plan's own row, leaves a delta of no events in its transaction (`renew_limits`): as long as there is one, a grant asks everything, as it does where
 * the counter keeps nothing. The fold takes it away first and then writes down what holds by a later snapshot. So what is kept is never older than a
 * change that can be seen. (Who switches triggers off, as a restore does, has to `update public.workspace_usage_counters set limit_until = null`.)
 */
import { LIVE_UNTIL, WARNED_FROM } from './usage-limits.ts';

/** When a subscription `s` stops giving its allowance, as far as its own row says: without the plan's days of grace. */
const LIVE_BY_ITSELF_UNTIL = `least(coalesce(s.end_date, 'infinity'),
                         case s.status when 'active' then timestamptz 'infinity'
                           when 'trialing' then coalesce(s.current_period_end, 'infinity')
                           else timestamptz '-infinity' end)`;

const NO_LIMIT = '9223372036854775807';

export const KEPT_LIMIT_COLUMNS = `
    alter table public.workspace_usage_counters
      add column limit_plan_id   uuid,
      add column limit_plan_xmin xid,
      add column limit_below     bigint,
      add column limit_from      timestamptz,
      add column limit_until     timestamptz;
    comment on column public.workspace_usage_counters.limit_plan_id is
      'The plan that limits this counter between limit_from and limit_until; null: a grant finds it out. Written by the worker.';
    comment on column public.workspace_usage_counters.limit_plan_xmin is 'The version of that plan''s row that limit_below is of.';
    comment on column public.workspace_usage_counters.limit_below is
      'A grant with which used stays below this needs to know no more: 80 of a hundred of the limit, or any number where there is none.';
`;

export const DROP_KEPT_LIMIT_COLUMNS = `
    alter table public.workspace_usage_counters
      drop column limit_plan_id, drop column limit_plan_xmin, drop column limit_below, drop column limit_from, drop column limit_until;
`;

export const KEPT_LIMITS = `
    -- What the counters of a workspace keep of limits is not relied on from this transaction's commit on, until the worker has written it anew.
    -- Waits for nobody.
    create function agentd.renew_limits(p_workspace_id uuid) returns void
    language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
      insert into agentd.usage_deltas (workspace_id, at, metric, in_counter, events, quantity, cost_micros)
      select w.id, agentd.now(), '', false, 0, 0, 0 from public.workspaces w where w.id = p_workspace_id
    $$;

    -- Writes down what holds for the counters of those of the workspaces that ask for it. The caller holds their recent counters, and is the only one.
    create function agentd.keep_limits(p_workspaces uuid[]) returns void
    language plpgsql volatile set search_path = pg_catalog, pg_temp set jit = off as $$
    declare
      v_asked uuid[];
    begin
      with asked as (
        delete from agentd.usage_deltas d where d.workspace_id = any (p_workspaces) and d.events = 0 returning d.workspace_id
      )
      select array_agg(distinct a.workspace_id) into v_asked from asked a;
      if v_asked is null then
        return;
      end if;
      -- by a later snapshot than that in which they asked
      update public.workspace_usage_counters c
         set (limit_plan_id, limit_plan_xmin, limit_below, limit_from, limit_until) = (
               select k.plan_id, k.plan_xmin,
                      case when k.plan_id is null then null when k.max_amount >= 0 then ${WARNED_FROM('k.max_amount')} else ${NO_LIMIT} end,
                      k.since, least(k.until, c.ends_at)
                 from (select case c.metric when 'conversations' then h.conversation_limit::bigint when 'messages' then h.message_limit
                                else h.token_limit end as max_amount, h.*) k
                where c.month = k.month)
        from (select w.id as workspace_id, u.month, greatest(u.period_start, e.ended_at) as since,
                     -- what is not found now may be made at any time
                     least(u.period_end, case when p.id is null then agentd.now() + interval '1 hour' else s.until end) as until,
                     p.id as plan_id, p.xmin as plan_xmin, p.conversation_limit, p.message_limit, p.token_limit
                from unnest(v_asked) w (id)
                left join lateral (
                  select o.month, o.period_start, o.period_end from public.workspace_usage o
                   where o.workspace_id = w.id and o.period_start <= agentd.now() and o.period_end > agentd.now()
                   order by o.period_start desc limit 1) u on true
                left join lateral (
                  select s.plan_id, case when ${LIVE_BY_ITSELF_UNTIL} > agentd.now() then ${LIVE_BY_ITSELF_UNTIL} end as until
                    from public.workspace_subscriptions s join public.pricing_plans p on p.id = s.plan_id
                   where s.workspace_id = w.id and ${LIVE_UNTIL} > agentd.now()
                   order by s.created_at desc limit 1) s on true
                -- before that another one may have given the allowance, also for a statement that began then
                left join lateral (
                  select max(${LIVE_UNTIL}) as ended_at
                    from public.workspace_subscriptions s join public.pricing_plans p on p.id = s.plan_id
                   where s.workspace_id = w.id and ${LIVE_UNTIL} <= agentd.now()) e on true
                -- in its days of grace a subscription has the plan's row to thank: no limit is kept
                left join public.pricing_plans p on case when s.plan_id is null then p.is_default else p.id = s.plan_id and s.until is not null end) h
       where c.workspace_id = h.workspace_id and (c.month = h.month or c.limit_until is not null);
    end
    $$;

    -- BEFORE a change of a subscription, so that also what follows it in the same statement sees that it asks everything.
    create function agentd.renew_limits_of_subscription() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if tg_op <> 'INSERT' then
        perform agentd.renew_limits(old.workspace_id);
      end if;
      if tg_op = 'DELETE' then
        return old;
      end if;
      if tg_op = 'INSERT' or new.workspace_id <> old.workspace_id then
        perform agentd.renew_limits(new.workspace_id);
      end if;
      return new;
    end
    $$;
    create trigger a_renew_limits before insert or update or delete on public.workspace_subscriptions
      for each row execute function agentd.renew_limits_of_subscription();

    -- AFTER a change of a period's edges, or a period beside which there is another.
    create function agentd.renew_limits_of_period() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if tg_op = 'INSERT' then
        if exists (select 1 from public.workspace_usage u
                    where u.workspace_id = new.workspace_id and u.id <> new.id
                      and u.period_start < new.period_end and u.period_end > new.period_start) then
          perform agentd.renew_limits(new.workspace_id);
        end if;
      else
        perform agentd.renew_limits(old.workspace_id);
        if tg_op = 'UPDATE' and new.workspace_id <> old.workspace_id then
          perform agentd.renew_limits(new.workspace_id);
        end if;
      end if;
      return null;
    end
    $$;
    create trigger a_renew_limits after insert or delete on public.workspace_usage
      for each row execute function agentd.renew_limits_of_period();
    create trigger a_renew_limits_moved after update of workspace_id, month, period_start, period_end on public.workspace_usage
      for each row when ((new.workspace_id, new.month, new.period_start, new.period_end)
                         is distinct from (old.workspace_id, old.month, old.period_start, old.period_end))
      execute function agentd.renew_limits_of_period();

    create function agentd.forget_limits() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      update public.workspace_usage_counters c set limit_until = null where c.limit_until is not null;
      return null;
    end
    $$;
    create trigger a_forget_limits after truncate on public.workspace_subscriptions
      for each statement execute function agentd.forget_limits();
    create trigger a_forget_limits after truncate on public.workspace_usage
      for each statement execute function agentd.forget_limits();
    -- a queue: without pages the planner would take reading all of it for free
    alter table agentd.usage_deltas set (vacuum_truncate = off);
`;

export const DROP_KEPT_LIMITS = `
    alter table agentd.usage_deltas reset (vacuum_truncate);
    drop trigger a_forget_limits on public.workspace_usage;
    drop trigger a_forget_limits on public.workspace_subscriptions;
    drop function agentd.forget_limits();
    drop trigger a_renew_limits_moved on public.workspace_usage;
    drop trigger a_renew_limits on public.workspace_usage;
    drop function agentd.renew_limits_of_period();
    drop trigger a_renew_limits on public.workspace_subscriptions;
    drop function agentd.renew_limits_of_subscription();
    drop function agentd.keep_limits(uuid[]);
    drop function agentd.renew_limits(uuid);
`;
