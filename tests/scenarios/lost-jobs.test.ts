/** Runs whose job is dead, or is held by a worker that is gone: found within seconds, not when the job expires. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { admitArrivals } from '../../src/db/jobs.ts';
import { reconcileLeases, reconcileRest } from '../../src/services/reconciler.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform, makeTask, type Platform, startRun, startTask } from '../support/platform.ts';
import { findRun, jobOutcomes, modelCalls, openRows, stepRuns, until, waitForRun } from '../support/runs.ts';
import { parts } from '../support/schedule.ts';

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

const reconcile = (): Promise<void> => reconcileRest({ db, ...parts });

/** As if the runs had been there for a minute: repairs leave what is new to the ordinary ways. */
function age(): Promise<unknown> {
  return db.query(`update public.task_runs set created_at = created_at - interval '1 minute'`);
}

/** A worker has fetched the run's job so long ago, and was never heard of again. */
async function fetched(id: string, secondsAgo: number): Promise<void> {
  const jobs = await db.query(
    `update pgboss.job set state = 'active', started_on = agentd.now() - make_interval(secs => $2)
      where name = 'task-run' and singleton_key = $1 returning id`,
    [id, secondsAgo],
  );
  expect(jobs).toHaveLength(1);
}

function jobs(id: string): Promise<{ id: string; state: string }[]> {
  return db.query(
    `select id, state from pgboss.job where name = 'task-run' and singleton_key = $1 order by created_on`,
    [id],
  );
}

async function deadLetters(): Promise<number> {
  const [row] = await db.query<{ n: number }>(
    `select count(*)::integer as n from pgboss.job where name = 'task-run-failed'`,
  );
  return row?.n ?? -1;
}

async function expectCompletedByTheNext(id: string, epoch: number): Promise<void> {
  model.respond(() => ({ content: 'found' }));
  await using _daemon = await testDaemon(db, model);
  expect(await waitForRun(db, id)).toMatchObject({
    status: 'completed',
    output: { text: 'found' },
    lease_epoch: epoch,
  });
}

describe('a worker that died between the fetch and the claim', () => {
  async function fetchedRun(secondsAgo: number): Promise<string> {
    const id = await startTask(db, platform, 'x');
    expect(await admitArrivals(db)).toBe(1);
    await age();
    await fetched(id, secondsAgo);
    return id;
  }

  test('more than 30 s ago: its run gets a new job and is executed', async () => {
    const id = await fetchedRun(31);
    const [old] = await jobs(id);
    await reconcile();
    const now = await jobs(id);
    expect(now).toMatchObject([{ state: 'created' }]);
    expect(now[0]?.id).not.toBe(old?.id);
    expect((await findRun(db, id))?.job_id).toBe(now[0]?.id);
    await expectCompletedByTheNext(id, 1);
    expect(model.requests).toHaveLength(1);
  });

  test('a moment ago: its job is left alone, the claim may be under way', async () => {
    const id = await fetchedRun(20);
    const before = await jobs(id);
    await reconcile();
    expect(await jobs(id)).toEqual(before);
    expect(before).toMatchObject([{ state: 'active' }]);
  });

  test('the job of a run that is running is left alone, however old', async () => {
    model.respond(() => ({ hang: true }));
    await using _daemon = await testDaemon(db, model);
    const id = await startTask(db, platform, 'x');
    await model.waitForRequest();
    await age();
    await fetched(id, 3_600);
    const before = await jobs(id);
    await reconcile();
    expect(await jobs(id)).toEqual(before);
    expect(await findRun(db, id)).toMatchObject({ status: 'running', lease_epoch: 1 });
  });
});

