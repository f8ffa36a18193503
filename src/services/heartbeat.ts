/** Says that this worker lives, and hears which queues an operator has paused. */
import type { Database } from '../db/database.ts';
import { pausedQueues } from '../db/jobs.ts';
import { saveWorker, type WorkerRow } from '../db/workers.ts';
import { periodic, type Service, type ServiceDeps } from './periodic.ts';

const PASS_MS = 1_000;
const SAVE_EVERY = 5;

export type HeartbeatDeps = ServiceDeps & {
  readonly db: Database;
  readonly worker: () => WorkerRow;
  readonly onPaused: (queues: ReadonlySet<string>) => void;
};

/** The heartbeat as a service. */
export function heartbeat(deps: HeartbeatDeps): Service {
  let pass = 0;
  return periodic('heartbeat', deps, async () => {
    const worker = deps.worker();
    if (pass++ % SAVE_EVERY === 0 || worker.state !== 'running') await saveWorker(deps.db, worker);
    deps.onPaused(await pausedQueues(deps.db));
    return PASS_MS;
  });
}
