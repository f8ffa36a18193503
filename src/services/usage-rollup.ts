/**
 * Keeps the sums of usage: gathers new events, folds them into the sums of their workspaces, follows changes of zones and plans, closes periods
 * that are over, and compares the sums with the events once a day.
 *
 * Every node tries; a row of the database lets one at a time do each step, and none keeps the others from it by dying. A backlog that is too long for
 * one statement is taken in parts.
 */
import type { Database } from '../db/database.ts';
import { isLockTimeout, isStatementTimeout } from '../db/retry.ts';
import { closeUsagePeriods, gatherUsage, voidCountedRows, workspacesThatBeganToCall } from '../db/usage.ts';
import { periodic, type Service, type ServiceDeps } from './periodic.ts';
import { foldAll, leftUsage, recutAll } from './usage-folding.ts';
import { UsageReconciler } from './usage-reconcile.ts';
import { type WalkDeps, WorkspaceWalk } from './workspace-walk.ts';

/** Between passes, in milliseconds: while there is usage, and while there is none. */
const BUSY_MS = 300;
const IDLE_MS = 1_000;
/**
 * A pass that takes longer than this is followed by a rest of so many times its own length: while somebody's transaction stays open, each pass leaves
 * row versions that the next has to step over, and without a rest passes would end up making each other slow.
 */
const LONG_MS = 500;
const REST = 4;
/** Events of a pass once all of them were too many for one statement. */
const PART = 200_000;
/** How often periods are closed, and rows that calls have replaced are taken back. */
const KEEP_MS = 60_000;
/** A period takes what is late for so long, in hours; then it is closed. */
export const GRACE_HOURS = 72;
/** After a restore the roll-up stands until somebody rebuilds; so often it looks whether that was done. */
const STUCK_MS = 60_000;
const AT_ONCE = 100;
/** Rows of a workspace that are taken back at once. */
const ROWS = 10_000;

export type UsageRollupDeps = ServiceDeps & { readonly db: Database };

/** The roll-up as a service. */
export function usageRollup(deps: UsageRollupDeps): Service {
  const { clock, log } = deps;
  let most: number | null = null;
  let keptAt = clock.elapsed() - KEEP_MS;
  const reconciler = new UsageReconciler(deps);
  const left = leftUsage(clock);
  const voiding = rowVoiding(deps);
  let isStuck = false;

  return periodic('usage_rollup', deps, async () => {
    const from = clock.elapsed();
    try {
      const { events, isComplete } = await rollUp(deps, most, left);
      const rest = restAfter(clock.elapsed() - from, events);
      isStuck = false;
      if (isComplete) most = null;
      if (clock.elapsed() - keptAt >= KEEP_MS) {
        keptAt = clock.elapsed();
        await keepPeriods(deps, voiding);
        await reconciler.begin();
      }
      await reconciler.step();
      return isComplete ? rest * (0.9 + Math.random() * 0.2) : 0;
    } catch (error) {
      if (isSerializationFailure(error)) return BUSY_MS * Math.random();
      if (isLockTimeout(error)) return BUSY_MS;
      if (isStatementTimeout(error)) {
        log.warn(
          { event: 'usage_backlog', err: error },
          'too many events for one pass: they are taken in parts',
        );
        most = most === null ? PART : Math.max(1_000, Math.floor(most / 2));
        return 0;
      }
      if (!isFromAnotherServer(error)) throw error;
      if (!isStuck) {
        isStuck = true;
        log.error(
          { event: 'usage_restored', err: error, next_step: 'Run: agentd usage rebuild' },
          'the database was restored: usage is not summed up until it is rebuilt',
        );
      }
      return STUCK_MS;
    }
  });
}

/** Milliseconds between a pass over so many events, which took so long, and the next. */
export function restAfter(tookMs: number, events: number): number {
  return Math.max(events > 0 ? BUSY_MS : IDLE_MS, tookMs > LONG_MS ? tookMs * REST : 0);
}

/**
 * One pass: follows changed periods, gathers, folds. Events are 0, too, when another node was at it.
 *
 * @param left workspaces that earlier passes have left for later
 */
export async function rollUp(
  deps: UsageRollupDeps,
  most: number | null = null,
  left = leftUsage(deps.clock),
): Promise<{ events: number; isComplete: boolean }> {
  const { db, clock, metrics } = deps;
  await recutAll(deps, left.recuts);
  const from = clock.elapsed();
  const gathered = await gatherUsage(db, most);
  const between = clock.elapsed();
  if (gathered) {
    if (gathered.events > 0) metrics.usage.gathered(gathered.events, (between - from) / 1000);
  }
  const folded = await foldAll(deps, left.folds);
  if (folded > 0) metrics.usage.folded((clock.elapsed() - between) / 1000);
  if (gathered && gathered.lagMs !== null) {
    metrics.usage.lag((gathered.lagMs + clock.elapsed() - between) / 1000);
  }
  return { events: gathered?.events ?? 0, isComplete: gathered?.isComplete ?? true };
}

/** Rows that an application's first calls have counted too are taken back. */
export function rowVoiding(deps: WalkDeps): WorkspaceWalk {
  return new WorkspaceWalk(deps, {
    find: workspacesThatBeganToCall,
    each: (db, id) => voidCountedRows(db, id, ROWS),
    onSlow: (slow) =>
      deps.log.warn(
        { event: 'usage_rows_not_voided', ...slow },
        'conversations of a workspace that calls have counted too could not be taken back: again later',
      ),
  });
}

/** What is due now and then, each apart from the others. */
export async function keepPeriods(deps: WalkDeps, voiding = rowVoiding(deps)): Promise<void> {
  const { db, log } = deps;
  const voided = await voiding.pass();
  if (voided > 0)
    log.info(
      { event: 'usage_rows_voided', conversations: voided },
      'conversations that calls have counted too were taken back',
    );
  let closed = 0;
  for (let more = AT_ONCE; more === AT_ONCE; closed += more)
    more = await closeUsagePeriods(db, GRACE_HOURS, AT_ONCE);
  if (closed > 0)
    log.info({ event: 'usage_periods_closed', periods: closed }, 'periods of usage were closed');
}

const codeOf = (error: unknown): unknown => (error as { code?: unknown } | null)?.code;
const isSerializationFailure = (error: unknown): boolean => codeOf(error) === '40001';
const isFromAnotherServer = (error: unknown): boolean => codeOf(error) === '55000';
