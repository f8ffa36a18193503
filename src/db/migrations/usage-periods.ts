/**
 * The periods of a workspace's usage, each a row of workspace_usage.
 *
 * A period is a calendar month in the workspace's zone, or one of its subscription, as its plan says. Periods never overlap and leave no
 * gap between events: what exists stands, and a new one is what the present zone and plan say, clipped to its neighbours. So every
 * event belongs to exactly one period, whatever changes meanwhile. Edges are whole seconds.
 *
 * Whoever makes a period or moves its edges holds the workspace's row of usage_period_locks until he commits, and looks at the neighbours
 * only then. (An exclusion constraint would need btree_gist, and would refuse what an application inserts.)
 *
 * All times are reckoned in UTC or the workspace's zone: what the session's is decides nothing.
 */
export const PERIOD_FUNCTIONS = `
    -- When the clocks of a zone first show a time. A midnight comes twice where they are then set back, and not at all where they are set on.
    create function agentd.first_instant(p_local timestamp, p_zone text) returns timestamptz
    language sql stable set search_path = pg_catalog, pg_temp as $$
      select least(l.late, case when l.early at time zone p_zone = p_local then l.early end)
        from (select t.at as late,
                     (p_local - ((t.at - interval '24 hours') at time zone p_zone - (t.at - interval '24 hours') at time zone 'UTC'))
                       at time zone 'UTC' as early
                from (select p_local at time zone p_zone as at offset 0) t) l
    $$;

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
      v_age   interval;
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
                                       else (s.current_period_start at time zone 'UTC' + interval '1 month') at time zone 'UTC' end) as ends
        into v_sub
        from public.workspace_subscriptions s
        join public.pricing_plans p on p.id = s.plan_id
       where s.workspace_id = p_workspace_id and s.status in ('trialing', 'active', 'past_due')
         and (s.end_date is null or s.end_date > agentd.now()) and isfinite(s.current_period_start)
       order by s.created_at desc
       limit 1;
      loop
        v_start := agentd.first_instant(date_trunc('month', p_at at time zone v_zone), v_zone);
        v_end := agentd.first_instant(date_trunc('month', p_at at time zone v_zone) + interval '1 month', v_zone);
        exit when v_start <= p_at and p_at < v_end or v_zone = 'UTC';
        -- clocks that are set by days are nobody's
        v_zone := 'UTC';
      end loop;
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
          v_age := age(p_at at time zone 'UTC', v_sub.starts at time zone 'UTC');
          v_n := greatest(0, (extract(year from v_age) * 12 + extract(month from v_age))::integer / v_step - 1);
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

    -- Nobody else opens periods of a workspace, or moves their edges, until this transaction ends. The row is written, so that whoever has an
    -- older snapshot for all of his transaction (REPEATABLE READ) is told (40001).
    create function agentd.hold_usage_periods(p_workspace_id uuid) returns void
    language sql volatile set search_path = pg_catalog, pg_temp as $$
      insert into agentd.usage_period_locks as l (workspace_id)
      select w.id from public.workspaces w where w.id = p_workspace_id
      on conflict (workspace_id) do update set changes = l.changes + 1
    $$;

    -- A period with the edges that its neighbours leave it: what belongs to them already is theirs. The caller holds the workspace's periods.
    create function agentd.free_period(p_period public.workspace_usage) returns public.workspace_usage
    language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
    declare
      v_edge timestamptz;
    begin
      -- of the same month is the row itself, which an upsert is about
      select max(u.period_end) into v_edge from public.workspace_usage u
       where u.workspace_id = p_period.workspace_id and u.month <> p_period.month and u.id <> p_period.id
         and u.period_start <= p_period.period_start and u.period_end > p_period.period_start;
      p_period.period_start := greatest(p_period.period_start, v_edge);
      select min(u.period_start) into v_edge from public.workspace_usage u
       where u.workspace_id = p_period.workspace_id and u.month <> p_period.month and u.id <> p_period.id
         and u.period_start >= p_period.period_start and u.period_end > u.period_start;
      p_period.period_end := greatest(p_period.period_start, least(p_period.period_end, v_edge));
      return p_period;
    end
    $$;

    -- BEFORE INSERT OR UPDATE of a period's edges, whoever writes them. An application's row for which nothing is left is empty, and is its own.
    create function agentd.keep_periods_apart() returns trigger
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
    begin
      perform agentd.hold_usage_periods(new.workspace_id);
      return agentd.free_period(new);
    end
    $$;

    -- Makes sure that there is a row for the period that an instant lies in. One that an application has inserted, and nothing was added to,
    -- has no rolled_up_at: it is not compared with the events, and not rebuilt.
    create function agentd.open_usage_period(p_workspace_id uuid, p_at timestamptz) returns void
    language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
    declare
      v_period record;
    begin
      perform agentd.hold_usage_periods(p_workspace_id);
      -- by a snapshot of its own, which sees what the holder before has opened or cut
      select p.* into v_period from agentd.usage_period(p_workspace_id, p_at) p;
      if not found or v_period.is_there then
        return;
      end if;
      if not (v_period.period_start <= p_at and p_at < v_period.period_end) then
        raise exception 'the period of workspace % at % would be from % to %', p_workspace_id, p_at, v_period.period_start, v_period.period_end
          using errcode = 'data_exception';
      end if;
      insert into public.workspace_usage as u (workspace_id, month, period_kind, period_start, period_end, rolled_up_at)
      values (p_workspace_id, v_period.month, v_period.kind, v_period.period_start, v_period.period_end, agentd.now())
      on conflict (workspace_id, month) do update set period_end = excluded.period_end;
      -- counters of that name: of this month, which goes on, or of one that was cut away
      update public.workspace_usage_counters c set ends_at = null
       where c.workspace_id = p_workspace_id and c.month = v_period.month and c.ends_at <= p_at;
    end
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

    -- AFTER a change of what periods follow: the worker cuts the workspace's open period anew, once the change is committed. Each asks by a row of
    -- its own: who changes one thing waits for nobody who changes another.
    create function agentd.request_usage_recut() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if tg_table_name = 'workspaces' then
        insert into agentd.usage_recuts (workspace_id) values (new.id);
      elsif tg_table_name = 'pricing_plans' then
        insert into agentd.usage_recuts (workspace_id)
        select distinct s.workspace_id from public.workspace_subscriptions s where s.plan_id = new.id order by 1;
      else
        insert into agentd.usage_recuts (workspace_id)
        select new.workspace_id
         where exists (select 1 from public.pricing_plans p where p.id = new.plan_id and p.usage_period = 'subscription')
            or exists (select 1 from agentd.usage_by_second f where f.workspace_id = new.workspace_id);
      end if;
      return null;
    end
    $$;
`;

