import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { startDaemonProcess, testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform, makeTask, type Platform } from '../support/platform.ts';
import { until } from '../support/runs.ts';

let db: TestDatabase;
let model: ModelServer;
let platform: Platform;

beforeEach(async () => {
  db = await testDatabase();
  model = await startModelServer();
  platform = await makePlatform(db);
});

afterEach(async () => {
  expect(model.rejected).toEqual([]);
  await model.close();
  await db.dispose();
});

type Occurrence = { task_id: string; scheduled_for: Date; status: string };

function occurrences(): Promise<Occurrence[]> {
  return db.query<Occurrence>(
    'select task_id, scheduled_for, status from public.task_runs order by task_id, scheduled_for',
  );
}

/** Resolves when every task has so many occurrences. */
function untilEach(tasks: readonly string[], count: number): Promise<Occurrence[]> {
  return until(`each task has ${count} occurrences`, async () => {
    const rows = await occurrences();
    const enough = tasks.every((id) => rows.filter((row) => row.task_id === id).length >= count);
    return enough ? rows : null;
  });
}

/** Every second from the first to the last occurrence has exactly one row, and the task has counted as many. */
async function expectEverySecondOnce(tasks: readonly string[]): Promise<void> {
  const rows = await occurrences();
  for (const id of tasks) {
    const seconds = rows.filter((row) => row.task_id === id).map((row) => row.scheduled_for.getTime() / 1000);
    const [first = 0] = seconds;
    expect(seconds).toEqual(seconds.map((_, i) => first + i));
    const [task] = await db.query<{ total_executions: number }>(
      'select total_executions from public.agent_tasks where id = $1',
      [id],
    );
    expect(task?.total_executions).toBe(seconds.length);
  }
}

function everySecond(count: number): Promise<string[]> {
  return Promise.all(
    Array.from({ length: count }, () =>
      makeTask(db, platform, { cron_expression: '* * * * * *', overlap_policy: 'allow' }),
    ),
  );
}

function pauseAll(): Promise<unknown> {
  return db.query(`update public.agent_tasks set status = 'paused'`);
}

describe('tasks that run every second', () => {
  test('three daemons together start and execute each occurrence once', async () => {
    const daemons = await Promise.all([1, 2, 3].map(() => testDaemon(db, model, { leaseSeconds: 15 })));
    try {
      const tasks = await everySecond(3);
      await untilEach(tasks, 3);
      await pauseAll();
      await until('all runs have ended', async () =>
        (await occurrences()).every((row) => row.status === 'completed'),
      );
      await expectEverySecondOnce(tasks);
      // One request a run: nobody executed a run that another executed as well.
      expect(model.requests).toHaveLength((await occurrences()).length);
    } finally {
      await Promise.all(daemons.map((daemon) => daemon.stop()));
    }
  });
});

describe.skipIf(!onServer)('server-only: a daemon that is killed', () => {
  test('leaves no occurrence out and none twice when another goes on', async () => {
    await using first = await startDaemonProcess(db, model);
    const tasks = await everySecond(2);
    await untilEach(tasks, 2);
    await first.kill();
    const before = (await occurrences()).length;
    await using _second = await testDaemon(db, model);
    await until('the other one has gone on', async () => (await occurrences()).length >= before + 4);
    await pauseAll();
    await expectEverySecondOnce(tasks);
  });
});
