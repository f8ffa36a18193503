/** Runs that leave their worker in good order, to wait for a provider or for another worker. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { reconcileLeases, reconcileRest } from '../../src/services/reconciler.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { untilIdle } from '../support/one-daemon.ts';
import { makeAgent, makePlatform, makeTask, type Platform, startTask } from '../support/platform.ts';
import { findRun, modelCalls, openRows, until, waitForRun } from '../support/runs.ts';
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

const limited = { status: 429, headers: { 'retry-after-ms': '60000' } };

/** Its time has come for every run that waits, and the provider may be asked again. */
async function wakeAll(): Promise<void> {
  await db.query('update agentd.rate_limits set blocked_until = null');
  await db.query(
    `update public.task_runs set wake_at = agentd.now() - interval '1 second' where status = 'waiting'`,
  );
  await reconcileLeases({ db, ...parts });
}

describe('a run that leaves its worker in good order is not taken for one that ruins its workers', () => {
  test('however often a provider makes it wait', async () => {
    const limits = 12;
    model.respond((_, index) => (index < limits ? limited : { content: 'at last' }));
    await using _daemon = await testDaemon(db, model, { leaseSeconds: 15 });
    const id = await startTask(db, platform, 'x', { timeout_seconds: 3_600 });
    for (let n = 1; n <= limits; n++) {
      await model.waitForRequest(() => true, n);
      const run = await waitForRun(db, id, ['waiting', 'failed']);
      expect(run).toMatchObject({ status: 'waiting', reason_code: 'rate_limit', job_id: null });
      await untilIdle(db);
      await wakeAll();
    }
    expect(await waitForRun(db, id)).toMatchObject({
      status: 'completed',
      output: { text: 'at last' },
      lease_epoch: limits + 1,
      turns: 1,
    });
    expect(model.requests).toHaveLength(limits + 1);
    expect(new Set(model.requests.map((r) => r.idempotencyKey)).size).toBe(1);
    expect(await modelCalls(db, id)).toMatchObject([{ status: 'completed', attempt: limits + 1 }]);
    expect(await openRows(db, id)).toEqual([]);
  });

  test('however often its worker is drained', async () => {
    const drains = 10;
    model.respond(() => ({ hang: true }));
    const id = await startTask(db, platform, 'x');
    for (let n = 1; n <= drains; n++) {
      const daemon = await testDaemon(db, model, { leaseSeconds: 15 });
      await model.waitForRequest(() => true, n);
      await daemon.stop();
      expect(await findRun(db, id)).toMatchObject({ status: 'queued', lease_epoch: n });
    }
    model.respond(() => ({ content: 'at last' }));
    await using _last = await testDaemon(db, model, { leaseSeconds: 15 });
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', lease_epoch: drains + 1 });
    expect(new Set(model.requests.map((r) => r.idempotencyKey)).size).toBe(1);
  });
});

describe('a run that waits for its provider', () => {
  test('has no job, and takes no place of its workspace', async () => {
    model.respond(({ userText }) => (userText === 'limited' ? limited : { content: 'free' }));
    await using _daemon = await testDaemon(db, model);
    await db.query('update agentd.queue_settings set workspace_ceiling = 1');
    const id = await startTask(db, platform, 'limited');
    expect(await waitForRun(db, id, ['waiting'])).toMatchObject({ job_id: null });
    await untilIdle(db);
    expect(
      await db.query(`select 1 from pgboss.job where singleton_key = $1 and state < 'completed'`, [id]),
    ).toEqual([]);
    // of a model that is not limited
    const agentId = await makeAgent(db, platform, { model: 'gpt-4o' });
    const other = await startTask(db, { ...platform, agentId }, 'other');
    expect((await waitForRun(db, other)).output?.text).toBe('free');
    expect((await findRun(db, id))?.status).toBe('waiting');
  });

  test('is woken by any daemon when its time has come', async () => {
    model.respond(() => limited);
    const first = await testDaemon(db, model);
    const id = await startTask(db, platform, 'x');
    await waitForRun(db, id, ['waiting']);
    await first.stop();
    model.respond(() => ({ content: 'woken' }));
    await db.query('update agentd.rate_limits set blocked_until = null');
    await db.query(`update public.task_runs set wake_at = agentd.now() + interval '1 second'`);
    await using _second = await testDaemon(db, model);
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', lease_epoch: 2 });
  });
});