export const PERIOD_TRIGGERS = `
    -- after fill_2_period, which gives a month its edges
    create trigger fill_3_apart before insert on public.workspace_usage
      for each row execute function agentd.keep_periods_apart();
    -- Who names the columns and leaves them as they are has the row by now: he must not ask for what a rebuild takes before it.
    create trigger fill_3_apart_moved before update of workspace_id, month, period_start, period_end on public.workspace_usage
      for each row when ((new.workspace_id, new.month, new.period_start, new.period_end)
                         is distinct from (old.workspace_id, old.month, old.period_start, old.period_end))
      execute function agentd.keep_periods_apart();
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
    drop trigger fill_3_apart_moved on public.workspace_usage;
    drop trigger fill_3_apart on public.workspace_usage;
    drop function agentd.request_usage_recut();
    drop function agentd.close_usage_periods(interval, integer);
    drop function agentd.usage_booking_time(uuid, timestamptz);
    drop function agentd.open_usage_period(uuid, timestamptz);
    drop function agentd.keep_periods_apart();
    drop function agentd.free_period(public.workspace_usage);
    drop function agentd.hold_usage_periods(uuid);
    drop function agentd.usage_period(uuid, timestamptz);
    drop function agentd.natural_usage_period(uuid, timestamptz);
    drop function agentd.first_instant(timestamp, text);
`;
