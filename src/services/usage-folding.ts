/**
 * What the roll-up does for each workspace: cuts its periods anew, and adds what was gathered to its sums.
 *
 * A workspace that can't be done now, because somebody holds its rows, because it takes too long or because something of it is refused, is left for a
 * growing pause, and comes after all others.
 */
import type { Clock } from '../clock.ts';
import type { Database } from '../db/database.ts';
import { isDeadlock, isLockTimeout, isRefusal, isStatementTimeout } from '../db/retry.ts';
import { foldUsage, nextRecut, recutUsage, stillToFold, workspacesToFold } from '../db/usage.ts';
import type { ServiceDeps } from './periodic.ts';
import { type Pause, Postponed } from './postponed.ts';
import type { SlowWorkspace } from './workspace-walk.ts';

/** Workspaces that one statement folds. */
const WORKSPACES = 500;
/** Of those that were left before, so many are tried again in a pass. */
const AGAIN = 20;
/** Of those that somebody held, so many are waited for in a pass, each by itself. */
const WAITED_FOR = 4;
/** Workspaces whose periods a pass cuts, and for how many milliseconds at most: then usage is gathered first. */
const RECUTS = 100;
const RECUT_MS = 1_000;
/** Somebody holds a row. */
const HELD: Pause = { firstMs: 1_000, longestMs: 60_000 };
/** It took longer than a statement may, or was refused. */
const FAILED: Pause = { firstMs: 60_000, longestMs: 3_600_000 };

type Deps = Pick<ServiceDeps, 'clock' | 'log'> & { readonly db: Database };

/** Workspaces that were left for later, by what is to be done. */
export type LeftUsage = { readonly recuts: Postponed; readonly folds: Postponed };

/** None as yet. */
export function leftUsage(clock: Clock): LeftUsage {
  return { recuts: new Postponed(clock), folds: new Postponed(clock) };
}

/** Cuts the periods of workspaces whose zone or plan was changed, in the order in which that was. */
export async function recutAll(deps: Deps, left: Postponed): Promise<void> {
  const { db, clock, log } = deps;
  const until = clock.elapsed() + RECUT_MS;
  let recut = 0;
  while (recut < RECUTS && clock.elapsed() < until) {
    const id = await nextRecut(db, left.waiting());
    if (id === null) {
      // another node has done them
      for (const done of left.due()) left.settle(done);
      break;
    }
    try {
      // another node gathers or folds: that says nothing about the workspace
      if (!(await recutUsage(db, id))) break;
      left.settle(id);
      recut++;
    } catch (error) {
      const failed = leave(left, id, error);
      if (failed)
        log.warn(
          { event: 'usage_not_recut', ...failed },
          'the periods of a workspace could not be cut anew: again later',
        );
    }
  }
  if (recut > 0)
    log.info({ event: 'usage_periods_recut', workspaces: recut }, 'periods follow a changed zone or plan');
}

/** Folds what is there; then a few of those that were left before. Returns how many deltas. */
export async function foldAll(deps: Deps, left: Postponed): Promise<number> {
  let deltas = 0;
  const without = left.all();
  for (let after: string | null = null; ; ) {
    const ids = await workspacesToFold(deps.db, after, WORKSPACES, without);
    after = ids.at(-1) ?? null;
    if (after === null) break;
    const folded = await foldSome(deps, left, ids);
    if (folded === null) return deltas;
    deltas += folded;
  }
  for (const id of left.due().slice(0, AGAIN)) {
    const folded = await foldSome(deps, left, [id]);
    if (folded === null) return deltas;
    deltas += folded;
  }
  return deltas;
}

/** Folds these workspaces, together or, where one of them can't be, each alone. Null: another node is at it. */
async function foldSome(deps: Deps, left: Postponed, ids: readonly string[]): Promise<number | null> {
  const [only] = ids;
  try {
    const folded = await foldUsage(deps.db, ids);
    if (ids.length === 1 && only && folded) left.settle(only);
    if (folded && folded.held > 0 && ids.length > 1) return folded.deltas + (await foldHeld(deps, left, ids));
    return folded?.deltas ?? null;
  } catch (error) {
    if (ids.length === 1 && only) {
      const failed = leave(left, only, error);
      if (failed)
        deps.log.warn(
          { event: 'usage_not_folded', ...failed },
          'the usage of a workspace could not be summed up: again later',
        );
      return 0;
    }
    if (!isOfOne(error)) throw error;
  }
  let deltas = 0;
  for (const id of ids) {
    const folded = await foldSome(deps, left, [id]);
    if (folded === null) return null;
    deltas += folded;
  }
  return deltas;
}

/** A workspace that is asked for again and again is held whenever one looks: some of those are waited for. */
async function foldHeld(deps: Deps, left: Postponed, ids: readonly string[]): Promise<number> {
  let deltas = 0;
  for (const id of await stillToFold(deps.db, ids, WAITED_FOR)) {
    deltas += (await foldSome(deps, left, [id])) ?? 0;
  }
  return deltas;
}

/** Leaves a workspace for later. What the log says; null: somebody holds a row, which is nothing to speak of. Throws what is not about it alone. */
function leave(left: Postponed, id: string, error: unknown): SlowWorkspace | null {
  if (!isOfOne(error)) throw error;
  if (isHeld(error)) {
    left.postpone(id, HELD);
    return null;
  }
  return { workspace_id: id, err: error, again_ms: left.postpone(id, FAILED) };
}

const isHeld = (error: unknown): boolean => isLockTimeout(error) || isDeadlock(error);
const isOfOne = (error: unknown): boolean => isHeld(error) || isStatementTimeout(error) || isRefusal(error);
