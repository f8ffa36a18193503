/**
 * The roll-up of usage, in two steps that each happen wholly or not at all.
 *
 * Gathering finds the events that no earlier pass has seen and writes their sums as deltas. What it has seen is one snapshot: new is what
 * that snapshot could not see, whether it came later or was under way then. (By a rising id or a time, what commits late is missed.) It
 * reads no row of a tenant and waits for nobody.
 *
 * Folding adds the deltas of workspaces to their quarter hours, periods and counters, and deletes them, in one transaction. A workspace one of
 * whose rows is held by somebody keeps its deltas until later, and holds up nobody else.
 *
 * So at every moment: what the sums say, and the deltas, are together the events that the snapshot sees.
 */
import { MEMBER_KEY } from './usage-limits.ts';

/** When an event counts. One that was dated more than 400 days back or a day ahead counts when it was recorded. */
export const COUNTED_AT = `case when e.occurred_at > e.recorded_at + interval '24 hours' or e.occurred_at < e.recorded_at - interval '9600 hours'
                 then e.recorded_at else e.occurred_at end`;

/** Calls, and what takes rows back for them: they have moved the counter themselves. (starts_with takes five times as long as like.) */
export const IS_CALL = `(e.metric = 'conversation' and (e.idempotency_key like 'call:%' or e.idempotency_key like 'void:%'))`;

/** A quarter of an hour, or a second where a workspace's periods begin at any. (As a join it took twice as long.) */
export const DELTA_AT = `case when e.workspace_id in (select f.workspace_id from agentd.usage_by_second f) then date_trunc('second', ${COUNTED_AT})
              else date_bin(interval '15 minutes', ${COUNTED_AT}, timestamptz '2000-01-01 00:00:00+00') end`;

export const QUARTER = (at: string): string =>
  `date_bin(interval '15 minutes', ${at}, timestamptz '2000-01-01 00:00:00+00')`;

/** The columns of workspace_usage by the metric that they sum; `q` and `c` are a quantity and a cost. */
export const COLUMNS = [
  ['conversations', 'conversation', 'integer'],
  ['messages', 'message', 'integer'],
  ['tokens_used', 'tokens', 'bigint'],
  ['task_runs', 'task_run', 'integer'],
  ['tool_calls', 'tool_call', 'integer'],
] as const;

/** Sums over deltas by the columns of workspace_usage. */
export const PIVOT = (alias: string): string =>
  [
    ...COLUMNS.map(
      ([column, metric]) =>
        `coalesce(sum(${alias}.quantity) filter (where ${alias}.metric = '${metric}'), 0) as ${column}`,
    ),
    `coalesce(sum(${alias}.cost_micros), 0) as cost_micros`,
  ].join(',\n               ');

/** An integer column is full at its end rather than an error that would keep the workspace from being summed up at all. */
const added = (column: string, type: string): string =>
  type === 'integer'
    ? `${column} = least(greatest(u.${column} + s.${column}, -2147483648), 2147483647)`
    : `${column} = u.${column} + s.${column}`;

/** Whether something may still be added to a counter. A year's period has its own under the day that it began on. */
export const IS_RECENT = `c.month > (agentd.now() at time zone 'UTC')::date
               - case when c.workspace_id in (select s.workspace_id from agentd.usage_by_second s) then 400 else 70 end`;

