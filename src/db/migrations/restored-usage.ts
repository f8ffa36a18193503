/**
 * The counters of limits after a restore. Workers go on while the roll-up stands, until somebody rebuilds: what they used in that time is events
 * alone, and must count against the limits of the period all the same.
 */
import { changed, functionOf } from './run-sql.ts';
import { REPAIR_FUNCTIONS } from './usage-repair.ts';
import { COUNTED_AT, QUARTER } from './usage-rollup.ts';

const before = functionOf(REPAIR_FUNCTIONS, 'adopt_restored_usage');
const replaced = (text: string): string => text.replace('create function', 'create or replace function');

export const RESTORED_USAGE = replaced(
  changed(
    changed(
      changed(
        before,
        `      v_state agentd.usage_rollup_state;
`,
        `      v_state   agentd.usage_rollup_state;
      v_undated jsonb;
      v_row     record;
`,
      ),
      `      -- 3 is the first transaction of every server.`,
      `      -- What came since the last pass is in no counter, whatever the snapshot of the other server makes of this one's transactions.
      update public.usage_events e set xid = '${2n ** 63n - 1n}' where e.recorded_at > coalesce(v_state.last_run_at, '-infinity');
      perform agentd.fold_usage_of(array(select distinct d.workspace_id from agentd.usage_deltas d));
      select jsonb_object_agg(w.workspace_id, agentd.undated_usage(w.workspace_id, '-infinity')) into v_undated
        from (select distinct c.workspace_id from public.workspace_usage_counters c) w;
      perform agentd.open_usage_periods((
        select array_agg(row(0, n.workspace_id, n.at, 'message', true, 0, 0, 0)::agentd.usage_deltas)
          from (select distinct e.workspace_id, ${QUARTER(COUNTED_AT)} as at
                  from public.usage_events e join public.workspaces w on w.id = e.workspace_id
                 where e.xid = '${2n ** 63n - 1n}') n));
      -- 3 is the first transaction of every server.`,
    ),
    `      return true;
    end`,
    `      for v_row in
        select u.workspace_id, coalesce(v_undated -> u.workspace_id::text, 'null') as undated
          from public.workspace_usage u where u.closed_at is null group by u.workspace_id order by u.workspace_id
      loop
        perform agentd.recut_counters(v_row.workspace_id, nullif(v_row.undated, 'null'), '-infinity');
      end loop;
      return true;
    end`,
  ),
);

export const DROP_RESTORED_USAGE = replaced(before);
