/** Depth and age of the queues, as `agentd.queue_health` says. Every process exports the same values: use max(), not sum(). */
import { Gauge, type Registry } from 'prom-client';
import type { QueueHealth } from '../db/operations.ts';

export type QueueGauges = {
  /** Replaces the values of all queues; a queue that is missing now loses its series. */
  set(rows: readonly QueueHealth[]): void;
  /** Age in seconds of the earliest run that the schedule owes. */
  scheduleOverdue(seconds: number): void;
  /** The database did not answer: old depths would be lies, so they go. */
  clear(): void;
  databaseUp(up: boolean): void;
};

/** Registers the gauges. */
export function queueGauges(registry: Registry): QueueGauges {
  const registers = [registry];
  const gauge = <L extends string>(name: string, help: string, labelNames: L[]) =>
    new Gauge<L>({ name, help, labelNames, registers });
  const up = gauge('agentd_database_up', '1 when the database answered the last question, else 0.', []);
  const jobs = gauge('agentd_queue_jobs', 'Jobs by queue and state.', ['queue', 'state']);
  const oldest = gauge('agentd_queue_oldest_ready_seconds', 'Age of the oldest job that could start.', [
    'queue',
  ]);
  const waitingRoom = gauge('agentd_queue_waiting_room_rows', 'Rows of workspaces at their ceiling.', [
    'queue',
  ]);
  const workers = gauge('agentd_queue_workers', 'Processes that work the queue.', ['queue']);
  const paused = gauge('agentd_queue_paused', '1 while the whole queue is paused.', ['queue']);
  const overdue = gauge(
    'agentd_schedule_overdue_seconds',
    'Since when the earliest task that is due has waited for its run; 0 when none is due.',
    [],
  );
  // Without labels it would begin with a value that nobody has read.
  overdue.remove();
  const byQueue = [jobs, oldest, waitingRoom, workers, paused];
  const clear = (): void => {
    for (const each of byQueue) each.reset();
    overdue.remove();
  };
  return {
    set(rows) {
      clear();
      for (const row of rows) {
        const { queue } = row;
        jobs.set({ queue, state: 'ready' }, row.ready);
        jobs.set({ queue, state: 'delayed' }, row.delayed);
        jobs.set({ queue, state: 'active' }, row.active);
        jobs.set({ queue, state: 'dead' }, row.dead);
        oldest.set({ queue }, row.oldest_ready_seconds ?? 0);
        waitingRoom.set({ queue }, row.waiting_room);
        workers.set({ queue }, row.workers);
        paused.set({ queue }, row.paused ? 1 : 0);
      }
    },
    scheduleOverdue: (seconds) => overdue.set(seconds),
    clear,
    databaseUp: (value) => up.set(value ? 1 : 0),
  };
}