export const ROLLUP_FUNCTIONS = `
    -- Sums up what no pass has seen, for one caller at a time; of a long backlog the oldest p_events, and the rest of their last transaction.
    -- No row: another has its turn. Call it in a REPEATABLE READ transaction of its own; what fails with 40001 is tried again.
    create function agentd.gather_usage(p_events integer default null)
    returns table (events bigint, deltas bigint, is_complete boolean, oldest_at timestamptz)
    language plpgsql volatile set search_path = pg_catalog, pg_temp set jit = off set work_mem = '64MB' as $$
    #variable_conflict use_column
    declare
      v_snapshot constant pg_snapshot := pg_current_snapshot();
      v_state    agentd.usage_rollup_state;
      v_from     xid8;
      v_to       xid8 := pg_snapshot_xmax(v_snapshot);
      v_open     xid8[];
      v_last     xid8;
      v_granted  boolean;
      v_began    constant timestamptz := clock_timestamp();
      v_events   bigint;
      v_deltas   bigint;
      v_oldest   timestamptz;
      v_complete boolean := true;
      v_server   bigint := agentd.server_identity();
    begin
      -- Otherwise each statement has a snapshot of its own, and what commits between them is counted twice.
      if current_setting('transaction_isolation') <> 'repeatable read' then
        raise exception 'gather_usage needs a REPEATABLE READ transaction' using errcode = 'invalid_transaction_state';
      end if;
      select s.* into v_state from agentd.usage_rollup_state s where s.name = 'usage' for update skip locked;
      if not found then
        return;
      end if;
      if pg_snapshot_xmax(v_state.snapshot) > v_to or v_state.server_id <> v_server then
        raise exception 'the events of usage come from another server: what is new among them can''t be told'
          using errcode = 'object_not_in_prerequisite_state', hint = 'After a restore, run: agentd usage rebuild';
      end if;
      v_from := pg_snapshot_xmax(v_state.snapshot);
      v_open := array(select o from pg_snapshot_xip(v_state.snapshot) o);
      if p_events is not null then
        select e.xid into v_last from public.usage_events e
         where e.xid >= v_from and e.xid < v_to order by e.xid offset p_events limit 1;
        if found then
          v_to := (v_last::text::numeric + 1)::text::xid8;
          v_complete := false;
        end if;
      end if;
      v_granted := exists (select 1 from agentd.usage_reservations);

      with summed as materialized (
        select n.workspace_id, n.at, n.metric, n.in_counter, count(*) as events, sum(n.quantity)::bigint as quantity,
               sum(n.cost_micros)::bigint as cost_micros, min(n.recorded_at) as oldest
          from (
            select e.workspace_id, e.metric, e.quantity, e.cost_micros, e.recorded_at, ${DELTA_AT} as at, ${inCounter()} as in_counter
              from public.usage_events e
             where e.xid >= v_from and e.xid < v_to
            union all
            select e.workspace_id, e.metric, e.quantity, e.cost_micros, e.recorded_at, ${DELTA_AT}, ${inCounter()}
              from public.usage_events e
             where e.xid = any (v_open)
          ) n
         group by n.workspace_id, n.at, n.metric, n.in_counter
      ),
      stored as (
        insert into agentd.usage_deltas (workspace_id, at, metric, in_counter, events, quantity, cost_micros)
        select s.workspace_id, s.at, s.metric, s.in_counter, s.events, s.quantity, s.cost_micros from summed s
      )
      select coalesce(sum(s.events), 0), count(*), min(s.oldest) into v_events, v_deltas, v_oldest from summed s;

      -- What was looked at in vain may be looked at again: the row is not written by every idle pass.
      if v_events > 0 or v_state.last_run_at is null or v_state.server_id is null
         or abs(extract(epoch from agentd.now() - v_state.last_run_at)) > 10 then
        update agentd.usage_rollup_state s
           set snapshot = (least(pg_snapshot_xmin(v_snapshot), v_to)::text || ':' || v_to::text || ':'
                           || array_to_string(array(select o from pg_snapshot_xip(v_snapshot) o where o < v_to order by o), ','))::pg_snapshot,
               events_rolled = s.events_rolled + v_events, last_run_at = agentd.now(), server_id = v_server,
               last_duration_ms = extract(epoch from clock_timestamp() - v_began) * 1000
         where s.name = 'usage';
      end if;
      return query select v_events, v_deltas, v_complete, v_oldest;
    end
    $$;

    -- The deltas of these workspaces into their sums. The caller holds the row 'fold' of usage_rollup_state. Returns how many deltas (by
    -- workspace, time and metric) there were.
    create function agentd.fold_usage_of(p_workspaces uuid[]) returns integer
    language plpgsql volatile set search_path = pg_catalog, pg_temp set jit = off as $$
    declare
      v_deltas agentd.usage_deltas[];
      v_booked agentd.usage_deltas[];
      v_row    record;
    begin
      with gone as (
        delete from agentd.usage_deltas d where d.workspace_id = any (p_workspaces) returning d.*
      ),
      summed as (
        select min(g.id) as id, g.workspace_id, g.at, g.metric, g.in_counter, sum(g.events)::bigint as events,
               sum(g.quantity)::bigint as quantity, sum(g.cost_micros)::bigint as cost_micros
          from gone g
          join public.workspaces w on w.id = g.workspace_id
         group by g.workspace_id, g.at, g.metric, g.in_counter
      )
      select array_agg(row(s.id, s.workspace_id, s.at, s.metric, s.in_counter, s.events, s.quantity, s.cost_micros)::agentd.usage_deltas)
        into v_deltas
        from summed s;
      if v_deltas is null then
        return 0;
      end if;

      insert into public.usage_quarter_hours as q (workspace_id, bucket, metric, events, quantity, cost_micros)
      select d.workspace_id, ${QUARTER('d.at')}, d.metric, sum(d.events), sum(d.quantity), sum(d.cost_micros)
        from unnest(v_deltas) d
       group by 1, 2, 3 order by 1, 2, 3
      on conflict (workspace_id, bucket, metric) do update
         set events = q.events + excluded.events, quantity = q.quantity + excluded.quantity, cost_micros = q.cost_micros + excluded.cost_micros;

      perform agentd.open_usage_periods(v_deltas);

      -- What came too late for its period is a correction of the open one, and written down.
      with late as (
        select d.*, agentd.usage_booking_time(d.workspace_id, agentd.now()) as booked_at
          from unnest(v_deltas) d
          join public.workspace_usage u on u.workspace_id = d.workspace_id and u.period_start <= d.at and u.period_end > d.at
         where u.closed_at is not null
      ),
      noted as (
        insert into agentd.usage_corrections (workspace_id, occurred_at, booked_at, metric, events, quantity, cost_micros)
        select l.workspace_id, l.at, l.booked_at, l.metric, l.events, l.quantity, l.cost_micros from late l
      )
      select array_agg(row(l.id, l.workspace_id, l.booked_at, l.metric, l.in_counter, l.events, l.quantity, l.cost_micros)::agentd.usage_deltas)
        into v_booked
        from late l;

      with summed as (
        select u.id, ${PIVOT('d')}
          from (select * from unnest(v_deltas) union all select * from unnest(v_booked)) d
          join public.workspace_usage u on u.workspace_id = d.workspace_id and u.period_start <= d.at and u.period_end > d.at
         where u.closed_at is null
         group by u.id
      )
      update public.workspace_usage u
         set ${COLUMNS.map(([column, , type]) => added(column, type)).join(', ')},
             cost_micros = u.cost_micros + s.cost_micros, rolled_up_at = agentd.now()
        from summed s where u.id = s.id;

      -- The months of counters are those that limits ask for; what a call or a grant has taken already is not taken again.
      insert into public.workspace_usage_counters as c (workspace_id, month, metric, used)
      select d.workspace_id, date_trunc('month', d.at at time zone z.name)::date,
             case d.metric when 'conversation' then 'conversations' when 'message' then 'messages' else 'tokens' end, sum(d.quantity)
        from unnest(v_deltas) d
        join (select w.id, agentd.valid_time_zone(w.timezone) as name from public.workspaces w
               where w.id = any (p_workspaces) offset 0) z on z.id = d.workspace_id
       where d.metric in ('conversation', 'message', 'tokens') and not d.in_counter
       group by 1, 2, 3 order by 1, 2, 3
      on conflict (workspace_id, month, metric) do update set used = c.used + excluded.used;
      return cardinality(v_deltas);
    end
    $$;

    -- A row of workspace_usage for each period that something of these falls into.
    create function agentd.open_usage_periods(p_deltas agentd.usage_deltas[]) returns void
    language plpgsql volatile set search_path = pg_catalog, pg_temp set jit = off as $$
    declare
      v_row record;
    begin
      loop
        for v_row in
          select d.workspace_id, min(d.at) as at
            from unnest(p_deltas) d
           where not exists (select 1 from public.workspace_usage u
                              where u.workspace_id = d.workspace_id and u.period_start <= d.at and u.period_end > d.at)
           group by d.workspace_id order by d.workspace_id
        loop
          perform agentd.open_usage_period(v_row.workspace_id, v_row.at);
        end loop;
        exit when not found;
      end loop;
    end
    $$;

    -- Folds the deltas of workspaces, for one caller at a time. No row: another has its turn. held says of how many somebody's rows were left for later.
    -- Raises lock_not_available where a row that is not there yet is being inserted by somebody: then ask for each of them alone.
    create function agentd.fold_usage(p_workspaces uuid[])
    returns table (folded integer, held integer)
    language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '10ms' as $$
    #variable_conflict use_column
    declare
      v_free   uuid[];
      v_folded integer := 0;
    begin
      perform 1 from agentd.usage_rollup_state s where s.name = 'fold' for update skip locked;
      if not found then
        return;
      end if;
      delete from agentd.usage_deltas d
       where d.workspace_id = any (p_workspaces) and not exists (select 1 from public.workspaces w where w.id = d.workspace_id);
      v_free := array(select w.id from public.workspaces w where w.id = any (p_workspaces) order by w.id for key share skip locked);
      with locked as materialized (
        select c.workspace_id, c.month, c.metric from public.workspace_usage_counters c
         where c.workspace_id = any (v_free) and ${IS_RECENT}
         order by 1, 2, 3 for no key update skip locked
      ),
      locked_usage as materialized (
        select u.id from public.workspace_usage u
         where u.workspace_id = any (v_free) and u.closed_at is null order by u.id for no key update skip locked
      )
      select array_agg(f.id) into v_free
        from unnest(v_free) f (id)
       where not exists (
               select 1 from public.workspace_usage_counters c
                where c.workspace_id = f.id and ${IS_RECENT}
                  and (c.workspace_id, c.month, c.metric) not in (select l.workspace_id, l.month, l.metric from locked l))
         and not exists (
               select 1 from public.workspace_usage u
                where u.workspace_id = f.id and u.closed_at is null and u.id not in (select l.id from locked_usage l));
      if v_free is not null then
        v_folded := agentd.fold_usage_of(v_free);
      end if;
      return query select v_folded,
        (select count(*)::integer from public.workspaces w where w.id = any (p_workspaces)) - coalesce(cardinality(v_free), 0);
    end
    $$;

    -- Which server this is; null where that may not be asked. A dump that is restored comes to another one.
    create function agentd.server_identity() returns bigint
    language plpgsql stable set search_path = pg_catalog, pg_temp as $$
    begin
      return (select c.system_identifier from pg_control_system() c);
    exception when insufficient_privilege or undefined_function or undefined_file then
      return null;
    end
    $$;
`;

/** Whether the counter has an event already: calls and consume_usage move it themselves. */
function inCounter(): string {
  return `case when ${IS_CALL} then true
                 when v_granted and e.metric in ('conversation', 'message', 'tokens') then exists (
                   select 1 from agentd.usage_reservations r
                    where r.workspace_id = e.workspace_id and r.reservation_key = e.idempotency_key and r.reservation_key not like '${MEMBER_KEY}%'
                      and r.metric = case e.metric when 'conversation' then 'conversations' when 'message' then 'messages' else 'tokens' end)
                 else false end`;
}

export const DROP_ROLLUP = `
    drop function agentd.fold_usage(uuid[]);
    drop function agentd.fold_usage_of(uuid[]);
    drop function agentd.open_usage_periods(agentd.usage_deltas[]);
    drop function agentd.gather_usage(integer);
    drop function agentd.server_identity();
`;
