/**
 * The guarantee behind the notifications: what was lost on the way is found here.
 *
 * Leases are looked at every second, because a takeover waits for it; the rest is a matter of seconds.
 */

import type { Database } from '../db/database.ts';
import { admitArrivals, wakeQueue } from '../db/jobs.ts';
import {
  admitWaitingRuns,
  dropStaleJobs,
  enqueueRunsWithoutJob,
  ensurePartitions,
  failRunsWithDeadJob,
  requeueLapsedRuns,
  sweepWorkers,
  wakeDueRuns,
} from '../db/reconcile.ts';
import { periodic, type Service, type ServiceDeps } from './periodic.ts';

const LEASES_MS = 1_000;
const REST_EVERY = 5;
/** Partitions are made twelve months ahead: once in a while is enough. */
const PARTITIONS_MS = 6 * 3_600_000;

export type ReconcilerDeps = ServiceDeps & { readonly db: Database };

/** The reconciler as a service. */
export function reconciler(deps: ReconcilerDeps): Service {
  let pass = 0;
  let partitionsAt = Number.NEGATIVE_INFINITY;
  return periodic('reconciler', deps, async () => {
    if ((await admitArrivals(deps.db)) > 0) await wakeQueue(deps.db, 'task-run');
    await reconcileLeases(deps);
    if (deps.clock.elapsed() - partitionsAt > PARTITIONS_MS) {
      report(deps, 'partition', await ensurePartitions(deps.db));
      partitionsAt = deps.clock.elapsed();
    }
    if (pass++ % REST_EVERY === 0) await reconcileRest(deps);
    return LEASES_MS * (0.9 + Math.random() * 0.2);
  });
}

/** Gives back the runs of workers that have lost them, and queues the waiting ones that are due. */
export async function reconcileLeases(deps: ReconcilerDeps): Promise<void> {
  report(deps, 'lapsed_lease', await requeueLapsedRuns(deps.db));
  const woken = await wakeDueRuns(deps.db);
  if (woken > 0) deps.log.debug({ event: 'runs_woken', runs: woken }, 'waiting runs are due');
}

/** Makes missing jobs, admits stranded runs, forgets dead workers. */
export async function reconcileRest(deps: ReconcilerDeps): Promise<void> {
  report(deps, 'stale_job', await dropStaleJobs(deps.db));
  report(deps, 'dead_job', await failRunsWithDeadJob(deps.db));
  report(deps, 'missing_job', await enqueueRunsWithoutJob(deps.db));
  report(deps, 'waiting_room', await admitWaitingRuns(deps.db));
  report(deps, 'dead_worker', await sweepWorkers(deps.db));
}

function report(deps: ReconcilerDeps, what: string, repaired: number): void {
  if (repaired > 0) deps.log.info({ event: 'reconciled', what, repaired }, `repaired ${repaired} × ${what}`);
}
