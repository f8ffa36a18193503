import type { PgBoss } from 'pg-boss';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Consumer } from '../../src/queue/consumer.ts';
import { PermanentError, snooze } from '../../src/queue/errors.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { consumer, enqueue, outcomes, startBoss } from './support.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase({ max: 8 });
});
afterAll(() => db?.dispose());

const until = { timeout: 15_000, interval: 5 };

test('every job is done once, and never more at a time than the concurrency', async () => {
  const boss = await startBoss(db, 'many');
  const keys = Array.from({ length: 60 }, (_, i) => `k${i}`);
  for (const key of keys) await enqueue(db, 'many', key);
  const done: string[] = [];
  let running = 0;
  let most = 0;
  const worker = consumer(db, boss, 'many', async ({ key }) => {
    most = Math.max(most, ++running);
    await new Promise(setImmediate);
    running--;
    done.push(key);
    return undefined;
  });
  worker.start();
  await expect.poll(() => done.length, until).toBe(60);
  await worker.drain(1000);
  expect(done.toSorted()).toEqual(keys.toSorted());
  expect(most).toBeLessThanOrEqual(4);
  expect(await outcomes(db, 'many')).toEqual(keys.map(() => 'completed'));
  const jobs = await db.query<{ state: string }>(`select distinct state from pgboss.job where name = 'many'`);
  expect(jobs).toEqual([{ state: 'completed' }]);
  await boss.stop({ graceful: false });
});

describe('a job that waits for others lends its slot', () => {
  type Waiting = { key: string; end: () => void };
  /** Jobs named `waits …` lend twice and wait for their end; the others are done at once. */
  const lender = (boss: PgBoss, queue: string, lends: number) => {
    const seen = { waiting: [] as Waiting[], done: [] as string[], most: 0 };
    const worker: Consumer = consumer(
      db,
      boss,
      queue,
      async ({ key }, { lendSlot }) => {
        seen.most = Math.max(seen.most, worker.running);
        if (key.startsWith('waits')) {
          lendSlot();
          // once more is no other slot
          lendSlot();
          await new Promise<void>((end) => seen.waiting.push({ key, end }));
        }
        seen.done.push(key);
        return undefined;
      },
      { concurrency: 1 },
      50,
      lends,
    );
    return { seen, worker };
  };

  test('to one other, and has it back when it ends', async () => {
    const boss = await startBoss(db, 'lending');
    const { seen, worker } = lender(boss, 'lending', 3);
    const others = ['a', 'b', 'c', 'd'];
    for (const key of ['waits', ...others]) await enqueue(db, 'lending', key);
    worker.start();
    await expect.poll(() => seen.done.toSorted(), until).toEqual(others);
    expect(seen.most).toBe(2);
    seen.most = 0;
    seen.waiting[0]?.end();
    await expect.poll(() => worker.running, until).toBe(0);
    for (const key of others) await enqueue(db, 'lending', `${key} again`);
    await expect.poll(() => seen.done.length, until).toBe(9);
    expect(seen.most).toBe(1);
    await worker.drain(1_000);
    await boss.stop({ graceful: false });
  });

  test('as far as its queue allows, and later where others have lent theirs', async () => {
    const boss = await startBoss(db, 'lending-much');
    const { seen, worker } = lender(boss, 'lending-much', 2);
    for (let i = 0; i < 6; i++) await enqueue(db, 'lending-much', `waits ${i}`);
    worker.start();
    // the third has no slot to lend until one of the others ends; then it gives its own to one that waits for it
    for (let ended = 0; ended < 6; ended++) {
      await expect.poll(() => seen.waiting.length, until).toBe(Math.min(6, ended + 3));
      seen.waiting[ended]?.end();
      await expect.poll(() => seen.done.length, until).toBe(ended + 1);
    }
    expect(seen.most).toBe(3);
    await worker.drain(1_000);
    await boss.stop({ graceful: false });
  });

  test('but not to a paused queue', async () => {
    const boss = await startBoss(db, 'lending-paused');
    const { promise: paused, resolve: pause } = Promise.withResolvers<void>();
    const { promise: ended, resolve: end } = Promise.withResolvers<void>();
    const done: string[] = [];
    const worker = consumer(
      db,
      boss,
      'lending-paused',
      async ({ key }, { lendSlot }) => {
        if (key === 'waits') {
          await paused;
          lendSlot();
          await ended;
        }
        done.push(key);
        return undefined;
      },
      { concurrency: 1 },
      50,
      1,
    );
    await enqueue(db, 'lending-paused', 'waits');
    worker.start();
    await expect.poll(() => worker.running, until).toBe(1);
    worker.setPaused(true);
    await enqueue(db, 'lending-paused', 'other');
    pause();
    end();
    await expect.poll(() => worker.running, until).toBe(0);
    expect(done).toEqual(['waits']);
    worker.setPaused(false);
    await expect.poll(() => done, until).toEqual(['waits', 'other']);
    await worker.drain(1_000);
    await boss.stop({ graceful: false });
  });
});

