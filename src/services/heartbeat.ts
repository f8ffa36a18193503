/** Says that this worker lives, and hears what time it is for the database and which queues an operator has paused. */
import type { Database } from '../db/database.ts';
import type { DatabaseTime } from '../db/database-time.ts';
import { pausedQueues } from '../db/jobs.ts';
import { saveWorker, type WorkerRow } from '../db/workers.ts';
import { periodic, type Service, type ServiceDeps } from './periodic.ts';

/** Daemons obey a pause within a second, also where no notification tells them. */
const PASS_MS = 900;
const SAVE_EVERY = 5;

export type HeartbeatDeps = ServiceDeps & {
  readonly db: Database;
  readonly worker: () => WorkerRow;
  readonly time: DatabaseTime;
  readonly onPaused: (queues: ReadonlySet<string>) => void;
};

/** The heartbeat as a service. */
export function heartbeat(deps: HeartbeatDeps): Service {
  let pass = 0;
  return periodic('heartbeat', deps, async () => {
    const worker = deps.worker();
    if (pass++ % SAVE_EVERY === 0 || worker.state !== 'running')
      await deps.time.read(() => saveWorker(deps.db, worker));
    deps.onPaused(await pausedQueues(deps.db));
    return PASS_MS;
  });
}
