/**
 * Counters of limits by the periods of usage: a month, or a period of the subscription, as the plan says.
 *
 * A renewal that comes late and begins elsewhere, a new plan or another zone cuts the open period anew. Then the counters are made again from what has a
 * time: events, and grants that have a key. A grant without one has no time of its own and stays at the beginning of the period that it was made in.
 *
 * Counters that were cut stay, each with the instant until which it counts: whoever had read the period as it was, and then waited, is not added to
 * the wrong one. So all that adds to a counter asks `ends_at is null or ends_at > at` of it, and reads the period again where that does not hold.
 */
import { incrementConversationCount } from './0020_platforms.ts';
import { NOTE_MEMBER_CALL } from './member-calls.ts';
import { changed, functionOf } from './run-sql.ts';
import { countCalls, EVENT_FUNCTIONS } from './usage-events.ts';
import { LIVE_BEFORE, LIVE_UNTIL, MEMBER_KEY } from './usage-limits.ts';
import { PERIOD_FUNCTIONS } from './usage-periods.ts';
import { REPAIR_FUNCTIONS, recutUsage } from './usage-repair.ts';
import { COUNTED_AT, IS_CALL, IS_RECENT, ROLLUP_FUNCTIONS } from './usage-rollup.ts';

const before = {
  natural_usage_period: functionOf(PERIOD_FUNCTIONS, 'natural_usage_period'),
  fold_usage_of: functionOf(ROLLUP_FUNCTIONS, 'fold_usage_of'),
  fold_usage: functionOf(ROLLUP_FUNCTIONS, 'fold_usage'),
  void_counted_rows: functionOf(EVENT_FUNCTIONS, 'void_counted_rows'),
  recut_usage: functionOf(REPAIR_FUNCTIONS, 'recut_usage'),
};
const callsBefore = countCalls(incrementConversationCount);

const replaced = (text: string): string => text.replace('create function', 'create or replace function');

const METRIC = (metric: string): string =>
  `case ${metric} when 'conversation' then 'conversations' when 'message' then 'messages' else 'tokens' end`;

const foldOf = changed(
  changed(
    before.fold_usage_of,
    'where d.workspace_id = any (p_workspaces) returning',
    'where d.workspace_id = any (p_workspaces) and d.events <> 0 returning',
  ),
  /select d\.workspace_id, date_trunc\('month', d\.at at time zone z\.name\)::date,\s+case d\.metric[\s\S]*?offset 0\) z on z\.id = d\.workspace_id\n/,
  `select d.workspace_id, u.month, ${METRIC('d.metric')}, sum(d.quantity)
        from unnest(v_deltas) d
        join public.workspace_usage u on u.workspace_id = d.workspace_id and u.period_start <= d.at and u.period_end > d.at
`,
);

/** Holds also counters that keep a limit, of whatever age, and lets them keep what holds now; a workspace alone is waited for. */
const fold = changed(
  changed(
    before.fold_usage,
    'v_folded := agentd.fold_usage_of(v_free);',
    `v_folded := agentd.fold_usage_of(v_free);
        perform agentd.keep_limits(v_free);`,
  ),
  `      with locked as materialized (`,
  `      -- One alone is waited for, as long as lock_timeout says: among many who ask for its counter, each for a moment, there is never one that is free.
      if cardinality(p_workspaces) = 1 then
        begin
          perform 1 from public.workspace_usage_counters c
            where c.workspace_id = any (v_free) and ${IS_RECENT} order by c.workspace_id, c.month, c.metric for no key update;
        exception when lock_not_available then
          return query select 0, 1;
          return;
        end;
      end if;
      with locked as materialized (`,
).replaceAll(IS_RECENT, `(${IS_RECENT} or c.limit_until is not null)`);

const recut = recutUsage({
  ended: LIVE_UNTIL,
  variables: `
      v_undated jsonb;`,
  before: `
        v_undated := agentd.undated_usage(p_workspace_id, v_from);`,
  after: `
        perform agentd.recut_counters(p_workspace_id, v_undated, v_from);`,
  // also those that the change itself has waked: before the cut there was nothing for them
  finally: `
      perform agentd.wake_for_limit(array[p_workspace_id]);`,
});

/**
 * A call of an application (service_role) is what turns a workspace to counting calls. A member's call counts, for itself and one row: if it turned the
 * workspace, one call would make all further conversations free.
 */
const calls = changed(
  changed(
    changed(
      callsBefore,
      /insert into public\.workspace_usage_counters[\s\S]*?used = c\.used \+ 1;/,
      `perform agentd.add_to_counter(p_workspace_id, agentd.now(), 'conversations', 1);`,
    ),
    `      update public.workspaces w
`,
    `      if agentd.is_service_caller() then
      update public.workspaces w
`,
  ),
  `      -- Beyond the limit too`,
  `${NOTE_MEMBER_CALL}      -- Beyond the limit too`,
).replace(/as \$\$\s+begin/, 'as $$$$\n    declare\n      v_call_id bigint;\n    begin');

