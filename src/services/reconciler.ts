/**
 * The guarantee behind the notifications: what was lost on the way is found here.
 *
 * Leases are looked at every second, because a takeover waits for it; the rest is a matter of seconds.
 */

import type { Database } from '../db/database.ts';
import { type DatabaseTime, databaseNow } from '../db/database-time.ts';
import { admitArrivals, wakeQueue } from '../db/jobs.ts';
import { sweepRateLimits } from '../db/rate-limits.ts';
import {
  admitWaitingRuns,
  dropStaleJobs,
  enqueueRunsWithoutJob,
  ensurePartitions,
  failRunsWithDeadJob,
  isAnyJobLost,
  requeueLapsedRuns,
  sweepBudgets,
  sweepWorkers,
  wakeDueRuns,
} from '../db/reconcile.ts';
import { LONGEST_DELAY_MS } from '../db/retry.ts';
import { type DocumentPlace, repairDocuments } from './document-repairs.ts';
import { repairMcpRefreshes } from './mcp-repairs.ts';
import { periodic, type Service, type ServiceDeps } from './periodic.ts';

const LEASES_MS = 1_000;
const REST_EVERY = 5;
/** So long a pass looks through the waiting rooms; the next one goes on where it ended. */
const WAITING_ROOMS_MS = 250;
/** Partitions are made twelve months ahead of the database's clock: once in a while is enough, and when that was set. */
const PARTITIONS_MS = 6 * 3_600_000;

export type ReconcilerDeps = ServiceDeps & { readonly db: Database };

/** `leaseMs`: how long a claim of a run holds without a renewal. */
export type ReconcilerServiceDeps = ReconcilerDeps & {
  readonly time: DatabaseTime;
  readonly leaseMs: number;
};

/** The reconciler as a service. */
export function reconciler(deps: ReconcilerServiceDeps): Service {
  let pass = 0;
  let partitionsAt = Number.NEGATIVE_INFINITY;
  const place: Place = { after: null };
  let documents: DocumentPlace = { refreshes: null, oldChunks: null };
  return periodic('reconciler', deps, async () => {
    if ((await admitArrivals(deps.db)) > 0) await wakeQueue(deps.db, 'task-run');
    await deps.time.read(() => databaseNow(deps.db));
    // Workers that live renew within a third of a lease, and write what they have as soon as they try again; until
    // then what looks lapsed may only be late.
    const patience = Math.max(deps.leaseMs / 2, LONGEST_DELAY_MS + 500);
    const sure = deps.time.steadyMs() >= patience ? deps.time.now() : null;
    await reconcileLeases(deps, sure);
    if (pass++ % REST_EVERY === 0) {
      await reconcileRest(deps, place);
      documents = await repairDocuments(deps, sure, documents);
      await repairMcpRefreshes(deps, sure);
    }
    // last: where it fails, the rest has been done
    const now = deps.time.now().getTime();
    if (Math.abs(now - partitionsAt) > PARTITIONS_MS) {
      report(deps, 'partition', await ensurePartitions(deps.db));
      partitionsAt = now;
    }
    return LEASES_MS * (0.9 + Math.random() * 0.2);
  });
}

/**
 * Gives back the runs of workers that have lost them, and queues the waiting ones that are due.
 *
 * @param now the database's time as it should be; null right after it was away or its clock was set, when a lease that looks
 *   lapsed need not be. Left out, what the database says is believed.
 */
export async function reconcileLeases(deps: ReconcilerDeps, now?: Date | null): Promise<void> {
  if (now !== null) report(deps, 'lapsed_lease', await requeueLapsedRuns(deps.db, now));
  const woken = await wakeDueRuns(deps.db);
  if (woken > 0) deps.log.debug({ event: 'runs_woken', runs: woken }, 'waiting runs are due');
}

/** How far the look through the waiting rooms has come: the last workspace; null: it begins anew. */
type Place = { after: string | null };

/** Makes missing jobs, admits stranded runs, forgets dead workers. Looks into waiting rooms from `place` on, and moves it. */
export async function reconcileRest(deps: ReconcilerDeps, place: Place = { after: null }): Promise<void> {
  report(deps, 'stale_job', await dropStaleJobs(deps.db));
  if (await isAnyJobLost(deps.db)) {
    report(deps, 'dead_job', await failRunsWithDeadJob(deps.db));
    report(deps, 'missing_job', await enqueueRunsWithoutJob(deps.db));
  }
  report(deps, 'waiting_room', await lookThroughWaitingRooms(deps, place));
  report(deps, 'budget', await sweepBudgets(deps.db));
  report(deps, 'dead_worker', await sweepWorkers(deps.db));
  await sweepRateLimits(deps.db);
}

/** Every workspace has its turn, however many there are and however long it takes. Returns how many runs came in. */
async function lookThroughWaitingRooms(deps: ReconcilerDeps, place: Place): Promise<number> {
  const until = deps.clock.elapsed() + WAITING_ROOMS_MS;
  let admitted = 0;
  do {
    const look = await admitWaitingRuns(deps.db, place.after);
    admitted += look.admitted;
    place.after = look.last;
  } while (place.after !== null && deps.clock.elapsed() < until);
  if (admitted > 0) await wakeQueue(deps.db, 'task-run');
  return admitted;
}

function report(deps: ReconcilerDeps, what: string, repaired: number): void {
  if (repaired > 0) deps.log.info({ event: 'reconciled', what, repaired }, `repaired ${repaired} × ${what}`);
}
