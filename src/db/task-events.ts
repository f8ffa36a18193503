/** Events on their way to the tasks that they start. */
import type { Queryable } from './database.ts';

/** What one look at the events that are due has done. */
export type FiredEvents = {
  /** Events that are done with. */
  readonly settled: number;
  /** Runs that they started. */
  readonly fired: number;
  /** Triggers whose conditions were met and that might not fire. */
  readonly suppressed: number;
  /** Events that wait: somebody holds a row of theirs, or the database refused. */
  readonly postponed: number;
  /** Events that waited for a day and are given up. */
  readonly lost: number;
  /** Why the last one was postponed, where the database refused it. */
  readonly last_error: string | null;
};

/**
 * Compares at most `limit` events with the triggers of their workspaces and starts tasks. While another daemon does, this one does
 * nothing. Call it by itself, in no transaction: what it has locked it holds to its end.
 */
export async function fireTaskEvents(db: Queryable, limit: number): Promise<FiredEvents> {
  const [row] = await db.query<FiredEvents>(
    {
      name: 'fire_task_events',
      text: 'select settled, fired, suppressed, postponed, lost, last_error from agentd.fire_task_events($1)',
    },
    [limit],
  );
  return row ?? { settled: 0, fired: 0, suppressed: 0, postponed: 0, lost: 0, last_error: null };
}

/** Milliseconds until the next event that waits is due, 0 if one is; null if there is none. */
export async function nextEventInMs(db: Queryable): Promise<number | null> {
  const [row] = await db.query<{ due_in_ms: number | null }>({
    name: 'next_task_event',
    text: `
select greatest(extract(epoch from min(e.due_at) - agentd.now()) * 1000, 0)::double precision as due_in_ms
  from (select due_at from agentd.task_events order by workspace_id, due_at, id limit 1000) e
having count(*) > 0`,
  });
  return row?.due_in_ms ?? null;
}