test('a job that fails is retried as often as the queue says, then goes to the dead letters', async () => {
  const boss = await startBoss(db, 'failing');
  let calls = 0;
  const worker = consumer(db, boss, 'failing', async () => {
    calls++;
    throw new Error('no luck');
  });
  await enqueue(db, 'failing', 'x');
  worker.start();
  await expect.poll(() => outcomes(db, 'failing'), until).toEqual(['retry', 'retry', 'failed']);
  await worker.drain(1000);
  expect(calls).toBe(3);
  const dead = await db.query<{ source_name: string; output: unknown }>(
    `select source_name, data from pgboss.job where name = 'failing-failed'`,
  );
  expect(dead).toMatchObject([{ source_name: 'failing', data: { key: 'x' } }]);
  const [run] = await db.query<{ error: unknown }>(
    `select error from agentd.job_runs where queue = 'failing' limit 1`,
  );
  expect(run?.error).toEqual({ code: 'Error', message: 'no luck' });
  await boss.stop({ graceful: false });
});

test('a permanent error and a payload that the queue does not know go to the dead letters at once', async () => {
  const boss = await startBoss(db, 'permanent');
  const worker = consumer(db, boss, 'permanent', async () => {
    throw new PermanentError('gone', 'it is gone');
  });
  await enqueue(db, 'permanent', 'x');
  await db.query(`select agentd.enqueue('permanent', '{"other": 1}', 'y', null, null)`);
  worker.start();
  await expect.poll(() => outcomes(db, 'permanent'), until).toEqual(['failed', 'failed']);
  await worker.drain(1000);
  const [dead] = await db.query<{ count: number }>(
    `select count(*) from pgboss.job where name = 'permanent-failed'`,
  );
  expect(dead?.count).toBe(2);
  const codes = await db.query<{ code: string }>(
    `select error ->> 'code' as code from agentd.job_runs where queue = 'permanent' order by 1`,
  );
  expect(codes.map((row) => row.code)).toEqual(['bad_payload', 'gone']);
  await boss.stop({ graceful: false });
});

test('a snoozed job runs again later, under its own id, with all its retries', async () => {
  const boss = await startBoss(db, 'snoozing');
  let calls = 0;
  const worker = consumer(db, boss, 'snoozing', async () => (++calls < 5 ? snooze(20) : undefined));
  const id = await enqueue(db, 'snoozing', 'x');
  worker.start();
  await expect
    .poll(() => outcomes(db, 'snoozing'), until)
    .toEqual(['snoozed', 'snoozed', 'snoozed', 'snoozed', 'completed']);
  await worker.drain(1000);
  const [job] = await db.query<{ id: string; retry_count: number; retry_limit: number }>(
    `select id, retry_count, retry_limit, singleton_key from pgboss.job where name = 'snoozing'`,
  );
  expect(job).toEqual({ id, retry_count: 0, retry_limit: 2, singleton_key: 'x' });
  await boss.stop({ graceful: false });
});

test('a drain waits for what runs, then aborts it and hands it back without spending an attempt', async () => {
  const boss = await startBoss(db, 'draining');
  const started = Promise.withResolvers<void>();
  const worker = consumer(
    db,
    boss,
    'draining',
    (_, { signal }) =>
      new Promise((_resolve, reject) => {
        signal.addEventListener('abort', () => reject(signal.reason));
        started.resolve();
      }),
    { concurrency: 1 },
  );
  await enqueue(db, 'draining', 'x');
  await enqueue(db, 'draining', 'y');
  worker.start();
  await started.promise;
  await worker.drain(10);
  expect(await outcomes(db, 'draining')).toContain('handed_back');
  const jobs = await db.query<{ state: string; retry_count: number }>(
    `select state, retry_count, retry_limit from pgboss.job where name = 'draining'`,
  );
  expect(jobs).toEqual([
    { state: 'created', retry_count: 0, retry_limit: 2 },
    { state: 'created', retry_count: 0, retry_limit: 2 },
  ]);
  expect(await db.query(`select 1 from agentd.sleepers where queue = 'draining'`)).toEqual([]);
  await boss.stop({ graceful: false });
});

