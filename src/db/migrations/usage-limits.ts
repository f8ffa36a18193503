/**
 * Limits of usage: what a workspace may use in a period, what is granted of it, and the warnings before it ends.
 *
 * The invariant of a counter: it holds the events of its period and the grants of consume_usage made in it, each once; an event that has the key of
 * a grant is that grant. A grant that is taken in a transaction which rolls back has never been.
 */
import { LIMIT_FUNCTIONS } from './0009_billing.ts';
import { changed, functionOf } from './run-sql.ts';

/** A grant is of so many at most, and a key so long: bounds of what a tenant can write. */
const MOST = 1_000_000_000_000;
const LONGEST_KEY = 500;
/** What the keys of signed-in users begin with; no event has one of them. */
export const MEMBER_KEY = 'member:';

/**
 * When a subscription `s` of a plan `p` stops giving its allowance; infinity, if nothing but a change of its row ends it. A payment that is due,
 * or a trial that is over, has the plan's days of grace for its update to come: of 24 hours each, or they would depend on the caller's time zone.
 */
export const LIVE_UNTIL = `least(coalesce(s.end_date, 'infinity'),
                    case s.status when 'active' then timestamptz 'infinity'
                      when 'trialing' then coalesce(s.current_period_end + make_interval(hours => 24 * p.grace_days), 'infinity')
                      when 'past_due' then coalesce(s.past_due_since, s.updated_at) + make_interval(hours => 24 * p.grace_days)
                      else timestamptz '-infinity' end)`;

/** What of the metric p_metric the roll-up has gathered for the period `u` and not yet brought to the counter; it waits while somebody holds that. */
const PENDING = (u: string): string => `coalesce((
                 select sum(d.quantity) from agentd.usage_deltas d
                  where d.workspace_id = p_workspace_id and not d.in_counter
                    and d.metric = case p_metric when 'conversations' then 'conversation' when 'messages' then 'message' else p_metric end
                    and d.at >= ${u}.period_start and d.at < ${u}.period_end), 0)::bigint`;

/** What earlier functions ask instead. */
export const LIVE_BEFORE =
  /s\.status in \('trialing', 'active', 'past_due'\)\s+and \(s\.end_date is null or s\.end_date > agentd\.now\(\)\)/;

/** From which sum on there is a warning of a limit. */
export const WARNED_FROM = (max: string): string => `${max} - ${max} / 5`;

/** From when on a part of a limit counts as used: 80 of a hundred, and all of it. */
const REACHED = (max: string): string => `case t when 80 then ${WARNED_FROM(max)} else ${max} end`;

const usageLimit = changed(
  functionOf(LIMIT_FUNCTIONS, 'usage_limit').replace('create function', 'create or replace function'),
  LIVE_BEFORE,
  `${LIVE_UNTIL} > agentd.now()`,
);