export const COUNTER_PERIODS = `
    ${replaced(changed(before.natural_usage_period, LIVE_BEFORE, `${LIVE_UNTIL} > agentd.now()`))}
    ${replaced(foldOf)}
    ${replaced(fold)}

    -- Adds to the counter of the period that an instant lies in, whatever the limit says.
    create function agentd.add_to_counter(p_workspace_id uuid, p_at timestamptz, p_metric text, p_amount bigint) returns void
    language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
    declare
      v_period record;
    begin
      loop
        select p.* into v_period from agentd.usage_period(p_workspace_id, p_at) p;
        if not found then
          return;
        end if;
        if not v_period.is_there then
          perform agentd.open_usage_period(p_workspace_id, p_at);
          select p.* into v_period from agentd.usage_period(p_workspace_id, p_at) p;
        end if;
        insert into public.workspace_usage_counters as c (workspace_id, month, metric, used)
        values (p_workspace_id, v_period.month, p_metric, p_amount)
        on conflict (workspace_id, month, metric) do update set used = c.used + excluded.used
         where c.ends_at is null or c.ends_at > p_at;
        exit when found or not agentd.is_counter_cut(p_workspace_id, v_period.month, p_metric, p_at);
      end loop;
    end
    $$;

    -- Whether a counter does not count at an instant, as its period was cut after it was read: read it again. Where it is the edge that somebody has
    -- moved by hand, the counter follows.
    create function agentd.is_counter_cut(p_workspace_id uuid, p_month date, p_metric text, p_at timestamptz) returns boolean
    language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
    begin
      if not exists (select 1 from public.workspace_usage_counters c
                      where c.workspace_id = p_workspace_id and c.month = p_month and c.metric = p_metric and c.ends_at <= p_at) then
        return false;
      end if;
      update public.workspace_usage_counters c set ends_at = null
        from public.workspace_usage u
       where c.workspace_id = p_workspace_id and c.month = p_month and c.metric = p_metric and c.ends_at <= p_at
         and u.workspace_id = p_workspace_id and u.month = p_month and u.period_start <= p_at and u.period_end > p_at;
      return true;
    end
    $$;

    ${replaced(
      changed(
        before.void_counted_rows,
        /taken as \([\s\S]*?\)\s+select count\(\*\)::integer from voided/,
        `taken as materialized (
        select agentd.add_to_counter(v.workspace_id, v.occurred_at, 'conversations', -count(*)) from voided v
         group by v.workspace_id, v.occurred_at order by v.workspace_id, v.occurred_at
      )
      select coalesce(sum(t.n), 0)::integer from (select count(*) as n from voided union all select 0 * count(*) from taken) t`,
      ),
    )}

    ${calls}

    -- What counters hold that has a time, since p_since: events that are in them, and grants under a key, of which an event of that key is one.
    create function agentd.dated_usage(p_workspace_id uuid, p_since timestamptz)
    returns table (at timestamptz, metric text, amount bigint)
    language sql stable set search_path = pg_catalog, pg_temp set jit = off as $$
      select ${COUNTED_AT}, ${METRIC('e.metric')}, e.quantity
        from public.usage_events e
       where e.workspace_id = p_workspace_id and e.metric in ('conversation', 'message', 'tokens')
         and e.recorded_at >= p_since - interval '24 hours' and ${COUNTED_AT} >= p_since
         and (pg_visible_in_snapshot(e.xid, (select s.snapshot from agentd.usage_rollup_state s where s.name = 'usage'))
              or ${IS_CALL})
         and not exists (select 1 from agentd.usage_reservations r
                          where r.workspace_id = e.workspace_id and r.reservation_key = e.idempotency_key and r.reservation_key not like '${MEMBER_KEY}%'
                            and r.metric = ${METRIC('e.metric')})
      union all
      select r.created_at, r.metric, r.quantity from agentd.usage_reservations r
       where r.workspace_id = p_workspace_id and r.created_at >= p_since
    $$;

    -- The rest of the counters of the open periods that begin since p_from, each at its period's beginning: [{month, at, metric, amount}]. Holds those
    -- periods and counters; there is one of each metric from then on, so that who adds to one that was not there yet waits, too.
    create function agentd.undated_usage(p_workspace_id uuid, p_from timestamptz) returns jsonb
    language plpgsql volatile set search_path = pg_catalog, pg_temp set timezone = 'UTC' set jit = off as $$
    begin
      perform 1 from public.workspace_usage u
        where u.workspace_id = p_workspace_id and u.closed_at is null and u.period_start >= p_from order by u.id for no key update;
      insert into public.workspace_usage_counters (workspace_id, month, metric, used)
      select p_workspace_id, u.month, m, 0
        from public.workspace_usage u, unnest(array['conversations', 'messages', 'tokens']) m
       where u.workspace_id = p_workspace_id and u.closed_at is null and u.period_start >= p_from
       order by 2, 3
      on conflict do nothing;
      perform 1 from public.workspace_usage_counters c where c.workspace_id = p_workspace_id order by c.month, c.metric for update;
      return (
        with open as materialized (
          select u.month, u.period_start, u.period_end from public.workspace_usage u
           where u.workspace_id = p_workspace_id and u.closed_at is null and u.period_start >= p_from
        ),
        dated as materialized (
          select o.month, d.metric, sum(d.amount) as amount
            from agentd.dated_usage(p_workspace_id, (select min(o.period_start) from open o)) d
            join open o on o.period_start <= d.at and o.period_end > d.at
           group by 1, 2
        )
        select jsonb_agg(jsonb_build_object('month', c.month, 'at', o.period_start, 'metric', c.metric, 'amount', c.used - coalesce(d.amount, 0)))
          from public.workspace_usage_counters c
          join open o on o.month = c.month
          left join dated d on d.month = c.month and d.metric = c.metric
         where c.workspace_id = p_workspace_id);
    end
    $$;

    -- The counters of the open periods that begin since p_from anew, after those were cut. The caller holds what undated_usage holds.
    create function agentd.recut_counters(p_workspace_id uuid, p_undated jsonb, p_from timestamptz) returns void
    language plpgsql volatile set search_path = pg_catalog, pg_temp set timezone = 'UTC' set jit = off as $$
    declare
      v_since timestamptz;
      v_at    timestamptz;
    begin
      select min(s.at) into v_since
        from (select u.period_start as at from public.workspace_usage u
               where u.workspace_id = p_workspace_id and u.closed_at is null and u.period_start >= p_from
              union all
              select x.at from jsonb_to_recordset(p_undated) x (at timestamptz)) s;
      loop
        select min(s.at) into v_at
          from (select r.created_at as at from agentd.usage_reservations r where r.workspace_id = p_workspace_id and r.created_at >= v_since
                union all
                select x.at from jsonb_to_recordset(p_undated) x (at timestamptz)) s
         where not exists (select 1 from public.workspace_usage u
                            where u.workspace_id = p_workspace_id and u.period_start <= s.at and u.period_end > s.at);
        exit when v_at is null;
        perform agentd.open_usage_period(p_workspace_id, v_at);
      end loop;

      -- A counter of nothing stays where the period has gone: it keeps away who waits for it.
      insert into public.workspace_usage_counters as c (workspace_id, month, metric, used, ends_at)
      select p_workspace_id, p.month, m, coalesce(sum(s.amount), 0), coalesce(p.period_end, '-infinity')
        from (select coalesce(u.month, x.month) as month, u.period_start, u.period_end
                from (select w.month, w.period_start, w.period_end from public.workspace_usage w
                       where w.workspace_id = p_workspace_id and w.closed_at is null and w.period_start >= p_from) u
                full join (select distinct x.month from jsonb_to_recordset(p_undated) x (month date)) x on x.month = u.month) p
       cross join unnest(array['conversations', 'messages', 'tokens']) m
        left join (select d.at, d.metric, d.amount from agentd.dated_usage(p_workspace_id, v_since) d
                   union all
                   select x.at, x.metric, x.amount from jsonb_to_recordset(p_undated) x (at timestamptz, metric text, amount bigint)) s
          on s.metric = m and s.at >= p.period_start and s.at < p.period_end
       group by p.month, p.period_end, m
       order by p.month, m
      on conflict (workspace_id, month, metric) do update set used = excluded.used, ends_at = excluded.ends_at, limit_until = null;
      update agentd.usage_reservations r set month = u.month
        from public.workspace_usage u
       where r.workspace_id = p_workspace_id and r.created_at >= v_since and u.workspace_id = p_workspace_id
         and u.period_start <= r.created_at and u.period_end > r.created_at and u.month <> r.month;

      -- A warning goes with the usage that it warned of, or the same would be warned of again. One whose usage is elsewhere now stays.
      update public.usage_warnings w set month = n.month
        from (select distinct on (u.month, o.metric, o.threshold, o.max_amount) o.id, u.month
                from public.usage_warnings o
                join public.workspace_usage u on u.workspace_id = o.workspace_id and u.closed_at is null and u.period_start >= p_from
                 and u.period_start <= o.created_at and u.period_end > o.created_at and u.month <> o.month
                join public.workspace_usage_counters c on c.workspace_id = o.workspace_id and c.month = u.month and c.metric = o.metric
                 and c.used >= o.max_amount - case o.threshold when 80 then o.max_amount / 5 else 0 end
               where o.workspace_id = p_workspace_id
                 and not exists (select 1 from public.usage_warnings t
                                  where t.workspace_id = o.workspace_id and t.month = u.month and t.metric = o.metric
                                    and t.threshold = o.threshold and t.max_amount = o.max_amount)
               order by u.month, o.metric, o.threshold, o.max_amount, o.created_at, o.id) n
       where w.id = n.id;
    end
    $$;

    ${replaced(recut)}
`;

export const DROP_COUNTER_PERIODS = `
    ${Object.values(before).map(replaced).join('\n')}
    ${callsBefore}
    drop function agentd.recut_counters(uuid, jsonb, timestamptz);
    drop function agentd.undated_usage(uuid, timestamptz);
    drop function agentd.add_to_counter(uuid, timestamptz, text, bigint);
    drop function agentd.is_counter_cut(uuid, date, text, timestamptz);
    drop function agentd.dated_usage(uuid, timestamptz);
`;
