/**
 * Starts the tasks that wait for events.
 *
 * An application's insert leaves a row and wakes a daemon that sleeps. What no notification tells is found by a slow look, which costs an
 * index scan of what waits.
 */
import type { Database } from '../db/database.ts';
import { fallAsleep, wakeUp } from '../db/jobs.ts';
import { fireTaskEvents, nextEventInMs } from '../db/task-events.ts';
import { periodic, type Service, type ServiceDeps } from './periodic.ts';

/** The name under which its sleepers are woken. */
export const TASK_EVENTS = 'task-events';

/** Events of one transaction: some tens of milliseconds. */
const BATCH = 200;
const LOOK_MS = 2_000;
/** What is due and could not be settled is another daemon's, which is at it. */
const ANOTHERS_MS = 500;
/** The embedded database sends no notifications. */
const LOOK_EMBEDDED_MS = 250;

export type TaskEventsDeps = ServiceDeps & { readonly db: Database; readonly workerId: string };

/** The firing of triggers as a service. */
export function taskEvents(deps: TaskEventsDeps): Service {
  const { db, metrics, workerId } = deps;
  const workOff = async (): Promise<void> => {
    for (;;) {
      const done = await fireTaskEvents(db, BATCH);
      report(deps, done);
      if (done.settled === 0) return;
    }
  };
  const loop = periodic(TASK_EVENTS, deps, async () => {
    await workOff();
    if (db.embedded) return LOOK_EMBEDDED_MS;
    // what came before it could notify is found by one more look
    await fallAsleep(db, TASK_EVENTS, workerId);
    await workOff();
    const dueInMs = await nextEventInMs(db);
    if (dueInMs === null) return LOOK_MS;
    return dueInMs <= 0 ? ANOTHERS_MS : Math.min(Math.max(dueInMs, 50), LOOK_MS);
  });
  return {
    ...loop,
    async stop() {
      await loop.stop();
      await wakeUp(db, TASK_EVENTS, workerId).catch(() => metrics.databaseErrors.inc(TASK_EVENTS));
    },
  };
}

function report({ log, metrics }: TaskEventsDeps, done: Awaited<ReturnType<typeof fireTaskEvents>>): void {
  metrics.taskEvents.count(done);
  if (done.fired > 0 || done.suppressed > 0) {
    log.debug(
      { event: 'task_events', ...done },
      `${done.fired} runs were started by events, ${done.suppressed} might not be`,
    );
  }
  if (done.last_error !== null) {
    log.warn(
      { event: 'task_event_failed', error: done.last_error },
      'an event could not be compared with its triggers and waits',
    );
  }
  if (done.lost > 0) {
    log.warn(
      { event: 'task_events_lost', lost: done.lost },
      'events that waited for a day for rows that somebody holds were given up',
    );
  }
}
