/**
 * Compares the sums of usage with a recomputation from the events, once a day, a few workspaces at a time, beside the roll-up. What differs is
 * written down and made right.
 */
import type { Database } from '../db/database.ts';
import { isLockTimeout, isStatementTimeout } from '../db/retry.ts';
import {
  rebuildUsage,
  recordDrift,
  settleDrift,
  takeReconciliation,
  usageDrift,
  workspacesWithUsage,
} from '../db/usage.ts';
import type { ServiceDeps } from './periodic.ts';

const EVERY_MS = 24 * 60 * 60_000;
/** Workspaces between two passes of the roll-up. */
const AT_ONCE = 20;
/** Differences of a workspace that are written down. */
const WRITTEN = 100;

type Deps = Pick<ServiceDeps, 'log' | 'metrics'> & { readonly db: Database };

/** A walk through all workspaces, which a worker that dies leaves to the next day. */
export class UsageReconciler {
  readonly #deps: Deps;
  #isWalking = false;
  #after: string | null = null;

  constructor(deps: Deps) {
    this.#deps = deps;
  }

  /** Begins a walk, if it is time and no other worker has begun one. */
  async begin(): Promise<void> {
    if (this.#isWalking || !(await takeReconciliation(this.#deps.db, EVERY_MS))) return;
    this.#isWalking = true;
    this.#after = null;
  }

  /** Goes on with the walk under way, if there is one. */
  async step(): Promise<void> {
    if (!this.#isWalking) return;
    const ids = await workspacesWithUsage(this.#deps.db, this.#after, AT_ONCE);
    for (const id of ids) {
      this.#after = id;
      try {
        await reconcileWorkspace(this.#deps, id, true);
      } catch (error) {
        if (!isLockTimeout(error) && !isStatementTimeout(error)) throw error;
        this.#deps.log.warn(
          { event: 'usage_not_compared', workspace_id: id, err: error },
          'the sums of a workspace could not be compared with its events: tomorrow again',
        );
      }
    }
    if (ids.length < AT_ONCE) this.#isWalking = false;
  }
}

/** Compares the sums of one workspace, and with `repair` rebuilds them where they differ. Returns how many differed. */
export async function reconcileWorkspace(deps: Deps, workspaceId: string, repair: boolean): Promise<number> {
  const drift = await usageDrift(deps.db, workspaceId);
  if (drift.length > 0 && repair) await rebuildUsage(deps.db, workspaceId);
  if (drift.length === 0 || repair) await settleDrift(deps.db, workspaceId);
  if (drift.length === 0) return 0;
  await recordDrift(deps.db, drift.slice(0, WRITTEN), repair);
  deps.metrics.usage.drifted(drift.length);
  deps.log.error(
    { event: 'usage_drift', workspace_id: workspaceId, sums: drift.length, repaired: repair },
    'sums of usage differed from the events',
  );
  return drift.length;
}
