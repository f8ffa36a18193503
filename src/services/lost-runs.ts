/**
 * Stops runs of this process that are no longer wanted, within a second.
 *
 * A cancellation is notified, and mostly heard of that way; a deletion is not, and neither is anything on the embedded
 * database or behind a pooler in transaction mode. Renewing the leases as often would find it too, but writes.
 */
import type { Database } from '../db/database.ts';
import { findLostRuns } from '../db/lost-runs.ts';
import type { Leases } from '../queue/leases.ts';
import { periodic, type Service, type ServiceDeps } from './periodic.ts';

const PASS_MS = 500;

export type LostRunsDeps = ServiceDeps & { readonly db: Database; readonly leases: Leases };

/** The look at the runs that are held, as a service. */
export function lostRuns(deps: LostRunsDeps): Service {
  return periodic('lost-runs', deps, async () => {
    const held = deps.leases.held();
    if (held.length > 0) {
      for (const { run, epoch } of await findLostRuns(deps.db, held)) deps.leases.lose(run, epoch);
    }
    return PASS_MS;
  });
}