describe('many runs of one workspace that wake at the same moment', () => {
  const CEILING = 4;

  /** The most runs of the workspace that were running or let in, as each transaction saw them at its end. */
  async function watchPlaces(): Promise<() => Promise<number>> {
    await db.query(`
      create table public.places (taken integer not null);
      create function public.count_places() returns trigger language plpgsql security definer as $$
      begin
        insert into public.places
        select count(*) from public.task_runs
         where workspace_id = '${platform.workspaceId}'
           and (status = 'running' or (status = 'queued' and job_id is not null));
        return null;
      end $$;
      create trigger count_places after insert or update on public.task_runs
        for each statement execute function public.count_places();
    `);
    return async () => {
      const [row] = await db.query<{ most: number }>('select max(taken) as most from public.places');
      return row?.most ?? 0;
    };
  }

  test('are let in as their ceiling allows, and another tenant’s run is not behind them', async () => {
    const taskId = await makeTask(db, platform, { instructions: 'many' });
    const other = await makePlatform(db);
    let isLimited = true;
    let under = 0;
    let most = 0;
    const held: (() => void)[] = [];
    model.respond(async ({ userText }) => {
      if (userText !== 'many') return { content: 'foreign' };
      if (isLimited) return limited;
      most = Math.max(most, ++under);
      await new Promise<void>((resolve) => held.push(resolve));
      under--;
      return { content: 'done' };
    });
    // As many slots as two ceilings: without the ceiling the workspace would fill them.
    await using _daemon = await testDaemon(db, model, {
      env: { AGENTD_QUEUES: `task-run=${2 * CEILING}` },
      leaseSeconds: 30,
    });
    await db.query('update agentd.queue_settings set workspace_ceiling = $1', [CEILING]);
    const runs = 3 * CEILING;
    await db.query('insert into public.task_runs (task_id) select $1 from generate_series(1, $2)', [
      taskId,
      runs,
    ]);
    await until('all of them wait', async () => {
      const [row] = await db.query<{ n: number }>(
        `select count(*)::integer as n from public.task_runs where task_id = $1 and status = 'waiting'`,
        [taskId],
      );
      return row?.n === runs;
    });
    await untilIdle(db);

    isLimited = false;
    const mostPlaces = await watchPlaces();
    await wakeAll();
    await until('the ceiling is reached', () => held.length === CEILING);
    // What is let in beside them would be by now: the repairs have looked as well.
    await reconcileRest({ db, ...parts });
    const foreign = await waitForRun(db, await startTask(db, other, 'foreign'));
    expect(foreign).toMatchObject({ status: 'completed', output: { text: 'foreign' } });
    expect(under).toBe(CEILING);

    const finished = async (): Promise<number> => {
      const [row] = await db.query<{ n: number }>(
        `select count(*)::integer as n from public.task_runs where task_id = $1 and status = 'completed'`,
        [taskId],
      );
      return row?.n ?? 0;
    };
    await until('all of them have ended', async () => {
      for (const release of held.splice(0)) release();
      return (await finished()) === runs;
    });
    expect(most).toBeLessThanOrEqual(CEILING);
    expect(await mostPlaces()).toBe(CEILING);
  });

  test('and that several daemons wake together are let in once', async () => {
    const taskId = await makeTask(db, platform, { instructions: 'many' });
    let isLimited = true;
    let under = 0;
    let most = 0;
    const held: (() => void)[] = [];
    model.respond(async () => {
      if (isLimited) return limited;
      most = Math.max(most, ++under);
      await new Promise<void>((resolve) => held.push(resolve));
      under--;
      return { content: 'done' };
    });
    const daemons = await Promise.all([1, 2, 3].map(() => testDaemon(db, model, { leaseSeconds: 30 })));
    try {
      await db.query('update agentd.queue_settings set workspace_ceiling = $1', [CEILING]);
      const runs = 3 * CEILING;
      await db.query('insert into public.task_runs (task_id) select $1 from generate_series(1, $2)', [
        taskId,
        runs,
      ]);
      const inState = async (status: string): Promise<number> => {
        const [row] = await db.query<{ n: number }>(
          `select count(*)::integer as n from public.task_runs where task_id = $1 and status = $2`,
          [taskId, status],
        );
        return row?.n ?? 0;
      };
      await until('all of them wait', async () => (await inState('waiting')) === runs);
      await untilIdle(db);
      const limited = model.requests.length;
      isLimited = false;
      const mostPlaces = await watchPlaces();
      await wakeAll();
      await until('all of them have ended', async () => {
        for (const release of held.splice(0)) release();
        return (await inState('completed')) === runs;
      });
      expect(most).toBeLessThanOrEqual(CEILING);
      expect(await mostPlaces()).toBeLessThanOrEqual(CEILING);
      const epochs = await db.query('select lease_epoch from public.task_runs where lease_epoch <> 2');
      expect(epochs).toEqual([]);
      expect(model.requests).toHaveLength(limited + runs);
    } finally {
      await Promise.all(daemons.map((daemon) => daemon.stop()));
    }
  });
});
