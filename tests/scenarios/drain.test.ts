import { once } from 'node:events';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { startDaemonProcess, testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform, type Platform, startTask } from '../support/platform.ts';
import { findRun, jobOutcomes, modelCalls, openRows, stepRuns, waitForRun } from '../support/runs.ts';

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

const twoSteps = [{ instructions: 'First part.' }, { instructions: 'Second part.' }];

/** The run is back in the queue with everything it had, and its job with all of its retries. */
async function expectHandedBack(id: string): Promise<void> {
  expect(await findRun(db, id)).toMatchObject({ status: 'queued', finished_at: null, turns: 1 });
  expect(await jobOutcomes(db, id)).toEqual(['handed_back']);
  const jobs = await db.query(
    `select j.state, j.retry_count, j.retry_limit = q.retry_limit as all_retries
       from pgboss.job j join pgboss.queue q on q.name = j.name join public.task_runs r on r.job_id = j.id
      where r.id = $1`,
    [id],
  );
  expect(jobs).toEqual([{ state: 'created', retry_count: 0, all_retries: true }]);
}

/** Another worker ends it, without asking again for what was answered. */
async function expectCompletedByTheNext(id: string): Promise<void> {
  model.respond(() => ({ content: 'two' }));
  await using _next = await testDaemon(db, model);
  expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'two' }, turns: 2 });
  const [one, two] = await modelCalls(db, id);
  const keys = model.requests.map((r) => r.idempotencyKey);
  expect(keys).toEqual([one?.idempotency_key, two?.idempotency_key, two?.idempotency_key]);
  expect((await stepRuns(db, id)).map((s) => s.attempt)).toEqual([1, 1]);
  expect(await openRows(db, id)).toEqual([]);
}

function holdSecondPart(): void {
  model.respond(({ userText }) => (userText.includes('Second part.') ? { hang: true } : { content: 'one' }));
}

describe('a drain', () => {
  test('hands a run in the middle of a model call back, and the next worker goes on where it was', async () => {
    holdSecondPart();
    const first = await testDaemon(db, model);
    const id = await startTask(db, platform, 'x', {}, twoSteps);
    const request = await model.waitForRequest((r) => r.userText.includes('Second part.'));
    const before = performance.now();
    await first.stop();
    // Below the grace that is given to handlers which do not come back.
    expect(performance.now() - before).toBeLessThan(5_000);
    expect(await request.finished).toBe(true);
    await expectHandedBack(id);
    await expectCompletedByTheNext(id);
  });

  test('with patience lets a run end and fetches no other', async () => {
    const { promise, resolve } = Promise.withResolvers<void>();
    model.respond(() => ({ content: 'in time', delay: promise }));
    const daemon = await testDaemon(db, model, {
      env: { AGENTD_DRAIN_SECONDS: '20', AGENTD_QUEUES: 'task-run=1' },
    });
    const id = await startTask(db, platform, 'running');
    await model.waitForRequest();
    const other = await startTask(db, platform, 'waits');
    const stopped = daemon.stop();
    resolve();
    await stopped;
    expect(await findRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'in time' } });
    expect(await jobOutcomes(db, id)).toEqual(['completed']);
    expect((await findRun(db, other))?.status).toBe('queued');
    expect(model.requests).toHaveLength(1);
  });

  test('can be asked for twice, and leaves no worker behind that looks alive', async () => {
    const daemon = await testDaemon(db, model);
    await Promise.all([daemon.stop(), daemon.stop()]);
    await daemon.stopped;
    const workers = await db.query('select state, running from agentd.workers');
    expect(workers).toEqual([{ state: 'stopped', running: 0 }]);
    expect(await db.query('select 1 from agentd.sleepers')).toEqual([]);
  });
});

describe.skipIf(!onServer)('server-only: SIGTERM', () => {
  test('ends the process with 0 after its runs were handed back', async () => {
    holdSecondPart();
    await using worker = await startDaemonProcess(db, model);
    const id = await startTask(db, platform, 'x', {}, twoSteps);
    await model.waitForRequest((r) => r.userText.includes('Second part.'));
    const exit = once(worker.child, 'exit');
    worker.child.kill('SIGTERM');
    expect(await exit).toEqual([0, null]);
    await expectHandedBack(id);
    await expectCompletedByTheNext(id);
  });
});
