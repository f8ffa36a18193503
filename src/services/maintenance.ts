/**
 * Keeps the house clean: months ahead and retired, rows that have had their time.
 *
 * Each task is one process's at a time and anybody's next: a lease in the database says whose, and a process that dies leaves its pass to be
 * gone on with. A process works on one task for half a minute at most, then on the one that has waited longest. A task that fails is
 * tried again after a growing pause and stops no other.
 */
import type { Database } from '../db/database.ts';
import { maintenanceTasks, registerTasks, takeTask } from '../db/maintenance.ts';
import { ClocksApart, requireOneTime } from '../db/maintenance-clock.ts';
import { type RunDeps, workOn } from '../db/maintenance-run.ts';
import type { MaintenanceTask } from '../db/maintenance-tasks.ts';
import { periodic, type Service, type ServiceDeps } from './periodic.ts';

/** A crowd of workers does not look at one moment. */
const LOOK_MS = 60_000;
const SLICE_MS = 30_000;
/** Longer than a batch and its pause take. */
export const LEASE_MS = 120_000;

export type MaintenanceDeps = ServiceDeps & {
  readonly db: Database;
  readonly workerId: string;
  readonly tasks: readonly MaintenanceTask[];
  readonly onBatch?: RunDeps['onBatch'];
};

/** Maintenance as a service. It stops after the batch under way. */
export function maintenance(deps: MaintenanceDeps): Service {
  const { db, log } = deps;
  let isRegistered = false;
  let isDoubtful = false;
  return periodic('maintenance', deps, async (signal) => {
    if (!isRegistered) {
      await registerTasks(
        db,
        deps.tasks.map((task) => task.name),
      );
      isRegistered = true;
    }
    try {
      await requireOneTime(db, () => deps.clock.now());
      isDoubtful = false;
      while (!signal.aborted && (await tidyOnce(deps, signal)));
    } catch (error) {
      if (!(error instanceof ClocksApart)) throw error;
      if (!isDoubtful) {
        log.error(
          { event: 'maintenance_clock_doubtful', apart_ms: Math.round(error.apartMs) },
          'the clocks of the database and of this machine are days apart: nothing is removed until one is right',
        );
      }
      isDoubtful = true;
    }
    await lookAtState(deps);
    return LOOK_MS * (0.9 + Math.random() * 0.2);
  });
}

/** Works on the task that has been due for the longest. False: none is due. Throws ClocksApart, and gives the task back before. */
export async function tidyOnce(
  deps: MaintenanceDeps,
  signal: AbortSignal = new AbortController().signal,
  sliceMs: number = SLICE_MS,
): Promise<boolean> {
  const { db, clock, log, metrics } = deps;
  const byName = new Map(deps.tasks.map((task) => [task.name, task]));
  const taken = await takeTask(db, {
    names: [...byName.keys()],
    worker: deps.workerId,
    leaseMs: LEASE_MS,
  });
  const task = taken === null ? undefined : byName.get(taken.name);
  if (taken === null || task === undefined) return false;
  const { left, row, error } = await workOn(
    {
      db,
      clock,
      leaseMs: LEASE_MS,
      onBatch(name, rows) {
        metrics.maintenance.changed(name, rows);
        deps.onBatch?.(name, rows);
      },
      onHeld({ task, key, reason }) {
        log.warn(
          { event: 'maintenance_row_held', task, key, reason },
          'a row that has had its time stays until a later pass: what hangs on it is held, or too much for one statement',
        );
      },
    },
    task,
    taken,
    { sliceMs, signal },
  );
  if (error instanceof ClocksApart) throw error;
  if (left === null || row === null) {
    log.info({ event: 'maintenance_lost', task: task.name }, 'another process has taken the task over');
    return true;
  }
  if (left.how === 'paused') return true;
  metrics.maintenance.passed(task.name, left.how, row.busy_ms / 1000);
  if (left.how === 'failed') {
    log.error(
      { event: 'maintenance_failed', task: task.name, err: error, retry_ms: left.nextMs },
      'a task of maintenance failed and is tried again later',
    );
  } else {
    const { rows, held, bytes, batches, busy_ms } = row;
    if (rows > 0) {
      log.info(
        { event: 'maintenance_done', task: task.name, rows, held, bytes, batches, busy_ms },
        `${task.name}: ${rows} rows or months`,
      );
    } else {
      log.debug({ event: 'maintenance_idle', task: task.name, held, busy_ms }, `${task.name}: nothing to do`);
    }
  }
  return true;
}

async function lookAtState({ db, metrics, tasks }: MaintenanceDeps): Promise<void> {
  const known = new Set(tasks.map((task) => task.name));
  const states = (await maintenanceTasks(db)).filter((state) => known.has(state.name));
  metrics.maintenance.state(
    Math.max(0, ...states.map((state) => state.late_seconds)),
    states.filter((state) => state.failures > 0).length,
  );
}
