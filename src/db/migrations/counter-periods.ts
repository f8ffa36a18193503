/**
 * Counters of limits by the periods of usage: a month, or a period of the subscription, as the plan says.
 *
 * A renewal that comes late and begins elsewhere, a new plan or another zone cuts the open period anew. Then the counters are made again from what has a
 * time: events, and grants that have a key. A grant without one has no time of its own and stays at the beginning of the period that it was made in.
 */
import { incrementConversationCount } from './0020_platforms.ts';
import { NOTE_MEMBER_CALL } from './member-calls.ts';
import { changed, functionOf } from './run-sql.ts';
import { countCalls, EVENT_FUNCTIONS } from './usage-events.ts';
import { LIVE_BEFORE, LIVE_UNTIL } from './usage-limits.ts';
import { PERIOD_FUNCTIONS } from './usage-periods.ts';
import { REPAIR_FUNCTIONS } from './usage-repair.ts';
import { COUNTED_AT, IS_CALL, ROLLUP_FUNCTIONS } from './usage-rollup.ts';

const before = {
  natural_usage_period: functionOf(PERIOD_FUNCTIONS, 'natural_usage_period'),
  fold_usage_of: functionOf(ROLLUP_FUNCTIONS, 'fold_usage_of'),
  fold_usage: functionOf(ROLLUP_FUNCTIONS, 'fold_usage'),
  void_counted_rows: functionOf(EVENT_FUNCTIONS, 'void_counted_rows'),
  recut_usage: functionOf(REPAIR_FUNCTIONS, 'recut_usage'),
  recut_requested_usage: functionOf(REPAIR_FUNCTIONS, 'recut_requested_usage'),
};
const callsBefore = countCalls(incrementConversationCount);

const replaced = (text: string): string => text.replace('create function', 'create or replace function');

const METRIC = (metric: string): string =>
  `case ${metric} when 'conversation' then 'conversations' when 'message' then 'messages' else 'tokens' end`;

/** A year's period has its counter under the day that it began on. */
const fold = changed(
  before.fold_usage,
  /c\.month > \(agentd\.now\(\) - interval '70 days'\)::date/g,
  `c.month > (agentd.now() - case when exists (select 1 from agentd.usage_by_second s where s.workspace_id = c.workspace_id)
                                         then interval '400 days' else interval '70 days' end)::date`,
);

const foldOf = changed(
  before.fold_usage_of,
  /select d\.workspace_id, date_trunc\('month', d\.at at time zone z\.name\)::date,\s+case d\.metric[\s\S]*?offset 0\) z on z\.id = d\.workspace_id\n/,
  `select d.workspace_id, u.month, ${METRIC('d.metric')}, sum(d.quantity)
        from unnest(v_deltas) d
        join public.workspace_usage u on u.workspace_id = d.workspace_id and u.period_start <= d.at and u.period_end > d.at
`,
);

const recut = changed(
  changed(
    changed(
      before.recut_usage,
      `      v_changed boolean := false;
`,
      `      v_changed boolean := false;
      v_undated jsonb;
`,
    ),
    `      select * into v_period from agentd.natural_usage_period(`,
    `      perform 1 from public.workspace_usage_counters c where c.workspace_id = p_workspace_id order by c.month, c.metric for update;
      v_undated := agentd.undated_usage(p_workspace_id);
      select * into v_period from agentd.natural_usage_period(`,
  ),
  `        perform agentd.rebuild_usage(p_workspace_id);
`,
  `        perform agentd.rebuild_usage(p_workspace_id);
        perform agentd.recut_counters(p_workspace_id, v_undated);
`,
);

/**
 * A call of an application (service_role) is what turns a workspace to counting calls. A member's call counts, for itself and one row: if it turned the
 * workspace, one call would make all further conversations free.
 */
