/** Queue task-run: executes one run of an agent's task. */
import { z } from 'zod';
import type { ClaimedRun, RefusedRun } from '../db/runs.ts';
import { executeRun, type RunDeps } from '../pipelines/agent/run.ts';
import { JobAborted, snooze } from '../queue/errors.ts';
import { defineJob, type Job } from '../queue/job.ts';
import type { Leases } from '../queue/leases.ts';

// any 128 bits: an application may make ids of its own, and PostgreSQL takes them
const payload = z.object({ run_id: z.guid() });

export type TaskRunDeps = RunDeps & {
  /** Claims a run for this worker. */
  readonly claim: (runId: string) => Promise<ClaimedRun | RefusedRun>;
  readonly leases: Leases;
  /** Lets new runs into pg-boss. */
  readonly admit: () => Promise<number>;
};

/** The job of queue task-run. */
export function taskRunJob(deps: TaskRunDeps): Job {
  return defineJob({
    queue: 'task-run',
    parse: (data) => payload.parse(data),
    key: ({ run_id }) => run_id,
    admit: deps.admit,
    async handler({ run_id }, { signal, log }) {
      const claimed = await deps.claim(run_id);
      if ('refused' in claimed) {
        // ended, deleted, or somebody else's until its lease lapses
        return claimed.again_in_ms === null ? undefined : snooze(Math.max(claimed.again_in_ms, 50));
      }
      const own = new AbortController();
      deps.leases.hold(claimed.id, claimed.lease_epoch, own);
      try {
        const outcome = await executeRun({ ...deps, log }, claimed, AbortSignal.any([signal, own.signal]));
        if (outcome.kind === 'released') throw new JobAborted('drain');
      } finally {
        deps.leases.release(claimed.id, claimed.lease_epoch);
      }
      return undefined;
    },
  });
}
