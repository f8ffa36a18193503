import { expect, test } from 'vitest';
import { Batcher } from '../../src/queue/batcher.ts';

test('items of one turn are one batch, and each gets its own result', async () => {
  const sizes: number[] = [];
  const batcher = new Batcher<number, number>(
    async (items) => {
      sizes.push(items.length);
      return items.map((item) => item * 2);
    },
    { maxItems: 100, maxConcurrent: 1 },
  );
  expect(await Promise.all([1, 2, 3].map((item) => batcher.add(item)))).toEqual([2, 4, 6]);
  expect(sizes).toEqual([3]);
});

const until = { timeout: 15_000, interval: 5 };

test('what comes while a batch is in flight is the next batch, and no batch passes the limits', async () => {
  const gates: PromiseWithResolvers<void>[] = [];
  const sizes: number[] = [];
  const arrived = Promise.withResolvers<void>();
  const batcher = new Batcher<number, number>(
    async (items) => {
      sizes.push(items.length);
      const gate = Promise.withResolvers<void>();
      gates.push(gate);
      arrived.resolve();
      await gate.promise;
      return items;
    },
    { maxItems: 4, maxConcurrent: 1 },
  );
  const first = batcher.add(0);
  await arrived.promise;
  const rest = Promise.all([1, 2, 3, 4, 5].map((item) => batcher.add(item)));
  expect(sizes).toEqual([1]);
  gates[0]?.resolve();
  await first;
  await expect.poll(() => sizes, until).toEqual([1, 4]);
  gates[1]?.resolve();
  await expect.poll(() => sizes, until).toEqual([1, 4, 1]);
  gates[2]?.resolve();
  expect(await rest).toEqual([1, 2, 3, 4, 5]);
});

test('a poisonous item fails alone', async () => {
  const batcher = new Batcher<string, string>(
    async (items) => {
      if (items.includes('poison')) throw new Error('bad item');
      return items;
    },
    { maxItems: 10, maxConcurrent: 1 },
  );
  const results = await Promise.allSettled(['a', 'poison', 'b'].map((item) => batcher.add(item)));
  expect(results.map((r) => r.status)).toEqual(['fulfilled', 'rejected', 'fulfilled']);
});

test('drained sends what waits for its delay and resolves when it is done', async () => {
  const done: number[] = [];
  const batcher = new Batcher<number, number>(
    async (items) => {
      done.push(...items);
      return items;
    },
    { maxItems: 10, maxConcurrent: 1, delayMs: 3_600_000 },
  );
  void batcher.add(1);
  void batcher.add(2);
  await batcher.drained();
  expect(done).toEqual([1, 2]);
});
