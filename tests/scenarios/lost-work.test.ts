import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { admitArrivals } from '../../src/db/jobs.ts';
import { claimRuns } from '../../src/db/runs.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform, makeTask, type Platform, startRun, startTask } from '../support/platform.ts';
import { findRun, openRows, stepRuns, waitForRun } from '../support/runs.ts';

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

/** As if the runs had been there for a minute: repairs leave what is new to the ordinary ways. */
function age(): Promise<unknown> {
  return db.query(`update public.task_runs set created_at = created_at - interval '1 minute'`);
}

describe('what was lost on the way is found', () => {
  test('a queued run whose job is gone', async () => {
    const id = await startTask(db, platform, 'x');
    expect(await admitArrivals(db)).toBe(1);
    await db.query('delete from pgboss.job');
    await age();
    await using _daemon = await testDaemon(db, model);
    expect((await waitForRun(db, id)).status).toBe('completed');
  });

  test('a run that was left waiting although there is room', async () => {
    const id = await startTask(db, platform, 'x');
    await db.query('update public.task_runs set is_parked = true, job_id = null');
    await age();
    await using _daemon = await testDaemon(db, model);
    expect((await waitForRun(db, id)).status).toBe('completed');
  });

  test('a waiting run whose job is gone is woken when its time has come', async () => {
    model.respond(() => ({ status: 429, headers: { 'retry-after-ms': '60000' } }));
    const first = await testDaemon(db, model);
    const id = await startTask(db, platform, 'x');
    await waitForRun(db, id, ['waiting']);
    await first.stop();
    await db.query('delete from pgboss.job');
    await db.query('update agentd.rate_limits set blocked_until = null');
    await db.query(`update public.task_runs set wake_at = agentd.now() - interval '1 second'`);
    await age();
    model.respond(() => ({ content: 'awake' }));
    await using _second = await testDaemon(db, model);
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'awake' } });
  });

  test('serial runs that nobody has let in follow each other', async () => {
    const taskId = await makeTask(db, platform, { overlap_policy: 'queue' });
    for (const hour of [1, 2, 3]) {
      await db.query(
        `insert into public.task_runs (task_id, trigger, scheduled_for) values ($1, 'schedule', $2)`,
        [taskId, `2026-01-01T0${hour}:00:00Z`],
      );
    }
    let under = 0;
    let most = 0;
    model.respond(async () => {
      most = Math.max(most, ++under);
      await new Promise((resolve) => setImmediate(resolve));
      under--;
      return { content: 'x' };
    });
    await using _daemon = await testDaemon(db, model);
    const runs = await db.query<{ id: string }>('select id from public.task_runs order by scheduled_for');
    for (const { id } of runs) expect((await waitForRun(db, id)).status).toBe('completed');
    const ended = await db.query<{ hour: number }>(
      `select extract(hour from scheduled_for at time zone 'UTC')::integer as hour from public.task_runs order by finished_at`,
    );
    expect(ended.map((row) => row.hour)).toEqual([1, 2, 3]);
    expect(most).toBe(1);
  });
});

describe('a run that keeps killing its worker', () => {
  test('is given up with a reason after a bounded number of claims', async () => {
    const id = await startRun(db, await makeTask(db, platform));
    await admitArrivals(db);
    let claims = 0;
    for (; claims < 8; claims++) {
      const [claimed] = await claimRuns(db, [id], `worker ${claims}`, 15);
      if (!claimed || 'refused' in claimed) throw new Error('The run was not claimed.');
      await db.query(
        `update public.task_runs set lease_expires_at = agentd.now() - interval '1 second' where id = $1`,
        [id],
      );
    }
    await using _daemon = await testDaemon(db, model);
    const run = await waitForRun(db, id);
    expect(run).toMatchObject({ status: 'failed', reason_code: 'worker_crashed' });
    expect(run.reason).toMatch(/^8 workers/);
    expect(await openRows(db, id)).toEqual([]);
    expect(model.requests).toEqual([]);
  });

  test('workers that got further do not count', async () => {
    model.respond((_, index) => (index < 2 ? { content: 'part' } : { hang: true }));
    const id = await startTask(db, platform, 'x', {}, [{}, {}, {}]);
    const first = await testDaemon(db, model);
    await model.waitForRequest(() => true, 3);
    await first.stop();
    const [row] = await db.query<{ claims_without_progress: number }>(
      'select claims_without_progress from public.task_runs where id = $1',
      [id],
    );
    expect(row?.claims_without_progress).toBe(0);
    expect((await stepRuns(db, id)).map((s) => s.status)).toEqual(['completed', 'completed', 'running']);
    expect((await findRun(db, id))?.status).toBe('queued');
  });
});
