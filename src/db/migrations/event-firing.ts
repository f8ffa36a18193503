/**
 * From events to runs.
 *
 * One daemon at a time fires; it goes through the workspaces in turn and takes a few events of each. An event is settled in a
 * transaction: its runs are inserted, the triggers and tasks that it fired are counted on, its row goes. So it fires once, whoever dies;
 * and the key of a run (task, event) holds even if an event should come twice.
 *
 * Triggers and tasks are locked before anything is decided, so that a cooldown or a limit counts exactly. Nobody is waited for: where a
 * tenant's open transaction holds one of the rows, the event waits, and with it those of his workspace alone.
 */

/** Events of one workspace in one look, and workspaces that are passed in which nothing is due. */
const OF_WORKSPACE = 50;
const PASSED = 5_000;
/** An event that could not be settled for so long is given up. */
const PATIENCE = '1 day';
/** Triggers of a workspace that hear of one event. */
const HEARING = 100;
/** A look ends after so long, and a workspace's turn in it: conditions may be made to be dear. */
const LOOK = '1 second';
const TURN = '250 milliseconds';

export const EVENT_DEFAULTS = { maxDepth: 3, maxPerMinute: 30 } as const;

export const FIRING_FUNCTIONS = `
    -- How many runs stand between a run and what no run has caused: 0 for one that a person, a schedule or an event of the world started.
    create function agentd.run_depth(p_workspace_id uuid, p_run_id uuid) returns integer
    language sql stable set search_path = pg_catalog, pg_temp as $$
      select case when r.input #>> '{event,depth}' ~ '^[0-9]{1,4}$' then (r.input #>> '{event,depth}')::integer else 0 end
        from public.task_runs r where r.id = p_run_id and r.workspace_id = p_workspace_id
    $$;

    -- A trigger that would have fired and may not: counted, and said why.
    create function agentd.suppress_trigger(p_trigger_id uuid, p_code text, p_reason text) returns void
    language sql volatile set search_path = pg_catalog, pg_temp as $$
      update public.agent_task_event_triggers t
         set suppressed_count = least(t.suppressed_count, 2147483646) + 1, last_suppressed_at = agentd.now(),
             last_suppressed_code = p_code, last_suppressed_reason = p_reason
       where t.id = p_trigger_id
    $$;

    -- Fires what hears of an event. False: rows of it are held by somebody, and nothing was done.
    create function agentd.fire_task_event(p_event agentd.task_events, out is_settled boolean, out fired integer, out suppressed integer)
    language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
    declare
      v_facts   record;
      v_now     timestamptz := agentd.now();
      v_today   date;
      v_depth   integer := 0;
      v_matches uuid[];
      v_held    integer;
      v_one     record;
      v_code    text;
      v_reason  text;
      v_limit   integer;
      v_key     text := p_event.kind || ':' || p_event.subject_id;
      v_run     record;
    begin
      is_settled := true;
      fired := 0;
      suppressed := 0;
      select * into v_facts from agentd.event_facts(p_event);
      if v_facts.types is null then
        return;
      end if;
      v_matches := array(
        select t.id
          from (
            select e.id, e.trigger_type, e.conditions, e.config, k.agent_id, a.name
              from public.agent_task_event_triggers e
              join public.agent_tasks k on k.id = e.task_id and k.workspace_id = e.workspace_id
              join public.agents a on a.id = k.agent_id
             where e.workspace_id = p_event.workspace_id and e.is_active and e.trigger_type = any (v_facts.types)
               and k.status = 'active' and (k.task_type = 'event_based' or e.trigger_type = 'manual')
               and (p_event.trigger_id is null or e.id = p_event.trigger_id)
               and (v_facts.agent_id is null or k.agent_id = v_facts.agent_id)
               -- what an agent says is no event to itself
               and (k.agent_id is distinct from v_facts.sender_agent_id or e.config -> 'allow_own' = 'true')
             order by e.created_at, e.id
             limit ${HEARING}
          ) t
         where (t.trigger_type <> 'agent_mentioned'
                or agentd.mentions_agent(v_facts.data ->> 'content', v_facts.data -> 'metadata', p_event.workspace_id, t.agent_id, t.name))
           and agentd.meets_condition(t.conditions, v_facts.data));
      if v_matches = '{}' then
        return;
      end if;
      -- all that an insert of a run or a count would wait for
      v_held := cardinality(array(
        select e.id
          from public.agent_task_event_triggers e
          join public.agent_tasks k on k.id = e.task_id
          join public.agents a on a.id = k.agent_id
          join public.workspaces w on w.id = e.workspace_id
         where e.id = any (v_matches)
         order by k.id, e.id
           for no key update of e, k skip locked for key share of a, w skip locked));
      if v_held < cardinality(v_matches) then
        is_settled := not exists (select 1 from public.agent_task_event_triggers e where e.id = any (v_matches));
        return;
      end if;
      if v_facts.run_id is not null then
        v_depth := coalesce(agentd.run_depth(p_event.workspace_id, v_facts.run_id), 0) + 1;
      elsif v_facts.sender_agent_id is not null then
        v_depth := 1;
      end if;

      for v_one in
        select e.id, e.task_id, e.trigger_type, e.name, e.config, e.cooldown_seconds, e.last_triggered_at,
               k.start_date, k.end_date, k.timezone, k.max_executions, k.total_executions, k.target_channel_id
          from public.agent_task_event_triggers e
          join public.agent_tasks k on k.id = e.task_id
         where e.id = any (v_matches) and e.is_active and k.status = 'active'
         order by e.created_at, e.id
      loop
        continue when exists (
          select 1 from public.task_runs r where r.task_id = v_one.task_id and r.event_key = v_key);
        v_code := null;
        v_today := (v_now at time zone agentd.valid_time_zone(v_one.timezone))::date;
        v_limit := case when v_one.config ->> 'max_depth' ~ '^[0-9]{1,2}$'
                        then least((v_one.config ->> 'max_depth')::integer, 10) else ${EVENT_DEFAULTS.maxDepth} end;
        if v_depth > v_limit then
          v_code := 'event_depth';
          v_reason := format('Agents answered each other %s times in a row, and config.max_depth allows %s.', v_depth, v_limit);
        elsif v_one.start_date > v_today or v_one.end_date < v_today then
          v_code := 'event_outside_dates';
          v_reason := 'The event came before the task''s start date or after its end date.';
        elsif v_one.total_executions >= v_one.max_executions then
          v_code := 'max_executions_reached';
          v_reason := format('The task has run %s times, as its max_executions says.', v_one.max_executions);
        -- one that lies ahead was set while a clock was
        elsif v_one.last_triggered_at > v_now - make_interval(secs => v_one.cooldown_seconds)
              and v_one.last_triggered_at <= v_now + interval '1 minute' then
          v_code := 'event_cooldown';
          v_reason := format('The trigger had fired less than %s seconds before.', v_one.cooldown_seconds);
        else
          v_limit := case when v_one.config ->> 'max_per_minute' ~ '^[1-9][0-9]{0,2}$'
                          then least((v_one.config ->> 'max_per_minute')::integer, 600) else ${EVENT_DEFAULTS.maxPerMinute} end;
          if (select b.runs >= v_limit from agentd.task_event_bursts b
               where b.task_id = v_one.task_id and b.minute = date_trunc('minute', v_now)) then
            v_code := 'event_burst';
            v_reason := format('Events had started the task %s times within the minute, as often as config.max_per_minute allows.', v_limit);
          end if;
        end if;

        if v_code is not null then
          suppressed := suppressed + 1;
          perform agentd.suppress_trigger(v_one.id, v_code, v_reason);
          if v_code = 'max_executions_reached' then
            update public.agent_tasks k set status = 'completed', reason_code = v_code, reason = v_reason where k.id = v_one.task_id;
          elsif v_code in ('event_depth', 'event_burst') then
            -- a row to find among the runs: one for a reason and a minute, however many there were
            insert into public.task_runs (task_id, workspace_id, trigger, status, reason_code, reason, event_key, finished_at)
            values (v_one.task_id, p_event.workspace_id, 'event', 'skipped', v_code, v_reason,
                    v_code || ':' || extract(epoch from date_trunc('minute', v_now))::bigint, v_now)
            on conflict (task_id, event_key) where event_key is not null do nothing;
          end if;
          continue;
        end if;

        insert into public.task_runs (task_id, workspace_id, trigger, event_key, input)
        values (v_one.task_id, p_event.workspace_id, 'event', v_key,
                jsonb_build_object('event', jsonb_build_object(
                  'type', v_one.trigger_type, 'trigger_id', v_one.id, 'trigger', left(v_one.name, 200),
                  'occurred_at', p_event.occurred_at, 'depth', v_depth, 'data', v_facts.data)))
        on conflict (task_id, event_key) where event_key is not null do nothing
        returning id, status into v_run;
        continue when v_run.id is null;
        fired := fired + 1;
        update public.agent_task_event_triggers e
           set trigger_count = least(e.trigger_count, 2147483646) + 1, last_triggered_at = v_now
         where e.id = v_one.id;
        insert into agentd.task_event_bursts as b (task_id, minute, runs) values (v_one.task_id, date_trunc('minute', v_now), 1)
        on conflict (task_id) do update
           set runs = case when b.minute = excluded.minute then b.runs + 1 else 1 end, minute = excluded.minute;
        continue when v_run.status = 'skipped';
        if v_one.config -> 'reply_in_channel' = 'true' and v_one.target_channel_id is null and p_event.kind = 'message' then
          update public.task_runs r
             set settings = jsonb_set(r.settings, '{target_channel_id}', v_facts.data -> 'channel_id')
           where r.id = v_run.id;
        end if;
        update public.agent_tasks k
           set total_executions = least(k.total_executions, 2147483646) + 1, last_run_at = v_now,
               status = case when k.total_executions::bigint + 1 >= k.max_executions then 'completed' else k.status end,
               reason_code = case when k.total_executions::bigint + 1 >= k.max_executions then 'max_executions_reached' else k.reason_code end,
               reason = case when k.total_executions::bigint + 1 >= k.max_executions
                             then format('The task has run %s times, as its max_executions says.', k.max_executions) else k.reason end
         where k.id = v_one.task_id;
      end loop;
    end
    $$;

    -- Settles at most p_limit events that are due. Out: events settled; runs started; triggers that might not fire; events that wait for
    -- somebody's transaction or after an error, and that were given up after ${PATIENCE}; the last error.
    create function agentd.fire_task_events(
      p_limit integer,
      out settled integer, out fired integer, out suppressed integer, out postponed integer, out lost integer, out last_error text
    )
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
    declare
      v_workspace uuid;
      v_after     uuid := gen_random_uuid();
      v_first     uuid := v_after;
      v_wrapped   boolean := false;
      v_due_at    timestamptz;
      v_now       timestamptz := agentd.now();
      v_event     agentd.task_events;
      v_outcome   record;
      v_failed    boolean;
      v_started   timestamptz := clock_timestamp();
      v_turn      timestamptz;
    begin
      settled := 0;
      fired := 0;
      suppressed := 0;
      postponed := 0;
      lost := 0;
      if not agentd.try_lock('task-events') then
        return;
      end if;
      for look in 1 .. ${PASSED} loop
        v_workspace := null;
        select e.workspace_id, e.due_at into v_workspace, v_due_at from agentd.task_events e
         where e.workspace_id > v_after order by e.workspace_id, e.due_at, e.id limit 1;
        if v_workspace is null then
          exit when v_wrapped;
          v_wrapped := true;
          v_after := '00000000-0000-0000-0000-000000000000';
          continue;
        end if;
        exit when v_wrapped and v_workspace > v_first;
        v_after := v_workspace;
        continue when v_due_at > v_now;
        v_turn := clock_timestamp();
        for v_event in
          select e.* from agentd.task_events e
           where e.workspace_id = v_workspace and e.due_at <= v_now
           order by e.due_at, e.id limit least(${OF_WORKSPACE}, p_limit - settled - postponed)
        loop
          begin
            v_failed := false;
            select * into v_outcome from agentd.fire_task_event(v_event);
          exception when others then
            v_failed := true;
            last_error := sqlstate || ' ' || sqlerrm;
          end;
          if not v_failed and v_outcome.is_settled then
            settled := settled + 1;
            fired := fired + v_outcome.fired;
            suppressed := suppressed + v_outcome.suppressed;
            delete from agentd.task_events e where e.id = v_event.id;
          elsif v_event.occurred_at < v_now - interval '${PATIENCE}' then
            lost := lost + 1;
            delete from agentd.task_events e where e.id = v_event.id;
          else
            postponed := postponed + 1;
            update agentd.task_events e
               set attempts = e.attempts + 1, due_at = v_now + least(power(2, least(e.attempts, 6)), 60) * interval '1 second'
             where e.id = v_event.id;
            -- one wait for a row is enough of one tenant
            exit when v_failed;
          end if;
          exit when clock_timestamp() - v_turn > interval '${TURN}';
        end loop;
        exit when settled + postponed >= p_limit or clock_timestamp() - v_started > interval '${LOOK}';
      end loop;
    end
    $$;
`;

export const DROP_FIRING_FUNCTIONS = `
    drop function agentd.fire_task_events(integer);
    drop function agentd.fire_task_event(agentd.task_events);
    drop function agentd.suppress_trigger(uuid, text, text);
    drop function agentd.run_depth(uuid, uuid);
`;
