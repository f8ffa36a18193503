/** One database, one model server and one daemon for all tests of a file. */
import { afterAll, afterEach, beforeAll, beforeEach, expect } from 'vitest';
import { type ModelServer, type ModelServerOptions, startModelServer } from '../peers/model-server.ts';
import { type TestDaemon, type TestDaemonOptions, testDaemon } from './daemon.ts';
import { type TestDatabase, testDatabase } from './database.ts';
import { makePlatform, type Platform } from './platform.ts';
import { openRows, type Run, until, waitForRun } from './runs.ts';

export let db: TestDatabase;
export let model: ModelServer;
export let daemon: TestDaemon;
export let platform: Platform;

/**
 * Starts them before the first test. Before each test the model forgets its requests and answers `answer`;
 * after each test it must have refused nothing by itself.
 */
export function useDaemon(options: { model?: ModelServerOptions; daemon?: TestDaemonOptions } = {}): void {
  beforeAll(async () => {
    db = await testDatabase();
    model = await startModelServer(options.model);
    platform = await makePlatform(db);
    // The leases of production: a busy machine does not make them lapse while a test holds a run.
    daemon = await testDaemon(db, model, { leaseSeconds: 15, ...options.daemon });
  });
  afterAll(async () => {
    await daemon?.stop();
    await model?.close();
    await db?.dispose();
  });
  beforeEach(() => {
    model.requests.length = 0;
    model.rejected.length = 0;
    model.respond(() => ({ content: 'answer' }));
  });
  afterEach(() => {
    expect(model.rejected).toEqual([]);
  });
}

/** The run failed with this code before anything was asked, and none of its rows is open. */
export async function expectRefused(id: string, code: string, sentence: RegExp): Promise<Run> {
  const run = await waitForRun(db, id);
  expect(run).toMatchObject({ status: 'failed', reason_code: code, lease_epoch: 1 });
  expect(run.reason).toMatch(sentence);
  expect(model.requests).toEqual([]);
  expect(await openRows(db, id)).toEqual([]);
  return run;
}

/** From now on the model answers when released. */
export function holdAnswers(): { release(): void } {
  const { promise, resolve } = Promise.withResolvers<void>();
  model.respond(() => ({ content: 'held', delay: promise }));
  return { release: resolve };
}

/** The daemon holds no job any more: whatever it was going to write, it has. */
export function untilIdle(on: TestDatabase = db): Promise<true> {
  return until('no job is active', async () => {
    const active = await on.query(`select 1 from pgboss.job where name = 'task-run' and state = 'active'`);
    return active.length === 0;
  });
}

/** A daemon on a database of its own, with the same model server. */
export async function daemonOfItsOwn(
  env: Record<string, string>,
  options: Omit<TestDaemonOptions, 'env'> = {},
) {
  const database = await testDatabase();
  const owner = await makePlatform(database);
  const worker = await testDaemon(database, model, { env, ...options });
  return {
    db: database,
    owner,
    async [Symbol.asyncDispose]() {
      await worker.stop();
      await database.dispose();
    },
  };
}

/** No run was executed twice and no job spent an attempt: both would hide a fault behind a repair. */
export async function expectNoRepairs(): Promise<void> {
  expect(
    await db.query(
      `select id, lease_epoch from public.task_runs where status in ('completed', 'failed') and lease_epoch <> 1`,
    ),
  ).toEqual([]);
  expect(await db.query(`select * from agentd.job_runs where outcome in ('retry', 'failed')`)).toEqual([]);
}
