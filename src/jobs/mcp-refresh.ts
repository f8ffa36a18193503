/** Queue mcp-refresh: looks at the tools that the server of one connection offers. */
import type { Logger } from 'pino';
import { z } from 'zod';
import type { Queryable } from '../db/database.ts';
import { wakeQueue } from '../db/jobs.ts';
import {
  type AdmittedRefresh,
  admitRefreshes,
  type ClaimedRefresh,
  claimRefreshes,
  failRefresh,
  putBackRefresh,
} from '../db/mcp.ts';
import { isLockTimeout, isTransient, retryTransient } from '../db/retry.ts';
import { type RefreshDeps, type RefreshOutcome, refreshConnection } from '../pipelines/mcp/refresh.ts';
import { Batcher } from '../queue/batcher.ts';
import { JobAborted } from '../queue/errors.ts';
import { defineJob, type Job } from '../queue/job.ts';
import type { Leases } from '../queue/leases.ts';
import type { McpMetrics } from '../telemetry/mcp-metrics.ts';

/** A row that a tenant's transaction holds is waited for so many milliseconds; then the look is made again later. */
const HELD_MS = 20_000;
const HELD_AGAIN_MS = 60_000;
/** A server that takes longer than so many milliseconds is slow or hangs: others are looked at in its place, so many at once. */
const SLOW_MS = 500;
const MOST_SLOW = 64;
/** After what should not happen. */
const AGAIN_MS = 3_600_000;

const payload = z.object({ connection_id: z.guid(), epoch: z.int() });

export type McpRefreshDeps = Omit<RefreshDeps, 'log'> & {
  readonly workerId: string;
  readonly leases: Leases;
  readonly leaseSeconds: number;
  /** Connections that are looked at at once. */
  readonly concurrency: number;
  readonly metrics: McpMetrics;
  readonly onRetry: (error: Error) => void;
};

/** The job of queue mcp-refresh. */
export function mcpRefreshJob(deps: McpRefreshDeps): Job {
  const admit = (): Promise<number> => admitRefreshes(deps.db, deps.concurrency * 4);
  const admitMore = coalesced(async () => {
    if ((await admit()) > 0) await wakeQueue(deps.db, 'mcp-refresh');
  });
  const claims = new Batcher(
    (admitted: AdmittedRefresh[]) =>
      retryTransient(() => claimRefreshes(deps.db, admitted, deps.workerId, deps.leaseSeconds), {
        clock: deps.clock,
        onRetry: deps.onRetry,
      }),
    { maxItems: 32, maxConcurrent: 2 },
  );
  return defineJob({
    queue: 'mcp-refresh',
    parse: (data) => payload.parse(data),
    key: ({ connection_id, epoch }) => `${connection_id}:${epoch}`,
    // a look lets in more than there are slots, so that a slot never waits for the next look
    admit,
    lends: MOST_SLOW,
    async handler({ connection_id, epoch }, { signal, job, log, lendSlot }) {
      const patience = { clock: deps.clock, signal, onRetry: deps.onRetry };
      const claimed = await claims.add({ connectionId: connection_id, epoch });
      if (claimed === null) return undefined;
      const own = new AbortController();
      const slow = deps.clock.after(SLOW_MS, lendSlot);
      deps.leases.hold(claimed.id, claimed.lease_epoch, own);
      try {
        const both = AbortSignal.any([signal, own.signal]);
        const db = holdable(deps.db, { ...patience, signal: both });
        const outcome = await refreshConnection(
          { ...deps, db, log, onListed: () => slow.cancel() },
          claimed,
          job.id,
          both,
        ).catch((error: unknown) => couldNot({ ...deps, log }, claimed, job.id, error));
        deps.metrics.ended(outcome);
        log.info(
          { event: 'mcp_refreshed', connection_id, why: claimed.why, outcome },
          `the tools of a connection were looked at: ${outcome.kind}`,
        );
        if (outcome.kind === 'released') throw new JobAborted('drain');
        // a place of its workspace is free: who waits there need not wait for the next look
        admitMore((error) => log.debug({ event: 'mcp_admission_failed', err: error }, 'nobody was let in'));
      } finally {
        slow.cancel();
        deps.leases.release(claimed.id, claimed.lease_epoch);
      }
      return undefined;
    },
  });
}

/** The database, waited for while it is away, and for a while where a tenant holds a row. */
function holdable(db: Queryable, patience: Omit<Parameters<typeof retryTransient>[1], 'retryIf'>): Queryable {
  return {
    query(statement, values) {
      const until = patience.clock.elapsed() + HELD_MS;
      return retryTransient(() => db.query(statement, values), {
        ...patience,
        retryIf: (error) => isTransient(error) || (isLockTimeout(error) && patience.clock.elapsed() < until),
      });
    },
  };
}

/** What the database does not take, or a tenant does not let go, is this connection's alone: it comes again later. */
async function couldNot(
  deps: McpRefreshDeps & { readonly log: Logger },
  claimed: ClaimedRefresh,
  jobId: string,
  error: unknown,
): Promise<RefreshOutcome> {
  if (isLockTimeout(error)) {
    await putBackRefresh(deps.db, claimed, HELD_AGAIN_MS);
    return { kind: 'held' };
  }
  deps.log.warn(
    { event: 'mcp_refresh_broken', connection_id: claimed.id, err: error },
    'a look at tools came to no end',
  );
  const code = 'internal_error';
  const reason = 'agentd could not finish the look; its log says why. It is tried again.';
  await failRefresh(deps.db, claimed, { jobId, code, reason, inMs: AGAIN_MS, durationMs: 0, details: {} });
  return { kind: 'failed', code, seconds: 0 };
}

/** Runs at most one at a time; who asks meanwhile is served by one more. */
function coalesced(work: () => Promise<void>): (onError: (error: unknown) => void) => void {
  let isRunning = false;
  let isWanted = false;
  return (onError) => {
    isWanted = true;
    if (isRunning) return;
    isRunning = true;
    void (async () => {
      while (isWanted) {
        isWanted = false;
        await work().catch(onError);
      }
      isRunning = false;
    })();
  };
}