test('a worker that lost its job changes nothing, and its row says so', async () => {
  const boss = await startBoss(db, 'stolen');
  const started = Promise.withResolvers<void>();
  const finish = Promise.withResolvers<void>();
  const worker = consumer(db, boss, 'stolen', async () => {
    started.resolve();
    await finish.promise;
    return undefined;
  });
  const id = await enqueue(db, 'stolen', 'x');
  worker.start();
  await started.promise;
  // as if the job had expired and been claimed by another worker
  await db.query(`update pgboss.job set retry_count = 1 where name = 'stolen' and id = $1`, [id]);
  finish.resolve();
  await expect.poll(() => outcomes(db, 'stolen'), until).toEqual(['lost']);
  const [job] = await db.query<{ state: string }>(`select state from pgboss.job where name = 'stolen'`);
  expect(job?.state).toBe('active');
  await worker.drain(100);
  await boss.stop({ graceful: false });
});

test('a paused consumer fetches nothing, and goes on when it is resumed', async () => {
  const boss = await startBoss(db, 'paused');
  const done: string[] = [];
  const worker = consumer(db, boss, 'paused', async ({ key }) => {
    done.push(key);
    return undefined;
  });
  worker.setPaused(true);
  worker.start();
  await enqueue(db, 'paused', 'x');
  worker.wake();
  await worker.drain(0);
  expect(done).toEqual([]);
  const again = consumer(db, boss, 'paused', async ({ key }) => {
    done.push(key);
    return undefined;
  });
  again.setPaused(true);
  again.start();
  again.setPaused(false);
  await expect.poll(() => done, until).toEqual(['x']);
  await again.drain(100);
  await boss.stop({ graceful: false });
});

test('a job with a heartbeat keeps it while its handler runs', async () => {
  const boss = await startBoss(db, 'beating', { heartbeatSeconds: 10 });
  const finish = Promise.withResolvers<void>();
  const started = Promise.withResolvers<void>();
  const worker = consumer(
    db,
    boss,
    'beating',
    async () => {
      started.resolve();
      await finish.promise;
      return undefined;
    },
    { heartbeatSeconds: 0.3 },
  );
  await enqueue(db, 'beating', 'x');
  worker.start();
  await started.promise;
  await db.query(`update pgboss.job set heartbeat_on = now() - interval '1 hour' where name = 'beating'`);
  await expect
    .poll(async () => {
      const [row] = await db.query<{ fresh: boolean }>(
        `select heartbeat_on > now() - interval '1 minute' as fresh from pgboss.job where name = 'beating'`,
      );
      return row?.fresh;
    }, until)
    .toBe(true);
  finish.resolve();
  await worker.drain(1000);
  await boss.stop({ graceful: false });
});

describe.skipIf(!onServer)('server-only', () => {
  test('a sleeping consumer leaves a row; the insert that takes it away notifies, and no other does', async () => {
    const boss = await startBoss(db, 'sleepy');
    const worker = consumer(db, boss, 'sleepy', async () => undefined, {}, 3_600_000);
    const client = await db.pool.connect();
    const heard: string[] = [];
    client.on('notification', (message) => {
      heard.push(message.payload ?? '');
      worker.wake();
    });
    await client.query('listen agentd_wake');
    worker.start();
    const asleep = async (): Promise<number> =>
      (await db.query(`select 1 from agentd.sleepers where queue = 'sleepy'`)).length;
    await expect.poll(asleep, until).toBe(1);
    await db.transaction(async (tx) => {
      for (const key of ['x', 'y', 'z']) {
        await tx.query(
          `select agentd.enqueue('sleepy', jsonb_build_object('key', $1::text), $1, null, null)`,
          [key],
        );
      }
    });
    await expect.poll(() => outcomes(db, 'sleepy'), until).toEqual(['completed', 'completed', 'completed']);
    expect(heard).toEqual(['sleepy']);
    await expect.poll(asleep, until).toBe(1);
    await worker.drain(100);
    expect(await asleep()).toBe(0);
    await enqueue(db, 'sleepy', 'later');
    await client.query('select 1');
    expect(heard).toEqual(['sleepy']);
    client.release();
    await boss.stop({ graceful: false });
  });
});
