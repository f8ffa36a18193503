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

/** Warns of limits of which 80 or 100 of a hundred are used. Looks at `limit` counters at most; returns how many warnings are new, up to two of each. */
export async function warnOfUsage(db: Queryable, limit: number): Promise<number> {
  const [row] = await db.query<{ warned: number }>('select agentd.warn_of_usage($1) as warned', [limit]);
  return row?.warned ?? 0;
}

/** Up to `limit` workspaces after `after`, in the order of their ids, with calls of members that no row was taken back for. */
export async function workspacesWithCalls(
  db: Queryable,
  after: string | null,
  limit: number,
): Promise<string[]> {
  // from one workspace to the next: many calls of one are one step
  const rows = await db.query<{ id: string }>(
    `with recursive step as (
       (select c.workspace_id as id from agentd.member_calls c
         where c.row_key is null and c.workspace_id > coalesce($1::uuid, '00000000-0000-0000-0000-000000000000')
         order by 1 limit 1)
       union all
       (select (select c.workspace_id from agentd.member_calls c
                 where c.row_key is null and c.workspace_id > s.id order by 1 limit 1)
          from step s where s.id is not null)
     )
     select s.id from step s where s.id is not null limit $2`,
    [after, limit],
  );
  return rows.map((row) => row.id);
}

/** Takes rows back for up to `limit` calls of members of a workspace that counted the same conversations. Returns how many rows. */
export async function pairMemberCalls(db: Queryable, workspaceId: string, limit: number): Promise<number> {
  const [row] = await db.query<{ paired: number }>('select agentd.pair_member_calls($1, $2) as paired', [
    workspaceId,
    limit,
  ]);
  return row?.paired ?? 0;
}

/** Forgets up to `limit` calls for which no row can come any more, oldest first. Returns how many. */
export async function forgetMemberCalls(db: Queryable, limit: number): Promise<number> {
  const rows = await db.query(
    `delete from agentd.member_calls c where c.id in (
       select o.id from agentd.member_calls o where o.called_at <= agentd.now() - interval '2 hours'
        order by o.called_at limit $1 for update skip locked)
     returning 1`,
    [limit],
  );
  return rows.length;
}
