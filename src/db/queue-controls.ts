/** Pauses of queues, and of single workspaces in them. A trigger tells the daemons and writes the audit log. */
import type { Queryable } from './database.ts';

/** A paused queue, or one workspace of it. */
export type Pause = {
  readonly queue: string;
  /** Null: the whole queue. */
  readonly workspace_id: string | null;
  readonly workspace_name: string | null;
  readonly paused_at: Date;
  readonly paused_by: string | null;
  readonly reason: string | null;
};

/** What an operator pauses or lets go on. */
export type PauseTarget = { readonly queue: string; readonly workspaceId: string | null };

/** Names of the queues that carry work; the ones of their dead letters are left out. */
export async function queueNames(db: Queryable): Promise<string[]> {
  const rows = await db.query<{ name: string }>(
    'select name from pgboss.queue where dead_letter is not null order by name',
  );
  return rows.map((row) => row.name);
}

/** All pauses, whole queues first; at most `limit`. */
export function listPauses(db: Queryable, limit: number): Promise<Pause[]> {
  return db.query<Pause>(
    `select c.queue, c.workspace_id, w.name as workspace_name, c.paused_at, c.paused_by, c.reason
       from agentd.queue_controls c
       left join public.workspaces w on w.id = c.workspace_id
      order by c.workspace_id is not null, c.queue, c.paused_at
      limit $1`,
    [limit],
  );
}

/** Pauses; returns false where it was paused already, which leaves the older pause as it is. */
export async function pauseQueue(
  db: Queryable,
  target: PauseTarget,
  by: string,
  reason: string | null,
): Promise<boolean> {
  const made = await db.query(
    `insert into agentd.queue_controls (queue, workspace_id, paused_at, paused_by, reason)
     values ($1, $2, agentd.now(), $3, $4)
     on conflict (queue, workspace_id) do nothing
     returning id`,
    [target.queue, target.workspaceId, by, reason],
  );
  return made.length > 0;
}

/** Lets it go on; returns false where it was not paused. */
export async function resumeQueue(db: Queryable, target: PauseTarget): Promise<boolean> {
  const gone = await db.query(
    `delete from agentd.queue_controls
      where queue = $1 and workspace_id is not distinct from $2::uuid
     returning id`,
    [target.queue, target.workspaceId],
  );
  return gone.length > 0;
}
