/**
 * Makes credentials due when their time has come, and takes up those whose worker is gone.
 *
 * Sleeps until the earliest is due. A credential that is written with a time before that wakes it; where no notification arrives, it is
 * found a little later, and well before its margin is used up.
 */
import {
  nextCredentialDueMs,
  requestDueCredentials,
  requeueLostCredentials,
} from '../db/credential-repairs.ts';
import type { Database } from '../db/database.ts';
import { wakeQueue } from '../db/jobs.ts';
import { periodic, type Service, type ServiceDeps } from './periodic.ts';

const BATCH = 500;
const LONGEST_SLEEP_MS = 30_000;
/** Embedded, no notification tells of a new credential. */
const LONGEST_SLEEP_EMBEDDED_MS = 2_000;
const REPAIR_MS = 10_000;
/** What is due and can't be marked, because somebody holds its row, is looked at again after this. */
const HELD_MS = 1_000;

/** The look at due credentials, as a service. */
export function credentialSchedule(
  deps: ServiceDeps & {
    readonly db: Database;
    /** Whether the database's time can be relied on, so that a lease that looks lapsed has; absent: it always can. */
    readonly isSteady?: () => boolean;
  },
): Service {
  const { clock, db, log } = deps;
  const longest = db.embedded ? LONGEST_SLEEP_EMBEDDED_MS : LONGEST_SLEEP_MS;
  let repairAt = Number.NEGATIVE_INFINITY;
  return periodic('credential-schedule', deps, async () => {
    let found = 0;
    let requested = 0;
    do {
      requested = await requestDueCredentials(db, BATCH);
      found += requested;
    } while (requested === BATCH);
    if (clock.elapsed() - repairAt >= REPAIR_MS && deps.isSteady?.() !== false) {
      repairAt = clock.elapsed();
      const repaired = await requeueLostCredentials(db);
      if (repaired > 0) {
        log.info(
          { event: 'reconciled', what: 'lost_credential', repaired },
          `repaired ${repaired} × lost_credential`,
        );
      }
      found += repaired;
    }
    if (found > 0) await wakeQueue(db, 'credential-refresh');
    const due = await nextCredentialDueMs(db);
    const soonest = requested === 0 && due !== null && due <= 0 ? HELD_MS : 50;
    return Math.min(Math.max(due ?? longest, soonest), longest, REPAIR_MS);
  });
}
