/**
 * What follows when a subscription or a plan changes, or the time comes at which one ends.
 *
 * Applications write the rows, in any order and more than once; what is asked of them is always computed from what they say now. So a
 * redelivered update changes nothing. agentd.workspace_plans only says when time alone will change the answer.
 */
import { LIVE_UNTIL } from './usage-limits.ts';

export const SUBSCRIPTION_CHANGES = `
    -- Since when a payment is due: the first update that says so, not the last.
    create function agentd.fill_past_due() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp as $$
    begin
      if new.status <> 'past_due' then
        new.past_due_since := null;
      elsif tg_op = 'UPDATE' and old.status = 'past_due' then
        new.past_due_since := coalesce(new.past_due_since, old.past_due_since, agentd.now());
      else
        new.past_due_since := coalesce(new.past_due_since, agentd.now());
      end if;
      return new;
    end
    $$;

    -- Runs that wait at a limit look again, of these workspaces (null: of all). Passes those that somebody holds: they look again by themselves.
    create function agentd.wake_for_limit(p_workspaces uuid[]) returns void
    language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
      update public.task_runs r set wake_at = agentd.now()
       where r.id in (
         select w.id from public.task_runs w
          where w.status = 'waiting' and w.reason_code = 'usage_limit_reached'
            and (p_workspaces is null or w.workspace_id = any (p_workspaces))
            for no key update skip locked)
    $$;

    -- What a workspace's subscriptions say now is followed: its periods are cut anew where they depend on it, runs that wait look again, and it is noted
    -- when time alone changes the answer.
    create function agentd.follow_plan(p_workspace_id uuid) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
    begin
      insert into agentd.workspace_plans as n (workspace_id, changes_at)
      select w.id, (
               select min(${LIVE_UNTIL}) filter (where ${LIVE_UNTIL} > agentd.now() and isfinite(${LIVE_UNTIL}))
                 from public.workspace_subscriptions s join public.pricing_plans p on p.id = s.plan_id
                where s.workspace_id = w.id)
        from public.workspaces w where w.id = p_workspace_id
      on conflict (workspace_id) do update set changes_at = excluded.changes_at;
      insert into agentd.usage_recuts (workspace_id)
      select w.id from public.workspaces w
       where w.id = p_workspace_id
         and (exists (select 1 from agentd.usage_by_second f where f.workspace_id = w.id)
              or exists (select 1 from public.workspace_subscriptions s join public.pricing_plans p on p.id = s.plan_id
                          where s.workspace_id = w.id and p.usage_period = 'subscription'));
      perform agentd.wake_for_limit(array[p_workspace_id]);
    end
    $$;

    create function agentd.follow_subscription() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if tg_op <> 'DELETE' then
        perform agentd.follow_plan(new.workspace_id);
      end if;
      if tg_op = 'DELETE' or tg_op = 'UPDATE' and old.workspace_id <> new.workspace_id then
        perform agentd.follow_plan(old.workspace_id);
      end if;
      return null;
    end
    $$;

    -- A plan that gives more, or another default plan. Other days of grace are followed by the next pass.
    create function agentd.follow_pricing() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if tg_op = 'UPDATE' and new.grace_days <> old.grace_days then
        update agentd.workspace_plans n set changes_at = agentd.now()
         where n.workspace_id in (select s.workspace_id from public.workspace_subscriptions s where s.plan_id = new.id);
        -- one that had ended may go on: limits that counters keep are of other plans
        perform agentd.renew_limits(s.workspace_id)
           from (select distinct o.workspace_id from public.workspace_subscriptions o where o.plan_id = new.id) s;
      end if;
      if new.is_default or old.is_default then
        perform agentd.wake_for_limit(null);
      else
        perform agentd.wake_for_limit(array(
          select s.workspace_id from public.workspace_subscriptions s where s.plan_id = coalesce(new.id, old.id)));
      end if;
      return null;
    end
    $$;

    -- Follows up to p_limit workspaces for which the time has come: the end of a subscription, of a trial or of days of grace. Any node may, at any
    -- time; each is followed once. One that somebody holds is left for later. Returns how many were followed.
    create function agentd.follow_ended_plans(p_limit integer) returns integer
    language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' as $$
    declare
      v_id       uuid;
      v_ids      uuid[];
      v_followed integer := 0;
    begin
      v_ids := array(
        select n.workspace_id
          from agentd.workspace_plans n join public.workspaces w on w.id = n.workspace_id
         where n.changes_at <= agentd.now() order by n.changes_at limit p_limit
           for update of n skip locked
           for key share of w skip locked);
      foreach v_id in array v_ids loop
        begin
          perform agentd.follow_plan(v_id);
          v_followed := v_followed + 1;
        exception when lock_not_available then
          null;
        end;
      end loop;
      return v_followed;
    end
    $$;

    -- What conversations are counted by is the application's to say. A user's write of the settings leaves it as it is.
    create function agentd.keep_counting() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp as $$
    declare
      v_before jsonb;
    begin
      if tg_op = 'UPDATE' then
        v_before := old.settings -> 'count_conversations';
      end if;
      if jsonb_typeof(new.settings) = 'object' and (new.settings -> 'count_conversations') is distinct from v_before
         and not agentd.is_service_caller() then
        new.settings := new.settings - 'count_conversations'
                        || case when v_before is null then '{}' else jsonb_build_object('count_conversations', v_before) end;
      end if;
      return new;
    end
    $$;

    create trigger fill_3_past_due before insert or update on public.workspace_subscriptions
      for each row execute function agentd.fill_past_due();
    create trigger follow_subscription_made after insert or delete on public.workspace_subscriptions
      for each row execute function agentd.follow_subscription();
    create trigger follow_subscription_changed after update on public.workspace_subscriptions
      for each row when ((new.workspace_id, new.plan_id, new.status, new.current_period_end, new.end_date, new.past_due_since)
                         is distinct from (old.workspace_id, old.plan_id, old.status, old.current_period_end, old.end_date, old.past_due_since))
      execute function agentd.follow_subscription();
    create trigger follow_pricing_made after insert or delete on public.pricing_plans
      for each row execute function agentd.follow_pricing();
    create trigger follow_pricing_changed after update on public.pricing_plans
      for each row when ((new.conversation_limit, new.message_limit, new.token_limit, new.is_default, new.grace_days, new.limit_policy)
                         is distinct from (old.conversation_limit, old.message_limit, old.token_limit, old.is_default, old.grace_days, old.limit_policy))
      execute function agentd.follow_pricing();
    create trigger keep_counting before insert or update of settings on public.workspaces
      for each row execute function agentd.keep_counting();
    create trigger tell_usage_warnings after insert on public.usage_warnings
      for each statement execute function agentd.tell_usage_warnings();
`;

export const DROP_SUBSCRIPTION_CHANGES = `
    drop trigger keep_counting on public.workspaces;
    drop trigger follow_pricing_changed on public.pricing_plans;
    drop trigger follow_pricing_made on public.pricing_plans;
    drop trigger follow_subscription_changed on public.workspace_subscriptions;
    drop trigger follow_subscription_made on public.workspace_subscriptions;
    drop trigger fill_3_past_due on public.workspace_subscriptions;
    drop function agentd.keep_counting();
    drop function agentd.follow_ended_plans(integer);
    drop function agentd.follow_pricing();
    drop function agentd.follow_subscription();
    drop function agentd.follow_plan(uuid);
    drop function agentd.wake_for_limit(uuid[]);
    drop function agentd.fill_past_due();
`;
