/** Tasks and schedulers at times that a test chooses: no daemon, no waiting. */
import { afterAll, beforeAll, beforeEach } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import type { Database } from '../../src/db/database.ts';
import { admitArrivals } from '../../src/db/jobs.ts';
import { schedulePass } from '../../src/services/scheduler.ts';
import { silentLogger } from '../../src/telemetry/logger.ts';
import { createMetrics } from '../../src/telemetry/metrics.ts';
import { setDatabaseClock, type TestDatabase, testDatabase } from './database.ts';
import { type Columns, makePlatform, makeTask, type Platform } from './platform.ts';

export let db: TestDatabase;
export let platform: Platform;

/** Gives the test file a database of its own, without tasks at the beginning of each test. */
export function useSchedule(): void {
  beforeAll(async () => {
    db = await testDatabase();
    platform = await makePlatform(db);
  });
  afterAll(() => db?.dispose());
  beforeEach(async () => {
    await db.query('delete from public.agent_tasks');
    await db.query('delete from public.task_runs');
  });
}

/** What a scheduler needs beside its database. */
export const parts = { clock: systemClock, log: silentLogger(), metrics: createMetrics() };

/** Makes it a time (UTC) and lets a scheduler do all that is due. */
export async function at(time: string | Date, on: Database = db): Promise<void> {
  await setDatabaseClock(on, typeof time === 'string' ? new Date(`${time}Z`) : time);
  while ((await schedulePass({ db: on, ...parts })) > 0);
}

export function scheduled(columns: Columns, agentId = platform.agentId): Promise<string> {
  return makeTask(db, { ...platform, agentId }, columns);
}

export type Occurrence = { scheduled_for: Date; status: string; trigger: string; reason_code: string | null };

export function occurrences(taskId: string): Promise<Occurrence[]> {
  return db.query<Occurrence>(
    'select * from public.task_runs where task_id = $1 and scheduled_for is not null order by scheduled_for',
    [taskId],
  );
}

export const short = (time: Date): string => time.toISOString().replace(/(:00)?\.000Z$/, '');

/** The occurrences as 'time status reason'. */
export async function rows(taskId: string): Promise<string[]> {
  return (await occurrences(taskId)).map((row) =>
    [short(row.scheduled_for), row.trigger, row.status, row.reason_code].filter(Boolean).join(' '),
  );
}

export type Task = {
  status: string;
  reason_code: string | null;
  reason: string | null;
  next_run_at: Date | null;
  last_run_at: Date | null;
  total_executions: number;
};

export async function task(taskId: string): Promise<Task> {
  const [row] = await db.query<Task>('select * from public.agent_tasks where id = $1', [taskId]);
  if (!row) throw new Error(`Task ${taskId} is gone.`);
  return row;
}

export async function nextOf(taskId: string): Promise<string | null> {
  const { next_run_at } = await task(taskId);
  return next_run_at && short(next_run_at);
}

/** Ends whatever runs the tasks have, as a worker would. */
export function endRuns(): Promise<unknown> {
  return db.query(
    `update public.task_runs set status = 'completed', finished_at = agentd.now() where status in ('queued', 'running')`,
  );
}

/** Whether each run of a task has a job, in their order, once a daemon has let in what may be let in. */
export async function admitted(taskId: string): Promise<boolean[]> {
  await admitArrivals(db);
  const found = await db.query<{ admitted: boolean }>(
    'select job_id is not null as admitted from public.task_runs where task_id = $1 order by seq',
    [taskId],
  );
  return found.map((row) => row.admitted);
}
