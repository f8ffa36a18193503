/** Months of tables by month that have had their time, taken away in a way that gives way to writers. */

export const RETIRE_PARTITIONS = `
    -- From when the events of usage are all there. A day after the months that were retired, as an event may have been recorded up to
    -- a day before it is said to have happened.
    create or replace function agentd.usage_complete_since() returns timestamptz
    language sql stable set search_path = pg_catalog, pg_temp as $$
      select coalesce((select r.retired_before + interval '1 day' from agentd.retired_partitions r where r.parent = 'public.usage_events'),
                      '-infinity'::timestamptz)
    $$;

    -- Drops the months of a table by month that ended before p_keep months ago, the oldest first and at most p_most of them, and what was recorded
    -- before them. The partition of the past then reaches as far as the first month that is left, so that no row is without a place.
    -- Returns the names of the months that are gone, their bytes, and why the next one was not: null, or 'busy', 'not_summed_up'.
    --
    -- It waits for the table 50 ms at most: so long writers may queue behind it; then it gives up, and is called again. Detaching
    -- CONCURRENTLY would wait without holding anybody up, but only as the owner outside of a function, and a process that dies between its two
    -- halves leaves a partition that has to be finished by hand.
    create function agentd.retire_partitions(p_parent regclass, p_keep integer, p_most integer default 3)
    returns table (retired text[], bytes bigint, left_because text)
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' as $$
    declare
      v_parent    text;
      v_path      text;
      v_past      regclass;
      v_limit     timestamp := date_trunc('month', agentd.now() at time zone 'UTC') - make_interval(months => greatest(p_keep, 1));
      v_month     record;
      v_before    timestamp;
      v_snapshot  pg_snapshot;
      v_new       boolean;
    begin
      retired := '{}';
      bytes := 0;
      left_because := null;
      select c.relname, n.nspname || '.' || c.relname into v_parent, v_path
        from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
       where c.oid = p_parent and c.relkind = 'p';
      if v_path is null or v_path not in ('public.usage_events', 'agentd.job_runs') then
        raise exception '% is no table by month of agentd''s', p_parent using errcode = 'wrong_object_type';
      end if;
      v_past := to_regclass(format('agentd.%I', 'p_' || v_parent || '_past'));
      if not agentd.try_lock('partitions') then
        left_because := 'busy';
        return next;
        return;
      end if;
      for v_month in
        select c.oid::regclass as part, c.relname::text as name, to_date(right(c.relname, 7), 'YYYY_MM')::timestamp as begins
          from pg_catalog.pg_inherits i
          join pg_catalog.pg_class c on c.oid = i.inhrelid
         where i.inhparent = p_parent and c.relname ~ '_[0-9]{4}_[0-9]{2}$'
           -- the month that is written to now is never one of them, whatever p_keep says
           and to_date(right(c.relname, 7), 'YYYY_MM')::timestamp + interval '1 month' <= v_limit
         order by 3
         limit p_most
      loop
        begin
          -- whoever reads or writes the table now has finished within the time, or has the right of way
          execute format('lock table %s in access exclusive mode', p_parent);
          if v_path = 'public.usage_events' then
            -- after a restore transactions are those of another server, and say nothing
            select s.snapshot into v_snapshot from agentd.usage_rollup_state s
             where s.name = 'usage' and coalesce(s.server_id = agentd.server_identity(), true);
            if v_snapshot is null or pg_snapshot_xmax(v_snapshot) > pg_snapshot_xmax(pg_current_snapshot()) then
              left_because := 'not_summed_up';
            else
              execute format('select exists (select 1 from %s e where e.xid >= pg_snapshot_xmin($1) and not pg_visible_in_snapshot(e.xid, $1))%s', v_month.part,
                             case when v_past is null then '' else format(' or exists (select 1 from %s e where e.xid >= pg_snapshot_xmin($1) and not pg_visible_in_snapshot(e.xid, $1))', v_past) end)
                 into v_new using v_snapshot;
              if v_new then
                left_because := 'not_summed_up';
              end if;
            end if;
            exit when left_because is not null;
          end if;
          v_before := v_month.begins + interval '1 month';
          insert into agentd.retired_partitions as r (parent, retired_before) values (v_path, v_before at time zone 'UTC')
            on conflict (parent) do update set retired_before = greatest(r.retired_before, excluded.retired_before), updated_at = agentd.now();
          bytes := bytes + pg_total_relation_size(v_month.part);
          execute format('alter table %s detach partition %s', p_parent, v_month.part);
          execute format('drop table %s', v_month.part);
          if v_past is not null then
            execute format('alter table %s detach partition %s', p_parent, v_past);
            execute format('truncate %s', v_past);
            execute format('alter table %s attach partition %s for values from (minvalue) to (%L)', p_parent, v_past,
                           to_char(v_before, 'YYYY-MM-DD') || ' 00:00:00+00');
          end if;
          retired := retired || v_month.name;
        exception when lock_not_available then
          left_because := 'busy';
          exit;
        end;
      end loop;
      return next;
    end
    $$;
`;

export const DROP_RETIRING = `
    drop function agentd.retire_partitions(regclass, integer, integer);
`;
