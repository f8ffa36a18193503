/**
 * The periods of a workspace's usage, each a row of workspace_usage.
 *
 * A period is a calendar month in the workspace's zone, or one of its subscription, as its plan says. Periods never overlap and leave no
 * gap between events: what exists stands, and a new one is what the present zone and plan say, clipped to its neighbours. So every
 * event belongs to exactly one period, whatever changes meanwhile. Edges are whole seconds.
 */
export const PERIOD_FUNCTIONS = `
    -- The period that zone and plan ask for at an instant, as if none existed. No row: no such workspace.
    create function agentd.natural_usage_period(p_workspace_id uuid, p_at timestamptz)
    returns table (kind text, month date, period_start timestamptz, period_end timestamptz)
    language plpgsql stable set search_path = pg_catalog, pg_temp as $$
    #variable_conflict use_column
    declare
      v_zone  text;
      v_sub   record;
      v_step  integer;
      v_n     integer;
      v_next  timestamptz;
      v_start timestamptz;
      v_end   timestamptz;
      v_kind  text := 'month';
    begin
      select agentd.valid_time_zone(w.timezone) into v_zone from public.workspaces w where w.id = p_workspace_id;
      if not found then
        return;
      end if;
      -- a period that ends before it begins is somebody's mistake: then it is a month long
      select p.usage_period, date_trunc('second', s.current_period_start) as starts,
             date_trunc('second', case when s.current_period_end > s.current_period_start + interval '1 second' then s.current_period_end
                                       else s.current_period_start + interval '1 month' end) as ends
        into v_sub
        from public.workspace_subscriptions s
        join public.pricing_plans p on p.id = s.plan_id
       where s.workspace_id = p_workspace_id and s.status in ('trialing', 'active', 'past_due')
         and (s.end_date is null or s.end_date > agentd.now()) and isfinite(s.current_period_start)
       order by s.created_at desc
       limit 1;
      v_start := date_trunc('month', p_at at time zone v_zone) at time zone v_zone;
      v_end := (date_trunc('month', p_at at time zone v_zone) + interval '1 month') at time zone v_zone;
      if v_sub.usage_period = 'subscription' then
        if p_at < v_sub.starts then
          v_end := least(v_end, v_sub.starts);
        elsif p_at < v_sub.ends then
          v_kind := 'subscription';
          v_start := v_sub.starts;
          v_end := v_sub.ends;
        else
          -- its renewal has not come yet: on as before, from the same day of the month (a 31st comes back after February)
          v_kind := 'subscription';
          v_step := case when v_sub.ends - v_sub.starts > interval '300 days' then 12 else 1 end;
          v_n := greatest(0, (extract(year from age(p_at, v_sub.starts)) * 12 + extract(month from age(p_at, v_sub.starts)))::integer / v_step - 1);
          v_start := v_sub.starts;
          loop
            v_next := (v_sub.starts at time zone 'UTC' + make_interval(months => (v_n + 1) * v_step)) at time zone 'UTC';
            exit when p_at < v_next;
            v_start := v_next;
            v_n := v_n + 1;
          end loop;
          v_start := greatest(v_start, v_sub.ends);
          v_end := v_next;
        end if;
      end if;
      return query select v_kind,
        case v_kind when 'month' then date_trunc('month', p_at at time zone v_zone)::date else (v_start at time zone v_zone)::date end,
        v_start, v_end;
    end
    $$;

    -- The period that an instant lies in: the row of workspace_usage, or the one that would be made (is_there false). No row: no
    -- such workspace, or none that the caller may see.
    create function agentd.usage_period(p_workspace_id uuid, p_at timestamptz)
    returns table (is_there boolean, kind text, month date, period_start timestamptz, period_end timestamptz)
    language plpgsql stable set search_path = pg_catalog, pg_temp as $$
    #variable_conflict use_column
    declare
      v_period record;
      v_before record;
      v_next   timestamptz;
      v_month  date;
      v_start  timestamptz;
    begin
      return query
        select true, u.period_kind, u.month, u.period_start, u.period_end
          from public.workspace_usage u
         where u.workspace_id = p_workspace_id and u.period_start <= p_at and u.period_end > p_at
         order by u.period_start desc limit 1;
      if found then
        return;
      end if;
      select * into v_period from agentd.natural_usage_period(p_workspace_id, p_at);
      if not found then
        return;
      end if;
      select u.* into v_before from public.workspace_usage u
       where u.workspace_id = p_workspace_id and u.period_end <= p_at order by u.period_end desc limit 1;
      select min(u.period_start) into v_next from public.workspace_usage u
       where u.workspace_id = p_workspace_id and u.period_start > p_at;
      v_start := greatest(v_period.period_start, v_before.period_end);
      if v_start = v_before.period_end and v_before.closed_at is null and v_period.kind = 'month' and v_before.period_kind = 'month'
         and v_before.month = v_period.month then
        -- the zone has moved to the west: this month is not over yet
        return query select false, 'month', v_before.month, v_before.period_start, least(v_period.period_end, v_next);
        return;
      end if;
      v_month := v_period.month;
      while exists (select 1 from public.workspace_usage u where u.workspace_id = p_workspace_id and u.month = v_month) loop
        v_month := v_month + 1;
      end loop;
      return query select false, v_period.kind, v_month, v_start, least(v_period.period_end, v_next);
    end
    $$;

    -- Makes sure that there is a row for the period that an instant lies in. One that an application has inserted, and nothing was added to,
    -- has no rolled_up_at: it is not compared with the events, and not rebuilt.
    create function agentd.open_usage_period(p_workspace_id uuid, p_at timestamptz) returns void
    language sql volatile set search_path = pg_catalog, pg_temp as $$
      insert into public.workspace_usage as u (workspace_id, month, period_kind, period_start, period_end, rolled_up_at)
      select p_workspace_id, p.month, p.kind, p.period_start, p.period_end, agentd.now()
        from agentd.usage_period(p_workspace_id, p_at) p
       where not p.is_there
      on conflict (workspace_id, month) do update set period_end = excluded.period_end
    $$;

    -- An instant of an open period, to which what is late for a closed one is booked: now, or the beginning of what follows.
    create function agentd.usage_booking_time(p_workspace_id uuid, p_at timestamptz) returns timestamptz
    language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
    declare
      v_at  timestamptz := p_at;
      v_row public.workspace_usage;
    begin
      loop
        perform agentd.open_usage_period(p_workspace_id, v_at);
        select u.* into strict v_row from public.workspace_usage u
         where u.workspace_id = p_workspace_id and u.period_start <= v_at and u.period_end > v_at
         order by u.period_start desc limit 1;
        if v_row.closed_at is null then
          return v_at;
        end if;
        v_at := v_row.period_end;
      end loop;
    end
    $$;

    -- Closes periods that ended long enough ago: what comes later for them is a correction of the open one. Returns how many.
    create function agentd.close_usage_periods(p_after interval, p_limit integer) returns integer
    language sql volatile set search_path = pg_catalog, pg_temp as $$
      with due as (
        select u.id from public.workspace_usage u
         where u.closed_at is null and u.rolled_up_at is not null and u.period_end < agentd.now() - p_after
         order by u.id limit p_limit for no key update skip locked
      ),
      closed as (
        update public.workspace_usage u set closed_at = agentd.now() from due where u.id = due.id returning 1
      )
      select count(*)::integer from closed
    $$;

    -- AFTER a change of what periods follow: the worker cuts the workspace's open period anew. The row is locked until the
    -- change is committed, so that no request is answered before.
    create function agentd.request_usage_recut() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if tg_table_name = 'workspaces' then
        insert into agentd.usage_recuts (workspace_id) values (new.id)
        on conflict (workspace_id) do update set requested_at = excluded.requested_at;
      elsif tg_table_name = 'pricing_plans' then
        insert into agentd.usage_recuts (workspace_id)
        select distinct s.workspace_id from public.workspace_subscriptions s where s.plan_id = new.id order by 1
        on conflict (workspace_id) do update set requested_at = excluded.requested_at;
      else
        insert into agentd.usage_recuts (workspace_id)
        select new.workspace_id
         where exists (select 1 from public.pricing_plans p where p.id = new.plan_id and p.usage_period = 'subscription')
            or exists (select 1 from agentd.usage_by_second f where f.workspace_id = new.workspace_id)
        on conflict (workspace_id) do update set requested_at = excluded.requested_at;
      end if;
      return null;
    end
    $$;
`;

