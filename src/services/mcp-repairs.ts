/** The reconciler's part in keeping connections to MCP servers from being stuck: lapsed leases, lost jobs. */
import type { Queryable } from '../db/database.ts';
import { wakeQueue } from '../db/jobs.ts';
import {
  dropStaleRefreshJobs,
  requeueLapsedRefreshes,
  requeueRefreshesWithoutJob,
} from '../db/mcp-repairs.ts';
import type { ServiceDeps } from './periodic.ts';

/**
 * One pass.
 *
 * @param now the database's time as it should be; null: unsure, then no lease is taken for lapsed
 */
export async function repairMcpRefreshes(
  deps: Pick<ServiceDeps, 'log'> & { readonly db: Queryable },
  now: Date | null | undefined,
): Promise<void> {
  const { db, log } = deps;
  // one that fails leaves the others theirs
  const step = async (what: string, repair: () => Promise<number>): Promise<number> => {
    try {
      const repaired = await repair();
      if (repaired > 0) log.info({ event: 'reconciled', what, repaired }, `repaired ${repaired} × ${what}`);
      return repaired;
    } catch (error) {
      log.warn({ event: 'repair_failed', what, err: error }, `could not repair ${what}`);
      return 0;
    }
  };
  let waiting = 0;
  if (now !== null)
    waiting += await step('lapsed_mcp_refresh', () => requeueLapsedRefreshes(db, now ?? null));
  await step('stale_mcp_job', () => dropStaleRefreshJobs(db));
  waiting += await step('mcp_refresh_without_job', () => requeueRefreshesWithoutJob(db));
  if (waiting > 0) await wakeQueue(db, 'mcp-refresh');
}
