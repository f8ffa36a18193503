/** The clock of the database is set by an hour while runs are in flight. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { type TestDaemon, testDaemon } from '../support/daemon.ts';
import { shiftDatabaseClock, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, makeTask, type Platform, startRun, startTask } from '../support/platform.ts';
import { findRun, openRows, until, waitForRun } from '../support/runs.ts';
import { countBy, startShop } from '../support/shop.ts';

const HOUR_MS = 3_600_000;
/** Long enough that none lapses on a busy machine. */
const leaseSeconds = 9;

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

/** Every running run has a lease that is neither over nor longer than a worker gives. */
function untilRenewed(): Promise<true> {
  return until('all leases were renewed', async () => {
    const odd = await db.query(
      `select 1 from public.task_runs where status = 'running'
          and lease_expires_at not between agentd.now() and agentd.now() + interval '10 seconds'`,
    );
    return odd.length === 0;
  });
}

/** Each worker has said so often that the clock was set. */
function untilSeen(daemons: readonly TestDaemon[], times: number): Promise<true> {
  return until('every worker has seen it', () =>
    daemons.every(
      (daemon) => daemon.log.filter((line) => line.includes('database_clock_set')).length >= times,
    ),
  );
}

test.each([
  ['forward', HOUR_MS],
  ['back', -HOUR_MS],
])('set %s: no run changes hands, is lost, doubled or out of time, and the worker says so', async (_, ms) => {
  const { promise: later, resolve: goOn } = Promise.withResolvers<void>();
  const shop = startShop('write', () => later);
  model.respond(({ body, userText }) => {
    if (body.messages.at(-1)?.role === 'tool') return { content: 'done' };
    return userText.includes('tool')
      ? { toolCalls: [{ name: 'order', arguments: {} }] }
      : { content: 'done', delay: later };
  });
  const channel = await insert(db, 'public.chat_channels', {
    workspace_id: platform.workspaceId,
    name: 'results',
  });
  const daemons = await Promise.all(
    [1, 2].map(() =>
      testDaemon(db, model, {
        leaseSeconds,
        toolSources: [shop.source],
        env: { AGENTD_QUEUES: 'task-run=4' },
      }),
    ),
  );
  try {
    const ids: string[] = [];
    for (const marker of ['tool', 'model']) {
      const taskId = await makeTask(db, platform, { instructions: marker, target_channel_id: channel });
      for (let i = 0; i < 3; i++) ids.push(await startRun(db, taskId));
    }
    await model.waitForRequest(() => true, 6);
    await until('three tools are called', () => shop.calls.length === 3);

    await shiftDatabaseClock(db, ms);
    await untilSeen(daemons, 1);
    await untilRenewed();
    await shiftDatabaseClock(db, 0);
    await untilSeen(daemons, 2);
    await untilRenewed();
    goOn();
    for (const id of ids) {
      expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', lease_epoch: 1 });
      expect(await openRows(db, id)).toEqual([]);
    }
    expect([...shop.effects().values()]).toEqual([1, 1, 1]);
    const asked = countBy(model.requests.map((request) => request.idempotencyKey));
    expect([...asked.values()].filter((times) => times > 1)).toEqual([]);
    expect(await db.query('select 1 from public.chat_messages')).toHaveLength(6);
    expect(daemons.flatMap((d) => d.log.filter((line) => line.includes('lapsed_lease')))).toEqual([]);
  } finally {
    await Promise.all(daemons.map((daemon) => daemon.stop()));
  }
});

test('a run whose worker dies while the clock is an hour ahead is taken over when the clock is right again', async () => {
  model.respond((_, index) => (index === 0 ? { hang: true } : { content: 'taken over' }));
  const id = await startTask(db, platform, 'x');
  await shiftDatabaseClock(db, HOUR_MS);
  const first = await testDaemon(db, model);
  await model.waitForRequest();
  // As if it had died: its lease ends in an hour, and nobody renews it.
  await db.query('update public.task_runs set lease_epoch = lease_epoch + 1 where id = $1', [id]);
  await first.stop();
  expect((await findRun(db, id))?.status).toBe('running');
  await using _second = await testDaemon(db, model);
  await shiftDatabaseClock(db, 0);
  expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'taken over' } });
});

test('a task that is due in the hour that was skipped runs once, and not again when the clock is set back', async () => {
  // Three times an hour, none of them within ten minutes of now: nothing falls due while the test looks.
  const now = new Date().getUTCMinutes();
  const minutes = [10, 30, 50].map((ahead) => (now + ahead) % 60).toSorted((a, b) => a - b);
  const taskId = await makeTask(db, platform, {
    cron_expression: `${minutes.join(',')} * * * *`,
    overlap_policy: 'allow',
  });
  await using daemon = await testDaemon(db, model);
  await until('the task is planned', async () => {
    const planned = await db.query('select 1 from public.agent_tasks where next_run_at is not null');
    return planned.length > 0;
  });
  await shiftDatabaseClock(db, HOUR_MS);
  const occurrences = () =>
    db.query<{ scheduled_for: Date; status: string }>(
      'select scheduled_for, status from public.task_runs where task_id = $1 order by scheduled_for',
      [taskId],
    );
  await db.query(`select pg_notify('agentd_schedule', '')`);
  await untilSeen([daemon], 1);
  const before = await until('the due occurrence has run', async () => {
    const rows = await occurrences();
    return rows.some((row) => row.status === 'completed') ? rows : null;
  });
  expect(before.filter((row) => row.status === 'completed')).toHaveLength(1);
  expect(new Set(before.map((row) => row.scheduled_for.getTime())).size).toBe(before.length);
  await shiftDatabaseClock(db, 0);
  await untilSeen([daemon], 2);
  await db.query(`select pg_notify('agentd_schedule', '')`);
  const [{ next_run_at } = { next_run_at: null }] = await db.query<{ next_run_at: Date | null }>(
    'select next_run_at from public.agent_tasks where id = $1',
    [taskId],
  );
  expect(next_run_at?.getTime()).toBeGreaterThan(
    Math.max(...before.map((row) => row.scheduled_for.getTime())),
  );
  expect(await occurrences()).toEqual(before);
});

test('a run that waits for a month ends, and its step has a length', async () => {
  model.respond((_, index) =>
    index === 0 ? { status: 429, headers: { 'retry-after-ms': '60000' } } : { content: 'at last' },
  );
  await using daemon = await testDaemon(db, model, { leaseSeconds });
  const id = await startTask(db, platform, 'x', { timeout_seconds: 100 * 86_400 });
  await waitForRun(db, id, ['waiting']);
  await shiftDatabaseClock(db, 30 * 24 * HOUR_MS);
  expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'at last' } });
  const steps = await db.query('select duration_ms from public.task_step_runs where run_id = $1', [id]);
  // As much as the column holds: 24.8 days.
  expect(steps).toEqual([{ duration_ms: 2 ** 31 - 1 }]);
  expect(daemon.log.filter((line) => line.includes('journal_refused'))).toEqual([]);
});
