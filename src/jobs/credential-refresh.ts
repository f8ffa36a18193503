/** Queue credential-refresh: one fresh token, or one look at a key. */
import { z } from 'zod';
import {
  admitCredentials,
  claimCredential,
  credentialHeldFor,
  releaseCredential,
} from '../db/credentials.ts';
import { wakeQueue } from '../db/jobs.ts';
import { isLockTimeout, patientQueries, retryTransient } from '../db/retry.ts';
import { CREDENTIAL_LEASE_SECONDS, type RefreshDeps } from '../pipelines/oauth/attempt.ts';
import { refreshClaimed } from '../pipelines/oauth/refresh.ts';
import { JobAborted, snooze } from '../queue/errors.ts';
import { defineJob, type Job } from '../queue/job.ts';

/** A credential whose row somebody holds is looked at again after so many milliseconds; its slot is another's meanwhile. */
const HELD_MS = 1_000;

const payload = z.object({ credential_id: z.guid(), request: z.int(), workspace_id: z.guid() });

export type CredentialRefreshDeps = RefreshDeps & {
  /** Credentials that are worked on at once. */
  readonly concurrency: number;
};

/** The job of queue credential-refresh. */
export function credentialRefreshJob(deps: CredentialRefreshDeps): Job {
  const admit = (): Promise<number> => admitCredentials(deps.db, deps.concurrency * 4);
  return defineJob({
    queue: 'credential-refresh',
    parse: (data) => payload.parse(data),
    key: ({ credential_id, request }) => `${credential_id}:${request}`,
    admit,
    async handler({ credential_id, request, workspace_id }, { signal, job, log }) {
      const patience = { clock: deps.clock, signal, ...(deps.onRetry ? { onRetry: deps.onRetry } : {}) };
      const db = patientQueries(deps.db, patience);
      const claim = await retryTransient(
        () =>
          claimCredential(
            deps.db,
            { id: credential_id, workspaceId: workspace_id, request },
            CREDENTIAL_LEASE_SECONDS,
            deps.isSteady?.(),
          ),
        patience,
      ).catch((error: unknown) => {
        if (isLockTimeout(error)) return 'held' as const;
        throw error;
      });
      if (claim === 'held') return snooze(HELD_MS);
      if (claim === null) {
        const heldForMs = await credentialHeldFor(db, { id: credential_id, request });
        return heldForMs === null ? undefined : snooze(heldForMs);
      }
      try {
        const outcome = await refreshClaimed({ ...deps, log }, claim, { jobId: job.id, signal });
        if (outcome.kind === 'released') throw new JobAborted('drain');
      } catch (error) {
        // only where nothing was sent: what was, is not called off
        if (error instanceof JobAborted) await releaseCredential(deps.db, claim).catch(() => {});
        throw error;
      }
      // a place of its workspace is free: who waits there need not wait for the next look
      if ((await admitCredentials(db, deps.concurrency * 4)) > 0) await wakeQueue(db, 'credential-refresh');
      return undefined;
    },
  });
}
