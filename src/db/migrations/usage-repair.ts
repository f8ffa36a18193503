/** What keeps the sums of usage true: a plain recomputation from the events beside them, and a workspace's sums made anew from it. */
import { COLUMNS, DELTA_AT, PIVOT, QUARTER } from './usage-rollup.ts';

/** Sums over events `e` that the roll-up has seen (`v.snapshot`), as deltas. */
const SEEN = (condition: string): string => `
          select e.workspace_id, ${DELTA_AT} as at, e.metric, count(*) as events, sum(e.quantity)::bigint as quantity,
                 sum(e.cost_micros)::bigint as cost_micros
            from public.usage_events e
           where ${condition} and pg_visible_in_snapshot(e.xid, (select s.snapshot from agentd.usage_rollup_state s where s.name = 'usage'))
           group by 1, 2, 3`;

/** Rows `a` and `b` of workspace_usage that overlap, `a` the one that began first. An empty one overlaps nothing. */
const OVERLAP = `b.workspace_id = a.workspace_id and (a.period_start, a.id) < (b.period_start, b.id)
           and b.period_start < a.period_end and b.period_end > b.period_start`;

/** The sums of a period as rows of metric and quantity. */
const UNPIVOT = (alias: string): string =>
  `(values ${[...COLUMNS.map(([column, metric]) => `('${metric}', ${alias}.${column}::numeric)`), `('cost_micros', ${alias}.cost_micros::numeric)`].join(', ')})`;

/**
 * The function that cuts periods anew. Where `before` and `after` are given, they are what else is done when something is cut (from `v_from` on), and
 * `finally` what is done in any case.
 *
 * @param parts.ended when a subscription `s` of a plan `p` ended by time, where it did
 */
export function recutUsage(parts: {
  readonly ended: string;
  readonly variables?: string;
  readonly before?: string;
  readonly after?: string;
  readonly finally?: string;
}): string {
  return `
    -- Lets a workspace's periods follow its zone and its plan again, after either was changed: a subscription's period begins when it says, also
    -- in the middle of a month, and ends with it; a month of another zone ends at that zone's midnight. What was closed stands.
    create function agentd.recut_usage(p_workspace_id uuid) returns void
    language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
    declare
      v_now    timestamptz := agentd.now();
      v_period record;
      v_end    timestamptz;
      v_from   timestamptz;${parts.variables ?? ''}
    begin
      update agentd.usage_rollup_state s set rebuilds = s.rebuilds + 1 where s.name in ('usage', 'fold');
      perform agentd.hold_usage_periods(p_workspace_id);
      perform agentd.fold_usage_of(array[p_workspace_id]);
      select * into v_period from agentd.natural_usage_period(p_workspace_id, v_now);
      if not found then
        return;
      end if;
      if v_period.kind = 'subscription' then
        insert into agentd.usage_by_second (workspace_id) values (p_workspace_id) on conflict do nothing;
        select min(u.period_start) into v_from from public.workspace_usage u
         where u.workspace_id = p_workspace_id and u.closed_at is null
           and (u.rolled_up_at is not null and u.period_start >= v_period.period_start
                and (u.period_kind, u.period_start, u.period_end) is distinct from ('subscription', v_period.period_start, v_period.period_end)
                or u.period_start < v_period.period_start and u.period_end > v_period.period_start);
      else
        -- when the subscription ended that is followed no more: by time, or when somebody changed it
        select coalesce(
                 (select case when isfinite(${parts.ended}) and ${parts.ended} <= v_now then ${parts.ended} end
                    from public.workspace_subscriptions s join public.pricing_plans p on p.id = s.plan_id
                   where s.workspace_id = p_workspace_id order by s.created_at desc limit 1),
                 (select least(max(r.requested_at), v_now) from agentd.usage_recuts r where r.workspace_id = p_workspace_id),
                 v_now)
          into v_end;
        v_end := date_trunc('second', v_end);
        select min(u.period_start) into v_from from public.workspace_usage u
         where u.workspace_id = p_workspace_id and u.closed_at is null
           and (u.rolled_up_at is not null and u.period_start > v_now
                or u.period_start <= v_now and u.period_end > v_now
                   and (u.period_kind = 'subscription' or u.month = v_period.month and u.period_end <> v_period.period_end));
      end if;
      if v_from is not null then
        -- a period that is made anew may begin in the gap before
        select coalesce(max(u.period_end), '-infinity') into v_from from public.workspace_usage u
         where u.workspace_id = p_workspace_id and u.period_end <= v_from;${parts.before ?? ''}
        if v_period.kind = 'subscription' then
          delete from public.workspace_usage u
           where u.workspace_id = p_workspace_id and u.closed_at is null and u.rolled_up_at is not null and u.period_start >= v_period.period_start
             and (u.period_kind, u.period_start, u.period_end) is distinct from ('subscription', v_period.period_start, v_period.period_end);
          update public.workspace_usage u set period_end = v_period.period_start
           where u.workspace_id = p_workspace_id and u.closed_at is null
             and u.period_start < v_period.period_start and u.period_end > v_period.period_start;
        else
          delete from public.workspace_usage u
           where u.workspace_id = p_workspace_id and u.closed_at is null and u.rolled_up_at is not null
             and (u.period_start > v_now or u.period_kind = 'subscription' and u.period_end > v_now and u.period_start >= v_end);
          update public.workspace_usage u
             set period_end = case u.period_kind when 'subscription' then greatest(v_end, u.period_start) else v_period.period_end end
           where u.workspace_id = p_workspace_id and u.closed_at is null and u.period_start <= v_now and u.period_end > v_now
             and (u.period_kind = 'subscription' or u.month = v_period.month and u.period_end <> v_period.period_end);
        end if;
        perform agentd.rebuild_usage(p_workspace_id, v_from);${parts.after ?? ''}
      end if;${parts.finally ?? ''}
    end
    $$;`;
}

