/** What operators read of usage: a month's sums, its days, and who and what made them. */
import type { Queryable } from './database.ts';

/** One workspace's period. */
export type UsagePeriod = {
  readonly workspace_id: string;
  readonly workspace: string;
  readonly zone: string;
  readonly kind: 'month' | 'subscription';
  readonly month: string;
  readonly period_start: Date;
  readonly period_end: Date;
  readonly closed_at: Date | null;
  readonly rolled_up_at: Date | null;
  readonly conversations: number;
  readonly messages: number;
  readonly tokens_used: number;
  readonly task_runs: number;
  readonly tool_calls: number;
  readonly cost_micros: number;
};

/**
 * The periods that began in a month, the dearest first; without a month those that are going on.
 *
 * @param month its first day, as `2026-07-01`
 */
export function usagePeriods(
  db: Queryable,
  workspaceId: string | null,
  month: string | null,
  limit: number,
): Promise<UsagePeriod[]> {
  return db.query<UsagePeriod>(
    `select u.workspace_id, w.name as workspace, agentd.valid_time_zone(w.timezone) as zone, u.period_kind as kind, u.month::text as month,
            u.period_start, u.period_end, u.closed_at, u.rolled_up_at, u.conversations, u.messages, u.tokens_used, u.task_runs,
            u.tool_calls, u.cost_micros
       from public.workspace_usage u
       join public.workspaces w on w.id = u.workspace_id
      where ($1::uuid is null or u.workspace_id = $1)
        and case when $2::date is null then u.period_start <= agentd.now() and u.period_end > agentd.now()
                 else u.month >= $2::date and u.month < $2::date + interval '1 month' end
      order by u.cost_micros desc, u.tokens_used desc, u.workspace_id, u.month
      limit $3`,
    [workspaceId, month, limit],
  );
}

/** A day of a period, in the workspace's zone. */
export type UsageDay = { readonly day: string; readonly tokens: number; readonly cost_micros: number };

/** Every day of a period up to now, also those without usage. */
export function usageDays(
  db: Queryable,
  period: Pick<UsagePeriod, 'workspace_id' | 'zone' | 'period_start' | 'period_end'>,
): Promise<UsageDay[]> {
  return db.query<UsageDay>(
    `select d.day::date::text as day, coalesce(sum(q.quantity) filter (where q.metric = 'tokens'), 0)::float8 as tokens,
            coalesce(sum(q.cost_micros), 0)::float8 as cost_micros
       from generate_series(date_trunc('day', $3::timestamptz at time zone $2),
                            date_trunc('day', least($4::timestamptz - interval '1 second', agentd.now()) at time zone $2), interval '1 day') d (day)
       left join public.usage_quarter_hours q
         on q.workspace_id = $1 and q.bucket >= d.day at time zone $2 and q.bucket < (d.day + interval '1 day') at time zone $2
        and q.bucket >= date_trunc('hour', $3::timestamptz) and q.bucket < $4
      group by d.day order by d.day`,
    [period.workspace_id, period.zone, period.period_start, period.period_end],
  );
}

/** What one model, or one agent, has used in a period. */
export type UsagePart = {
  readonly name: string;
  readonly events: number;
  readonly tokens: number;
  readonly cost_micros: number;
};

/** Tokens of a period by model, the dearest first, from the events that are kept. */
export function usageByModel(
  db: Queryable,
  period: Pick<UsagePeriod, 'workspace_id' | 'period_start' | 'period_end'>,
): Promise<UsagePart[]> {
  return parts(
    db,
    `left(coalesce(e.dimensions ->> 'model', '–'), 80)`,
    `and e.metric in ('tokens', 'embedding_tokens')`,
    period,
  );
}

/** Usage of a period by agent, the dearest first, from the events that are kept. */
export function usageByAgent(
  db: Queryable,
  period: Pick<UsagePeriod, 'workspace_id' | 'period_start' | 'period_end'>,
): Promise<UsagePart[]> {
  const name = `coalesce((select a.name from public.agents a where a.id = e.agent_id), left(e.agent_id::text, 8))`;
  return parts(db, name, 'and e.agent_id is not null', period);
}

function parts(
  db: Queryable,
  name: string,
  condition: string,
  period: Pick<UsagePeriod, 'workspace_id' | 'period_start' | 'period_end'>,
): Promise<UsagePart[]> {
  return db.query<UsagePart>(
    `select ${name} as name, count(*)::float8 as events,
            coalesce(sum(e.quantity) filter (where e.metric in ('tokens', 'embedding_tokens')), 0)::float8 as tokens,
            sum(e.cost_micros)::float8 as cost_micros
       from public.usage_events e
      where e.workspace_id = $1 and e.occurred_at >= $2 and e.occurred_at < $3 ${condition}
      group by 1 order by sum(e.cost_micros) desc, 3 desc, 1 limit 10`,
    [period.workspace_id, period.period_start, period.period_end],
  );
}

/** How the roll-up stands. */
export type UsageRollupState = {
  readonly seconds_since: number | null;
  readonly events_rolled: number;
  readonly waiting_workspaces: number;
  readonly open_drifts: number;
  readonly is_restored: boolean;
  /** Workers that were seen in the last thirty seconds. */
  readonly workers: number;
};

export async function usageRollupState(db: Queryable): Promise<UsageRollupState> {
  const [row] = await db.query<UsageRollupState>(
    `select r.seconds_since::float8, r.events_rolled, r.waiting_workspaces, r.open_drifts, r.is_restored,
            (select count(*)::integer from agentd.workers w
              where w.state <> 'stopped' and w.last_seen_at > agentd.now() - interval '30 seconds') as workers
       from agentd.usage_rollup r`,
  );
  if (!row) throw new Error('agentd.usage_rollup_state lacks the row "usage".');
  return row;
}