export const PERIOD_TRIGGERS = `
    create trigger request_usage_recut after update of timezone on public.workspaces
      for each row when (new.timezone is distinct from old.timezone) execute function agentd.request_usage_recut();
    create trigger request_usage_recut after update of usage_period on public.pricing_plans
      for each row when (new.usage_period is distinct from old.usage_period) execute function agentd.request_usage_recut();
    create trigger request_usage_recut_insert after insert on public.workspace_subscriptions
      for each row execute function agentd.request_usage_recut();
    create trigger request_usage_recut_update
      after update of plan_id, status, current_period_start, current_period_end, end_date on public.workspace_subscriptions
      for each row when ((new.plan_id, new.status, new.current_period_start, new.current_period_end, new.end_date)
                         is distinct from (old.plan_id, old.status, old.current_period_start, old.current_period_end, old.end_date))
      execute function agentd.request_usage_recut();
`;

export const DROP_PERIODS = `
    drop trigger request_usage_recut_update on public.workspace_subscriptions;
    drop trigger request_usage_recut_insert on public.workspace_subscriptions;
    drop trigger request_usage_recut on public.pricing_plans;
    drop trigger request_usage_recut on public.workspaces;
    drop function agentd.request_usage_recut();
    drop function agentd.close_usage_periods(interval, integer);
    drop function agentd.usage_booking_time(uuid, timestamptz);
    drop function agentd.open_usage_period(uuid, timestamptz);
    drop function agentd.usage_period(uuid, timestamptz);
    drop function agentd.natural_usage_period(uuid, timestamptz);
`;