export const REPAIR_FUNCTIONS = `
    -- From when the events are all there: months of theirs may have been dropped. A day later than the first month left, as an event
    -- may have been recorded up to a day before it is said to have happened.
    create function agentd.usage_complete_since() returns timestamptz
    language sql stable set search_path = pg_catalog, pg_temp as $$
      select case when bool_or(c.relname like '%\\_past') then '-infinity'::timestamptz
                  else (min(case when right(c.relname, 7) ~ '^[0-9]{4}_[0-9]{2}$' then to_date(right(c.relname, 7), 'YYYY_MM') end)::timestamp
                         + interval '1 day') at time zone 'UTC' end
        from pg_catalog.pg_inherits i
        join pg_catalog.pg_class c on c.oid = i.inhrelid
       where i.inhparent = 'public.usage_events'::regclass
    $$;

    -- Where the sums of a workspace (null: of all) differ from a recomputation from the events: a quarter of an hour (at is its
    -- beginning) or a period. It takes no lock, and is exact beside writers and roll-ups. Quantities of quarter hours; of periods also
    -- the metric cost_micros. And where two periods overlap (at is the beginning of what both have), which no recomputation would tell.
    create function agentd.usage_drift(p_workspace_id uuid default null)
    returns table (workspace_id uuid, level text, at timestamptz, metric text, expected numeric, found numeric)
    language sql stable set search_path = pg_catalog, pg_temp set jit = off as $$
      with since as materialized (
        select agentd.usage_complete_since() as at
      ),
      raw as materialized (${SEEN('(p_workspace_id is null or e.workspace_id = p_workspace_id)')}
      ),
      pending as materialized (
        select d.workspace_id, d.at, d.metric, d.events, d.quantity, d.cost_micros from agentd.usage_deltas d
         where p_workspace_id is null or d.workspace_id = p_workspace_id
      ),
      quarter as (
        select s.workspace_id, s.bucket, s.metric, sum(s.expected) as expected, sum(s.found) as found,
               sum(s.expected_cost) as expected_cost, sum(s.found_cost) as found_cost
          from (
            select r.workspace_id, ${QUARTER('r.at')} as bucket, r.metric, r.quantity as expected, 0 as found, r.cost_micros as expected_cost, 0 as found_cost
              from raw r
            union all
            select p.workspace_id, ${QUARTER('p.at')}, p.metric, 0, p.quantity, 0, p.cost_micros from pending p
            union all
            select q.workspace_id, q.bucket, q.metric, 0, q.quantity, 0, q.cost_micros from public.usage_quarter_hours q
             where p_workspace_id is null or q.workspace_id = p_workspace_id
          ) s
         group by 1, 2, 3
      ),
      moved as (
        -- pending for an open period is still to be added; what is pending for a closed one will be a correction
        select r.workspace_id, r.at, r.metric, r.quantity, r.cost_micros from raw r
        union all
        select p.workspace_id, p.at, p.metric, -p.quantity, -p.cost_micros from pending p
        union all
        select c.workspace_id, c.occurred_at, c.metric, -c.quantity, -c.cost_micros from agentd.usage_corrections c
         where p_workspace_id is null or c.workspace_id = p_workspace_id
        union all
        select c.workspace_id, c.booked_at, c.metric, c.quantity, c.cost_micros from agentd.usage_corrections c
         where p_workspace_id is null or c.workspace_id = p_workspace_id
      ),
      period as (
        select u.id, ${PIVOT('m')}
          from public.workspace_usage u
          left join moved m on m.workspace_id = u.workspace_id and m.at >= u.period_start and m.at < u.period_end
         where p_workspace_id is null or u.workspace_id = p_workspace_id
         group by u.id
      )
      select q.workspace_id, 'quarter_hour', q.bucket, q.metric, q.expected, q.found
        from quarter q join public.workspaces w on w.id = q.workspace_id, since
       where q.bucket >= since.at and (q.expected <> q.found or q.expected_cost <> q.found_cost)
      union all
      select u.workspace_id, 'period', u.period_start, e.metric, e.amount, f.amount
        from period p
        join public.workspace_usage u on u.id = p.id
       cross join lateral ${UNPIVOT('p')} e (metric, amount)
        join lateral ${UNPIVOT('u')} f (metric, amount) on f.metric = e.metric
       cross join since
       where u.period_start >= since.at and u.rolled_up_at is not null and e.amount <> f.amount
      union all
      select a.workspace_id, 'overlap', b.period_start, 'periods', 1, 2
        from public.workspace_usage a
        join public.workspace_usage b on ${OVERLAP}
       where p_workspace_id is null or a.workspace_id = p_workspace_id
       order by 1, 2, 3, 4
    $$;

    -- A workspace's sums anew from its events, as far as those are there. A period that is closed stays as it is; what differs in it becomes
    -- a correction of the open one. Waits for a pass of the roll-up that is under way (lock_not_available: again later). With p_from, the beginning
    -- of a period or of a gap, only the sums of open periods from then on, by the events from then on.
    create function agentd.rebuild_usage(p_workspace_id uuid, p_from timestamptz default '-infinity') returns void
    language plpgsql volatile set search_path = pg_catalog, pg_temp set jit = off as $$
    declare
      v_since timestamptz := greatest(agentd.usage_complete_since(), p_from);
      v_sums  agentd.usage_deltas[];
      v_id    uuid;
    begin
      -- Written, not only locked: a pass that began before must not add what it knows.
      update agentd.usage_rollup_state s set rebuilds = s.rebuilds + 1 where s.name in ('usage', 'fold');
      perform 1 from public.workspaces w where w.id = p_workspace_id for key share;
      if not found then
        return;
      end if;
      perform agentd.hold_usage_periods(p_workspace_id);
      perform agentd.fold_usage_of(array[p_workspace_id]);
      -- What is counted from an instant on was recorded at most a day before it (a quarter of an hour more where it is summed up by those).
      select array_agg(row(0, r.workspace_id, r.at, r.metric, false, r.events, r.quantity, r.cost_micros)::agentd.usage_deltas) into v_sums
        from (${SEEN("e.workspace_id = p_workspace_id and e.recorded_at >= p_from - interval '25 hours'")}) r
       where r.at >= p_from;

      if p_from = '-infinity' then
        delete from public.usage_quarter_hours q where q.workspace_id = p_workspace_id and q.bucket >= v_since;
        insert into public.usage_quarter_hours (workspace_id, bucket, metric, events, quantity, cost_micros)
        select s.workspace_id, ${QUARTER('s.at')}, s.metric, sum(s.events), sum(s.quantity), sum(s.cost_micros)
          from unnest(v_sums) s where ${QUARTER('s.at')} >= v_since
         group by 1, 2, 3;
        -- periods that overlap, however that came
        for v_id in
          select o.id from public.workspace_usage o
           where o.workspace_id = p_workspace_id and o.closed_at is null
             and exists (select 1 from public.workspace_usage a join public.workspace_usage b on ${OVERLAP} where o.id in (a.id, b.id))
           order by o.period_start, o.id
        loop
          update public.workspace_usage u
             set (period_start, period_end) = (select f.period_start, f.period_end from agentd.free_period(u) f)
           where u.id = v_id;
        end loop;
      end if;

      -- what was booked keeps its place, too, where the row of its period has gone
      perform agentd.open_usage_periods(v_sums || array(
        select row(0, c.workspace_id, c.booked_at, c.metric, false, 0, 0, 0)::agentd.usage_deltas
          from agentd.usage_corrections c where c.workspace_id = p_workspace_id));
      if p_from = '-infinity' then
        insert into agentd.usage_corrections (workspace_id, occurred_at, booked_at, metric, events, quantity, cost_micros)
        select p_workspace_id, d.at, agentd.usage_booking_time(p_workspace_id, agentd.now()),
               case d.metric when 'cost_micros' then 'correction' else d.metric end, 1,
               case d.metric when 'cost_micros' then 0 else (d.expected - d.found)::bigint end,
               case d.metric when 'cost_micros' then (d.expected - d.found)::bigint else 0 end
          from agentd.usage_drift(p_workspace_id) d
          join public.workspace_usage u on u.workspace_id = p_workspace_id and u.period_start = d.at
         where d.level = 'period' and u.closed_at is not null;
      end if;

      with moved as (
        select s.at, s.metric, s.quantity, s.cost_micros from unnest(v_sums) s
        union all
        select c.occurred_at, c.metric, -c.quantity, -c.cost_micros from agentd.usage_corrections c where c.workspace_id = p_workspace_id
        union all
        select c.booked_at, c.metric, c.quantity, c.cost_micros from agentd.usage_corrections c where c.workspace_id = p_workspace_id
      ),
      period as (
        select u.id, ${PIVOT('m')}
          from public.workspace_usage u
          left join moved m on m.at >= u.period_start and m.at < u.period_end
         where u.workspace_id = p_workspace_id and u.closed_at is null and u.rolled_up_at is not null and u.period_start >= v_since
         group by u.id
      )
      update public.workspace_usage u
         set ${COLUMNS.map(([column, , type]) => `${column} = ${type === 'integer' ? `least(greatest(p.${column}, -2147483648), 2147483647)` : `p.${column}`}`).join(', ')},
             cost_micros = p.cost_micros, rolled_up_at = agentd.now()
        from period p where u.id = p.id;
    end
    $$;

    ${recutUsage({ ended: 's.end_date' })}

    -- Answers what was asked for a workspace. False: a pass of the roll-up is under way, and nothing was done. Raises lock_not_available where somebody holds
    -- what is to be cut: again later.
    create function agentd.recut_requested_usage(p_workspace_id uuid) returns boolean
    language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' as $$
    declare
      v_ids  bigint[] := array(select r.id from agentd.usage_recuts r where r.workspace_id = p_workspace_id);
      v_free integer;
    begin
      perform 1 from agentd.usage_rollup_state s where s.name in ('usage', 'fold') order by s.name for update skip locked;
      get diagnostics v_free = row_count;
      if v_free < 2 then
        return false;
      end if;
      perform agentd.recut_usage(p_workspace_id);
      delete from agentd.usage_recuts r where r.id = any (v_ids);
      return true;
    end
    $$;

    -- After a restore: the transactions of the events are those of another server. What its last pass had seen counts as seen. What came since, while
    -- nothing was summed up, is new: it gets this transaction, which no pass has seen, and the next pass adds it to sums and counters. False: this is the
    -- server that they were summed up on, and nothing was done. It wants a transaction of its own.
    create function agentd.adopt_restored_usage() returns boolean
    language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
    declare
      v_is_own   constant boolean := pg_current_xact_id_if_assigned() is null;
      -- before this transaction has an id: what commits from now on is new to the next pass
      v_snapshot constant pg_snapshot := pg_current_snapshot();
      v_state    agentd.usage_rollup_state;
      v_seen     timestamptz;
    begin
      select s.* into v_state from agentd.usage_rollup_state s where s.name = 'usage' for update;
      perform 1 from agentd.usage_rollup_state s where s.name = 'fold' for update;
      if pg_snapshot_xmax(v_state.snapshot) <= pg_snapshot_xmax(pg_current_snapshot())
         and v_state.server_id is not distinct from coalesce(agentd.server_identity(), v_state.server_id) then
        return false;
      end if;
      if not v_is_own then
        raise exception 'adopt_restored_usage needs a transaction of its own' using errcode = 'invalid_transaction_state';
      end if;
      -- An event may have begun in the moment of the pass that saw it; a restore takes longer than that.
      v_seen := coalesce(v_state.last_run_at, '-infinity') + interval '1 second';
      -- 3 is the first transaction of every server.
      update public.usage_events e
         set xid = case when e.recorded_at > v_seen or not pg_visible_in_snapshot(e.xid, v_state.snapshot) then pg_current_xact_id() else '3' end
       where e.xid <> '3' and (e.xid >= pg_snapshot_xmin(v_snapshot) or e.recorded_at > v_seen or not pg_visible_in_snapshot(e.xid, v_state.snapshot));
      update agentd.usage_rollup_state s
         set snapshot = v_snapshot, server_id = agentd.server_identity(), rebuilds = s.rebuilds + 1
       where s.name = 'usage';
      return true;
    end
    $$;
`;

export const DROP_REPAIR = `
    drop function agentd.adopt_restored_usage();
    drop function agentd.recut_requested_usage(uuid);
    drop function agentd.recut_usage(uuid);
    drop function agentd.rebuild_usage(uuid, timestamptz);
    drop function agentd.usage_drift(uuid);
    drop function agentd.usage_complete_since();
`;