export const USAGE_LIMITS = `
    ${usageLimit}

    -- What is used of a metric in the present period and not in its counter yet. 0 for who may not see the workspace.
    create function agentd.pending_usage(p_workspace_id uuid, p_metric text) returns bigint
    language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if not agentd.is_service_caller() and not exists (select 1 from agentd.my_workspace_ids() as mine (id) where mine.id = p_workspace_id) then
        return 0;
      end if;
      return coalesce((select ${PENDING('u')} from agentd.usage_period(p_workspace_id, agentd.now()) u), 0);
    end
    $$;

    -- True while the workspace is under its limit of conversations in the present period. Never null. It only reads: what
    -- decides is consume_usage.
    create or replace function public.check_usage_limit(workspace_id uuid) returns boolean
    language plpgsql stable security invoker set search_path = pg_catalog, pg_temp as $$
    declare
      max_usage bigint := agentd.usage_limit(check_usage_limit.workspace_id, 'conversations');
    begin
      if max_usage is null then
        return true;
      end if;
      return coalesce(
        (select c.used
           from public.workspace_usage_counters c
          where c.workspace_id = check_usage_limit.workspace_id
            and c.metric = 'conversations'
            and c.month = (select b.month from agentd.usage_period(check_usage_limit.workspace_id, agentd.now()) b)),
        0) + agentd.pending_usage(check_usage_limit.workspace_id, 'conversations') < max_usage;
    end
    $$;

    -- Takes p_n of a metric from the period's allowance, or nothing. Atomic: the limit is in the condition of the one statement that writes
    -- the counter, so that no number of sessions exceeds it together. A key that was granted before is granted again without consuming, also in a later period.
    create or replace function agentd.consume_usage(p_workspace_id uuid, p_metric text, p_n bigint, p_key text default null)
    returns boolean
    language plpgsql set search_path = pg_catalog, pg_temp as $$
    declare
      max_usage bigint;
      v_planned boolean;
      v_month   date;
      v_pending bigint;
      v_before  bigint;
      v_used    bigint;
      v_is_kept boolean;
      v_is_mine boolean := false;
    begin
      if p_n is null or p_n < 0 or p_n > ${MOST} then
        raise exception 'usage is consumed by 0 to ${MOST}, not %: settle_usage gives back', p_n using errcode = 'invalid_parameter_value';
      end if;
      if p_key is null then
        -- By what the counter keeps of its limit, where nothing is on its way that it does not know, and nobody is to be warned: most grants are such.
        update public.workspace_usage_counters c set used = c.used + p_n
          from public.pricing_plans p
         where c.workspace_id = p_workspace_id and c.metric = p_metric and c.used + p_n < c.limit_below
           and c.limit_from <= agentd.now() and c.limit_until > agentd.now()
           and p.id = c.limit_plan_id and p.xmin = c.limit_plan_xmin
           and not exists (select 1 from agentd.usage_deltas d where d.workspace_id = p_workspace_id and not d.in_counter);
        if found then
          return true;
        end if;
      end if;
      <<period>>
      loop
        -- usage_period, usage_limit and pending_usage in one, where there is a row and a plan: each statement of its own costs as much as the upsert.
        select u.month, plan.id is not null, plan.max_amount, ${PENDING('u')}
          into v_month, v_planned, max_usage, v_pending
          from public.workspace_usage u
          left join lateral (
            select p.id, case p_metric when 'conversations' then p.conversation_limit::bigint when 'messages' then p.message_limit
                           when 'tokens' then p.token_limit end as max_amount
              from public.workspace_subscriptions s
              join public.pricing_plans p on p.id = s.plan_id
             where s.workspace_id = p_workspace_id and ${LIVE_UNTIL} > agentd.now()
             order by s.created_at desc limit 1) plan on true
         where u.workspace_id = p_workspace_id and u.period_start <= agentd.now() and u.period_end > agentd.now()
         order by u.period_start desc limit 1;
        if v_month is null then
          -- Opened by the first who uses something of it, so that grants have a period as events have.
          perform agentd.open_usage_period(p_workspace_id, agentd.now());
          select p.month into v_month from agentd.usage_period(p_workspace_id, agentd.now()) p;
          if not found then
            raise exception 'workspace % does not exist', p_workspace_id using errcode = 'foreign_key_violation';
          end if;
          v_planned := false;
          v_pending := agentd.pending_usage(p_workspace_id, p_metric);
        end if;
        if not v_planned then
          max_usage := agentd.usage_limit(p_workspace_id, p_metric);
        elsif max_usage < 0 then
          max_usage := null;
        end if;

        if p_key is not null then
          if v_is_mine then
            update agentd.usage_reservations r set month = v_month
             where r.workspace_id = p_workspace_id and r.metric = p_metric and r.reservation_key = p_key;
          else
            -- A second session with the same key waits here for the first to commit or roll back.
            insert into agentd.usage_reservations (workspace_id, metric, reservation_key, month, quantity, created_at)
            values (p_workspace_id, p_metric, p_key, v_month, p_n, agentd.now())
            on conflict do nothing;
            if not found then
              return true;
            end if;
            v_is_mine := true;
          end if;
        end if;

        loop
          insert into public.workspace_usage_counters as c (workspace_id, month, metric, used)
          select p_workspace_id, v_month, p_metric, p_n
           where max_usage is null or p_n + v_pending <= max_usage
          on conflict (workspace_id, month, metric) do update
            set used = c.used + excluded.used
            where (max_usage is null or c.used + excluded.used + v_pending <= max_usage) and (c.ends_at is null or c.ends_at > agentd.now())
          returning c.used, c.limit_until > agentd.now()
                    and (c.limit_plan_id is null
                         or exists (select 1 from public.pricing_plans p where p.id = c.limit_plan_id and p.xmin = c.limit_plan_xmin))
               into v_used, v_is_kept;
          exit period when found;
          continue period when agentd.is_counter_cut(p_workspace_id, v_month, p_metric, agentd.now());
          exit period when v_pending = 0;
          -- What the roll-up has brought over meanwhile stands in both: it is asked again what is still on its way.
          v_before := v_pending;
          v_pending := agentd.pending_usage(p_workspace_id, p_metric);
          exit period when v_pending >= v_before;
        end loop;
      end loop;
      if v_used is not null then
        if v_used >= ${WARNED_FROM('max_usage')} then
          insert into public.usage_warnings (workspace_id, month, metric, threshold, max_amount, used_amount)
          select p_workspace_id, v_month, p_metric, t, max_usage, v_used
            from unnest(array[80, 100]) t
           where v_used >= ${REACHED('max_usage')} and v_used - p_n < ${REACHED('max_usage')}
          on conflict do nothing;
        elsif p_key is null and v_is_kept is not true
              and not exists (select 1 from agentd.usage_deltas d where d.workspace_id = p_workspace_id and not d.in_counter) then
          -- the counter may keep its limit for the next
          perform agentd.renew_limits(p_workspace_id);
        end if;
        return true;
      end if;

      delete from agentd.usage_reservations r
       where r.workspace_id = p_workspace_id and r.metric = p_metric and r.reservation_key = p_key;
      return false;
    end
    $$;

    -- What a grant has really come to: 0 gives it back, and its key may then be asked for anew; more than was granted counts too, beyond
    -- the limit if need be: it has been used. False: there is no such grant (any more). Called twice it is as if called once.
    create function agentd.settle_usage(p_workspace_id uuid, p_metric text, p_key text, p_n bigint) returns boolean
    language plpgsql set search_path = pg_catalog, pg_temp as $$
    declare
      v_grant agentd.usage_reservations;
    begin
      if p_n is null or p_n < 0 or p_n > ${MOST} then
        raise exception 'a grant is settled by 0 to ${MOST}, not %', p_n using errcode = 'invalid_parameter_value';
      end if;
      select r.* into v_grant from agentd.usage_reservations r
       where r.workspace_id = p_workspace_id and r.metric = p_metric and r.reservation_key = p_key
         for no key update;
      if not found then
        return false;
      end if;
      if p_n = 0 then
        delete from agentd.usage_reservations r
         where r.workspace_id = p_workspace_id and r.metric = p_metric and r.reservation_key = p_key;
      elsif p_n <> v_grant.quantity then
        update agentd.usage_reservations r set quantity = p_n
         where r.workspace_id = p_workspace_id and r.metric = p_metric and r.reservation_key = p_key;
      end if;
      if p_n <> v_grant.quantity then
        update public.workspace_usage_counters c set used = c.used + p_n - v_grant.quantity
         where c.workspace_id = p_workspace_id and c.month = v_grant.month and c.metric = p_metric;
      end if;
      return true;
    end
    $$;

    create function agentd.ask_for_usage(p_workspace_id uuid, p_metric text, p_n bigint, p_key text) returns boolean
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if not agentd.is_service_caller()
         and not exists (select 1 from agentd.my_workspace_ids('MANAGER') as mine (id) where mine.id = p_workspace_id) then
        raise exception 'workspace % does not exist, or you are no manager of it', p_workspace_id
          using errcode = 'insufficient_privilege';
      end if;
      if length(p_key) > ${LONGEST_KEY} then
        raise exception 'a reservation key has at most ${LONGEST_KEY} characters' using errcode = 'invalid_parameter_value';
      end if;
      -- Users' keys are apart: under the backend's, or an event's, what is used would be paid with a grant of nothing.
      if agentd.is_service_caller() and starts_with(p_key, '${MEMBER_KEY}') then
        raise exception 'reservation keys that begin with ${MEMBER_KEY} are those of signed-in users' using errcode = 'invalid_parameter_value';
      end if;
      return agentd.consume_usage(p_workspace_id, p_metric, p_n,
        case when agentd.is_service_caller() then p_key else '${MEMBER_KEY}' || p_key end);
    end
    $$;

    -- Takes n conversations, messages or tokens from what the workspace may use in its period: all, and then true, or nothing. A
    -- key is paid once, however often it is asked. For managers and the application.
    create function public.consume_usage(workspace_id uuid, metric text, n bigint default 1, key text default null) returns boolean
    language sql security invoker set search_path = pg_catalog, pg_temp as $$
      select agentd.ask_for_usage(consume_usage.workspace_id, consume_usage.metric, consume_usage.n, consume_usage.key)
    $$;

    -- For the application alone: whoever could give back what he has used would have no limit.
    create function public.settle_usage(workspace_id uuid, metric text, key text, n bigint) returns boolean
    language sql security invoker set search_path = pg_catalog, pg_temp as $$
      select agentd.settle_usage(settle_usage.workspace_id, settle_usage.metric, settle_usage.key, settle_usage.n)
    $$;

    -- Warns of what the roll-up, or a lower limit, has brought to 80 or 100 of a hundred, for up to p_limit counters. Passes those that somebody
    -- holds, before it counts them. Returns how many warnings there are now that were not.
    create function agentd.warn_of_usage(p_limit integer) returns integer
    language sql volatile set search_path = pg_catalog, pg_temp set jit = off as $$
      with counter as materialized (
        select c.workspace_id, c.month, c.metric, c.used, plan.max_amount
          from public.workspace_usage_counters c
          join public.workspace_usage u on u.workspace_id = c.workspace_id and u.month = c.month
           and u.period_start <= agentd.now() and u.period_end > agentd.now()
          left join lateral (
            select p.* from public.workspace_subscriptions s join public.pricing_plans p on p.id = s.plan_id
             where s.workspace_id = c.workspace_id and ${LIVE_UNTIL} > agentd.now()
             order by s.created_at desc limit 1) own on true
          left join public.pricing_plans fallback on fallback.is_default and own.id is null
         cross join lateral (
            select case c.metric when 'conversations' then coalesce(own.conversation_limit, fallback.conversation_limit)::bigint
                     when 'messages' then coalesce(own.message_limit, fallback.message_limit)
                     else coalesce(own.token_limit, fallback.token_limit) end as max_amount) plan
         where plan.max_amount > 0 and c.used >= ${WARNED_FROM('plan.max_amount')}
      ),
      due as materialized (
        select c.*, t as threshold
          from counter c, unnest(array[80, 100]) t
         where c.used >= ${REACHED('c.max_amount')}
           and not exists (select 1 from public.usage_warnings w
                            where w.workspace_id = c.workspace_id and w.month = c.month and w.metric = c.metric
                              and w.threshold = t and w.max_amount = c.max_amount)
      ),
      -- who consumes holds the counter, and whoever deletes the workspace its row
      free as materialized (
        select c.workspace_id, c.month, c.metric
          from public.workspace_usage_counters c
          join public.workspaces w on w.id = c.workspace_id
         where (c.workspace_id, c.month, c.metric) in (select d.workspace_id, d.month, d.metric from due d)
         order by 1, 2, 3
         limit p_limit
           for no key update of c skip locked
           for key share of w skip locked
      ),
      warned as (
        insert into public.usage_warnings (workspace_id, month, metric, threshold, max_amount, used_amount)
        select d.workspace_id, d.month, d.metric, d.threshold, d.max_amount, d.used
          from due d join free f using (workspace_id, month, metric)
         order by 1, 2, 3, 4
        on conflict do nothing
        returning 1
      )
      select count(*)::integer from warned
    $$;

    -- Payload-free: everybody may listen to everything.
    create function agentd.tell_usage_warnings() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp as $$
    begin
      perform pg_notify('agentd_usage', '');
      return null;
    end
    $$;

    -- Whether workspaces have used all that their plan gives of what runs use: a row for each that has, of the metric that is free last.
    -- Reads counters, and what is on its way into them; it waits for nobody.
    create function agentd.reached_limits(p_workspaces uuid[])
    returns table (workspace_id uuid, metric text, max_amount bigint, used_amount bigint, ends_in_ms double precision, policy text)
    language plpgsql stable set search_path = pg_catalog, pg_temp set jit = off as $$
    #variable_conflict use_column
    declare
      v_id     uuid;
      v_max    bigint;
      v_period record;
      v_used   bigint;
    begin
      foreach v_id in array p_workspaces loop
        v_max := agentd.usage_limit(v_id, 'tokens');
        continue when v_max is null;
        select p.month, p.period_start, p.period_end into v_period from agentd.usage_period(v_id, agentd.now()) p;
        continue when not found;
        v_used := coalesce((select c.used from public.workspace_usage_counters c
                             where c.workspace_id = v_id and c.month = v_period.month and c.metric = 'tokens'), 0)
                + coalesce((select sum(d.quantity) from agentd.usage_deltas d
                             where d.workspace_id = v_id and d.metric = 'tokens' and not d.in_counter
                               and d.at >= v_period.period_start and d.at < v_period.period_end), 0)::bigint;
        if v_used >= v_max then
          return query select v_id, 'tokens', v_max, v_used,
            extract(epoch from v_period.period_end - agentd.now())::double precision * 1000, agentd.limit_policy(v_id);
        end if;
      end loop;
    end
    $$;

    -- What a run does at the limit: as the workspace's settings say (limit_policy), else its plan; 'wait' where neither does.
    create function agentd.limit_policy(p_workspace_id uuid) returns text
    language sql stable set search_path = pg_catalog, pg_temp as $$
      select coalesce(
        (select w.settings ->> 'limit_policy' from public.workspaces w
          where w.id = p_workspace_id and w.settings ->> 'limit_policy' in ('wait', 'fail')),
        (select p.limit_policy from public.workspace_subscriptions s join public.pricing_plans p on p.id = s.plan_id
          where s.workspace_id = p_workspace_id and ${LIVE_UNTIL} > agentd.now()
          order by s.created_at desc limit 1),
        (select p.limit_policy from public.pricing_plans p where p.is_default),
        'wait')
    $$;
`;

export const DROP_USAGE_LIMITS = `
    drop function agentd.reached_limits(uuid[]);
    drop function agentd.limit_policy(uuid);
    drop function agentd.tell_usage_warnings();
    drop function agentd.warn_of_usage(integer);
    drop function public.settle_usage(uuid, text, text, bigint);
    drop function public.consume_usage(uuid, text, bigint, text);
    drop function agentd.ask_for_usage(uuid, text, bigint, text);
    drop function agentd.settle_usage(uuid, text, text, bigint);
    ${LIMIT_FUNCTIONS.replaceAll('create function', 'create or replace function')}
    drop function agentd.pending_usage(uuid, text);
`;
