/** A task of maintenance carried out, batch after batch, with pauses in which the others have the database. */
import { type Clock, sleep } from '../clock.ts';
import type { Database } from './database.ts';
import { failuresOf, type Left, leaveTask, type PassRow, type Taken, TaskLost } from './maintenance.ts';
import { ClocksApart, requireOneTime } from './maintenance-clock.ts';
import type { BatchContext, MaintenanceTask } from './maintenance-tasks.ts';

/** A pause is so many times as long as the batch before it took: with 2, writers' p99 was three times what it is without (bench/retention). */
const PAUSE_FACTOR = 12;
const SHORTEST_PAUSE_MS = 10;
const LONGEST_PAUSE_MS = 5_000;
/** The pause after a failure doubles from a minute to this. */
const LONGEST_BACKOFF_MS = 3_600_000;

export type RunDeps = {
  readonly db: Database;
  readonly clock: Clock;
  /** How long a task is this process's without a sign of life, in milliseconds. */
  readonly leaseMs: number;
  /** For tests, and for whoever watches: after each batch, with the rows that it changed. */
  readonly onBatch?: (task: string, rows: number) => void;
  readonly onHeld?: BatchContext['onHeld'];
};

/** How a task was left; `row` is null when another process had it by then. `error` is a ClocksApart where it was left for that. */
export type Outcome = { readonly left: Left | null; readonly row: PassRow | null; readonly error: unknown };

/**
 * Works on a task until its pass is over, `sliceMs` are up or the signal fires, and gives it back. Never throws for what goes wrong in the task
 * itself: that is in the outcome and in the log.
 */
export async function workOn(
  deps: RunDeps,
  task: MaintenanceTask,
  taken: Taken,
  limits: { readonly sliceMs: number; readonly signal: AbortSignal },
): Promise<Outcome> {
  const { clock, db, leaseMs } = deps;
  const elapsed = (): number => clock.elapsed();
  const until = elapsed() + limits.sliceMs;
  let { place } = taken;
  let left: Left = { how: 'paused' };
  const context: BatchContext = {
    db,
    task: taken,
    leaseMs,
    elapsed,
    now: () => clock.now(),
    signal: limits.signal,
    ...(deps.onHeld ? { onHeld: deps.onHeld } : {}),
  };
  let failure: unknown = null;
  try {
    for (;;) {
      const from = elapsed();
      // before each batch: one that acts outside of the database can't be undone
      await requireOneTime(db, context.now);
      const batch = await task.batch(context, place);
      deps.onBatch?.(task.name, batch.rows);
      place = batch.place;
      if (place === null) {
        left = { how: 'completed', nextMs: task.everyMs * (0.9 + Math.random() * 0.2) };
        break;
      }
      if (limits.signal.aborted || elapsed() >= until) break;
      const pause = Math.min(
        Math.max((elapsed() - from) * PAUSE_FACTOR, SHORTEST_PAUSE_MS),
        LONGEST_PAUSE_MS,
      );
      await sleep(clock, pause, limits.signal).catch(() => {});
      if (limits.signal.aborted) break;
    }
  } catch (error) {
    if (error instanceof TaskLost) return { left: null, row: null, error };
    // somebody whose clock is right goes on with it
    if (error instanceof ClocksApart) failure = error;
    else if (!limits.signal.aborted) {
      failure = error;
      const failures = await failuresOf(db, task.name);
      left = {
        how: 'failed',
        nextMs: Math.min(60_000 * 2 ** Math.min(failures, 10), LONGEST_BACKOFF_MS),
        error: describe(error),
      };
    }
  }
  const row = await leaveTask(db, taken, left);
  return { left: row === null ? null : left, row, error: failure };
}

/** What may stand in a table: the code and the sentence, no values of rows (those are in an error's detail). */
function describe(error: unknown): string {
  const code = (error as { code?: unknown } | null)?.code;
  const message = error instanceof Error ? error.message : 'unknown';
  return `${typeof code === 'string' ? `${code}: ` : ''}${message}`.slice(0, 500);
}
