/** Limits of usage, as the worker asks for them: whether a workspace may go on, and what time brings about. */
import type { Queryable } from './database.ts';

/** A workspace that has used all that its plan gives. */
export type ReachedLimit = {
  readonly workspace_id: string;
  readonly metric: 'tokens';
  readonly max_amount: number;
  readonly used_amount: number;
  /** Milliseconds until the period ends. */
  readonly ends_in_ms: number;
  /** What its runs do then. */
  readonly policy: 'wait' | 'fail';
};

/** Whether these workspaces are at their limit, in the order asked; null: not. Takes no lock. */
export async function reachedLimits(
  db: Queryable,
  workspaces: readonly string[],
): Promise<(ReachedLimit | null)[]> {
  const rows = await db.query<ReachedLimit>(
    {
      name: 'reached_limits',
      text: 'select workspace_id, metric, max_amount::float8, used_amount::float8, ends_in_ms, policy from agentd.reached_limits($1)',
    },
    [[...new Set(workspaces)]],
  );
  const byWorkspace = new Map(rows.map((row) => [row.workspace_id, row]));
  return workspaces.map((id) => byWorkspace.get(id) ?? null);
}

/** Follows up to `limit` workspaces one of whose subscriptions has ended by time alone. Returns how many. */
export async function followEndedPlans(db: Queryable, limit: number): Promise<number> {
  const [row] = await db.query<{ followed: number }>('select agentd.follow_ended_plans($1) as followed', [
    limit,
  ]);
  return row?.followed ?? 0;
}

/** Warns of limits of which 80 or 100 of a hundred are used. Returns how many warnings are new, of at most `limit`. */
export async function warnOfUsage(db: Queryable, limit: number): Promise<number> {
  const [row] = await db.query<{ warned: number }>('select agentd.warn_of_usage($1) as warned', [limit]);
  return row?.warned ?? 0;
}

/** Takes rows back for up to `limit` calls of members that counted the same conversations, and forgets old calls. Returns how many rows. */
export async function pairMemberCalls(db: Queryable, limit: number): Promise<number> {
  await db.query(`delete from agentd.member_calls c where c.id in (
    select o.id from agentd.member_calls o where o.called_at < agentd.now() - interval '2 days'
     order by o.called_at limit 1000 for update skip locked)`);
  const [row] = await db.query<{ paired: number }>('select agentd.pair_member_calls($1) as paired', [limit]);
  return row?.paired ?? 0;
}