describe('a worker that died between its last checkpoint and the settlement of the job', () => {
  test('of a run that it had handed back: the run gets a new job', async () => {
    model.respond(() => ({ hang: true }));
    const id = await startTask(db, platform, 'x');
    const first = await testDaemon(db, model);
    await model.waitForRequest();
    await first.stop();
    await age();
    await fetched(id, 31);
    await reconcile();
    expect(await jobs(id)).toMatchObject([{ state: 'created' }]);
    await expectCompletedByTheNext(id, 2);
  });

  test('of a run that waits: it is woken when its time has come', async () => {
    model.respond(() => ({ status: 429, headers: { 'retry-after-ms': '60000' } }));
    const id = await startTask(db, platform, 'x');
    const first = await testDaemon(db, model);
    await waitForRun(db, id, ['waiting']);
    await first.stop();
    await db.query('delete from pgboss.job');
    // The job as it was while the worker had it.
    await db.query(
      `select agentd.enqueue('task-run', jsonb_build_object('run_id', $1::uuid), $1::text, $2, null)`,
      [id, platform.workspaceId],
    );
    await age();
    await fetched(id, 31);
    await db.query('update agentd.rate_limits set blocked_until = null');
    await db.query(`update public.task_runs set wake_at = agentd.now() - interval '1 second'`);
    await reconcileLeases({ db, ...parts });
    await reconcile();
    await admitArrivals(db);
    await reconcile();
    expect(await jobs(id)).toMatchObject([{ state: 'created' }]);
    await expectCompletedByTheNext(id, 2);
  });
});

describe('a run whose job is dead', () => {
  /** From now on no worker can read the job. */
  const spoil = (): Promise<unknown> =>
    db.query(`update pgboss.job set data = '{"run_id": "seventeen"}' where name = 'task-run'`);

  test('ends as failed with the reason, and makes no more dead letters', async () => {
    const id = await startTask(db, platform, 'x');
    expect(await admitArrivals(db)).toBe(1);
    await spoil();
    await age();
    await using _daemon = await testDaemon(db, model);
    await until('the job is dead', async () => (await deadLetters()) > 0);
    await reconcile();
    const run = await waitForRun(db, id);
    expect(run).toMatchObject({ status: 'failed', reason_code: 'job_failed', wake_at: null });
    expect(run.reason).toMatch(/payload/);
    expect(run.finished_at).not.toBeNull();
    expect(await openRows(db, id)).toEqual([]);
    for (let pass = 0; pass < 3; pass++) await reconcile();
    expect(await findRun(db, id)).toEqual(run);
    expect(await deadLetters()).toBe(1);
    expect(model.requests).toEqual([]);
  });

  test('leaves no call and no step open that an earlier worker had begun', async () => {
    model.respond((_, index) => (index === 0 ? { content: 'one' } : { hang: true }));
    const id = await startTask(db, platform, 'x', {}, [{}, {}]);
    const first = await testDaemon(db, model);
    await model.waitForRequest(() => true, 2);
    await first.stop();
    expect(await openRows(db, id)).not.toEqual([]);
    await spoil();
    await age();
    await using _second = await testDaemon(db, model);
    await until('the job is dead', async () => (await deadLetters()) > 0);
    await reconcile();
    expect(await waitForRun(db, id)).toMatchObject({ status: 'failed', reason_code: 'job_failed', turns: 1 });
    expect(await openRows(db, id)).toEqual([]);
    expect((await stepRuns(db, id)).map((s) => s.status)).toEqual(['completed', 'failed']);
    expect(await modelCalls(db, id)).toMatchObject([
      { status: 'completed' },
      { status: 'failed', error_code: 'job_failed' },
    ]);
    expect(model.requests).toHaveLength(2);
  });

  test('gives its place to the next run of its workspace', async () => {
    await db.query('update agentd.queue_settings set workspace_ceiling = 1');
    const taskId = await makeTask(db, platform);
    const dead = await startRun(db, taskId);
    const next = await startRun(db, taskId);
    expect(await admitArrivals(db)).toBe(1);
    await spoil();
    await age();
    await using _daemon = await testDaemon(db, model);
    await until('the job is dead', async () => (await deadLetters()) > 0);
    await reconcile();
    expect((await waitForRun(db, dead)).reason_code).toBe('job_failed');
    expect(await waitForRun(db, next)).toMatchObject({ status: 'completed' });
    await until('its job is settled', async () => (await jobOutcomes(db, next)).length > 0);
    expect(await jobOutcomes(db, next)).toEqual(['completed']);
  });
});
