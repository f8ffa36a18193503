import { afterAll, beforeAll, expect, test } from 'vitest';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { consumer, enqueue, outcomes, startBoss } from './support.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase({ max: 8 });
});
afterAll(() => db?.dispose());

test('a job that waits in the buffer behind one that takes long is handed back, and another process does it', async () => {
  const boss = await startBoss(db, 'behind');
  const { promise: held, resolve: release } = Promise.withResolvers<void>();
  const done: string[] = [];
  let begun = false;
  const full = consumer(
    db,
    boss,
    'behind',
    async ({ key }) => {
      if (key === 'long') {
        begun = true;
        await held;
      }
      done.push(`full ${key}`);
      return undefined;
    },
    { concurrency: 1 },
  );
  const free = consumer(
    db,
    boss,
    'behind',
    async ({ key }) => {
      done.push(`free ${key}`);
      return undefined;
    },
    { concurrency: 1 },
  );
  // Short jobs teach the consumer to fetch one more than it has slots.
  const short = Array.from({ length: 20 }, (_, i) => `short${i}`);
  const after = ['after0', 'after1', 'after2'];
  for (const key of [...short, 'long', ...after]) await enqueue(db, 'behind', key);
  full.start();
  const until = { timeout: 15_000, interval: 5 };
  await expect.poll(() => begun, until).toBe(true);
  free.start();
  await expect.poll(() => done.length, until).toBe(short.length + after.length);
  expect(done).not.toContain('full long');
  release();
  await Promise.all([full.drain(1_000), free.drain(1_000)]);
  expect(new Set(done.map((one) => one.split(' ')[1]))).toEqual(new Set([...short, 'long', ...after]));
  expect(done).toHaveLength(short.length + after.length + 1);
  const counts = Object.groupBy(await outcomes(db, 'behind'), (outcome) => outcome);
  expect(counts.completed).toHaveLength(done.length);
  // Fetched a few times at most: a full consumer that hands back does not fetch again.
  expect(counts.handed_back?.length ?? 0).toBeLessThanOrEqual(2);
  await boss.stop({ graceful: false });
});