const calls = changed(
  changed(
    changed(callsBefore, 'from agentd.month_bounds(', 'from agentd.usage_period('),
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
    ${replaced(changed(before.void_counted_rows, 'lateral agentd.month_bounds(', 'lateral agentd.usage_period('))}
    ${calls}

    -- What counters hold that has a time, since p_since: events that are in them, and grants under a key, of which an event of that key is one.
    create function agentd.dated_usage(p_workspace_id uuid, p_since timestamptz)
    returns table (at timestamptz, metric text, amount bigint)
    language sql stable set search_path = pg_catalog, pg_temp set jit = off as $$
      select ${COUNTED_AT}, ${METRIC('e.metric')}, e.quantity
        from public.usage_events e
       where e.workspace_id = p_workspace_id and e.metric in ('conversation', 'message', 'tokens') and ${COUNTED_AT} >= p_since
         and (pg_visible_in_snapshot(e.xid, (select s.snapshot from agentd.usage_rollup_state s where s.name = 'usage'))
              or ${IS_CALL})
         and not exists (select 1 from agentd.usage_reservations r
                          where r.workspace_id = e.workspace_id and r.reservation_key = e.idempotency_key and r.metric = ${METRIC('e.metric')})
      union all
      select r.created_at, r.metric, r.quantity from agentd.usage_reservations r
       where r.workspace_id = p_workspace_id and r.created_at >= p_since
    $$;

    -- The rest of the counters of open periods, each at its period's beginning: [{month, at, metric, amount}].
    create function agentd.undated_usage(p_workspace_id uuid) returns jsonb
    language sql stable set search_path = pg_catalog, pg_temp set jit = off as $$
      with open as materialized (
        select u.month, u.period_start, u.period_end from public.workspace_usage u
         where u.workspace_id = p_workspace_id and u.closed_at is null
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
       where c.workspace_id = p_workspace_id
    $$;

    -- The counters of open periods anew, after those were cut. The caller holds the counters.
    create function agentd.recut_counters(p_workspace_id uuid, p_undated jsonb) returns void
    language plpgsql volatile set search_path = pg_catalog, pg_temp set jit = off as $$
    declare
      v_since timestamptz;
      v_at    timestamptz;
    begin
      select min(s.at) into v_since
        from (select u.period_start as at from public.workspace_usage u where u.workspace_id = p_workspace_id and u.closed_at is null
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

      delete from public.workspace_usage_counters c
       where c.workspace_id = p_workspace_id
         and c.month in (select x.month from jsonb_to_recordset(p_undated) x (month date)
                         union all
                         select u.month from public.workspace_usage u where u.workspace_id = p_workspace_id and u.closed_at is null);
      insert into public.workspace_usage_counters as c (workspace_id, month, metric, used)
      select p_workspace_id, u.month, s.metric, sum(s.amount)
        from (select d.at, d.metric, d.amount from agentd.dated_usage(p_workspace_id, v_since) d
              union all
              select x.at, x.metric, x.amount from jsonb_to_recordset(p_undated) x (at timestamptz, metric text, amount bigint)) s
        join public.workspace_usage u on u.workspace_id = p_workspace_id and u.period_start <= s.at and u.period_end > s.at and u.closed_at is null
       group by u.month, s.metric
       order by u.month, s.metric
      on conflict (workspace_id, month, metric) do update set used = excluded.used;
      update agentd.usage_reservations r set month = u.month
        from public.workspace_usage u
       where r.workspace_id = p_workspace_id and r.created_at >= v_since and u.workspace_id = p_workspace_id
         and u.period_start <= r.created_at and u.period_end > r.created_at and u.month <> r.month;
    end
    $$;

    ${replaced(recut)}

    -- Answers the requests of up to p_limit workspaces. One whose rows somebody holds goes to the end of the line. Returns how many were answered.
    create or replace function agentd.recut_requested_usage(p_limit integer) returns integer
    language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' as $$
    declare
      v_ids  uuid[];
      v_id   uuid;
      v_done uuid[] := '{}';
    begin
      v_ids := array(select r.workspace_id from agentd.usage_recuts r order by r.requested_at limit p_limit for update skip locked);
      foreach v_id in array v_ids loop
        begin
          perform agentd.recut_usage(v_id);
          v_done := v_done || v_id;
        exception when lock_not_available then
          null;
        end;
      end loop;
      delete from agentd.usage_recuts r where r.workspace_id = any (v_done);
      update agentd.usage_recuts r set requested_at = agentd.now() where r.workspace_id = any (v_ids);
      return cardinality(v_done);
    end
    $$;
`;

export const DROP_COUNTER_PERIODS = `
    ${Object.values(before).map(replaced).join('\n')}
    ${callsBefore}
    drop function agentd.recut_counters(uuid, jsonb);
    drop function agentd.undated_usage(uuid);
    drop function agentd.dated_usage(uuid, timestamptz);
`;
