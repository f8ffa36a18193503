/** Numbers of maintenance. Tasks are a closed set. */
import { Counter, Gauge, Histogram, type Registry } from 'prom-client';

export type MaintenanceMetrics = {
  /** A batch has changed so many rows. */
  changed(task: string, rows: number): void;
  /** A pass is over: `completed` or `failed`, after so many seconds of work. */
  passed(task: string, outcome: 'completed' | 'failed', seconds: number): void;
  /** As the tables say: since when the longest waiting task is due, and how many fail. */
  state(lateSeconds: number, failing: number): void;
};

/** Registers them. */
export function maintenanceMetrics(registry: Registry): MaintenanceMetrics {
  const registers = [registry];
  const rows = new Counter({
    name: 'agentd_maintenance_rows_total',
    help: 'Rows and months that maintenance removed or changed.',
    labelNames: ['task'],
    registers,
  });
  const seconds = new Histogram({
    name: 'agentd_maintenance_pass_seconds',
    help: 'Time that the batches of a pass of maintenance took.',
    labelNames: ['task', 'outcome'],
    buckets: [0.05, 0.25, 1, 5, 30, 120, 600, 3600],
    registers,
  });
  const late = new Gauge({
    name: 'agentd_maintenance_late_seconds',
    help: 'Since when the longest waiting task of maintenance is due.',
    registers,
  });
  const failing = new Gauge({
    name: 'agentd_maintenance_failing_tasks',
    help: 'Tasks of maintenance whose last pass failed.',
    registers,
  });
  return {
    changed: (task, count) => rows.inc({ task }, count),
    passed: (task, outcome, took) => seconds.observe({ task, outcome }, took),
    state(lateSeconds, tasks) {
      late.set(lateSeconds);
      failing.set(tasks);
    },
  };
}
