/** Passages to vectors: requests are full, documents take turns, and nothing is lost or paid twice. */
import { describe, expect, test } from 'vitest';
import type { DocumentChunk } from '../../../src/pipelines/ingest/document.ts';
import { featureHashEmbedder } from '../../../src/providers/feature-hash.ts';
import { chunk, chunks, embeddingWorld, lanesOf, rightVector, start, turns } from './embed-support.ts';

const world = embeddingWorld();

describe('requests', () => {
  test('are filled to the items and tokens that the provider takes', async () => {
    const given = chunks(95, 20);
    const run = start(world.ready({ maxItems: 10 }), given);
    expect(await run.finished).toMatchObject({ embedded: 95, refused: 0, tokens: world.server.paid.tokens });
    expect(world.server.requests.map(({ texts }) => texts.length)).toEqual([...Array(9).fill(10), 5]);
    for (const one of given) expect(Array.from(run.vectors.get(one.index) ?? [])).toEqual(rightVector(one));

    // 8,000 tokens each, of which 300,000 tokens hold 37
    const long = Array.from({ length: 40 }, (_, i) => chunk(i, `${i}${' word'.repeat(7_999)}`));
    await start(world.ready(), long).finished;
    expect(
      world.server.requests
        .slice(10)
        .map(({ texts }) => texts.length)
        .sort(),
    ).toEqual([3, 37]);
  });

  test('are several at once, more while the provider keeps up, and never more than allowed', async () => {
    world.server.respond(() => ({ delay: turns(20) }));
    const run = start(world.ready({ maxItems: 5, maxInFlight: 4 }), chunks(200));
    await run.finished;
    expect(world.server.mostOpen).toBe(4);
  });

  test('of what can wait are sent when nobody else has one', async () => {
    const gate = Promise.withResolvers<void>();
    world.server.respond((_, index) => (index === 0 ? { delay: gate.promise } : {}));
    const deps = world.ready({ maxItems: 1, maxInFlight: 1 });
    const background = start(deps, chunks(6, 5, 'move'), { workspaceId: 'a', isBackground: true });
    await world.server.waitForRequests(1);
    const others = ['b', 'c'].map((workspaceId) => start(deps, chunks(3, 5, workspaceId), { workspaceId }));
    gate.resolve();
    await Promise.all([background, ...others].map(({ finished }) => finished));
    const order = world.server.requests.map(({ texts }) => texts[0]?.split(' ')[0]);
    expect(order).toEqual(['move', 'b', 'c', 'b', 'c', 'b', 'c', 'move', 'move', 'move', 'move', 'move']);
  });

  test('hold a text once, however often the document says it', async () => {
    const given = Array.from({ length: 50 }, (_, i) =>
      chunk(i, i % 2 === 0 ? 'the same on every page' : `page ${i}`),
    );
    const run = start(world.ready(), given);
    expect(await run.finished).toMatchObject({ embedded: 50 });
    expect(world.server.paid.items).toBe(26);
    for (const one of given) expect(Array.from(run.vectors.get(one.index) ?? [])).toEqual(rightVector(one));
  });

  test('are made from chunks as they come, and no more are read than are needed', async () => {
    let read = 0;
    async function* lazily(): AsyncGenerator<DocumentChunk> {
      for (const one of chunks(1_000)) {
        read++;
        yield one;
      }
    }
    const gate = Promise.withResolvers<void>();
    world.server.respond(() => ({ delay: gate.promise }));
    const run = start(world.ready({ maxItems: 10, maxInFlight: 2 }), lazily());
    await world.server.waitForRequests(2);
    await world.clock.settled();
    expect(read).toBeLessThanOrEqual(30);
    gate.resolve();
    expect(await run.finished).toMatchObject({ embedded: 1_000 });
  });

  test('go on when the provider turns out to take more than was thought', async () => {
    const one = world.ready().embedder;
    let maxItems = 10;
    const growing = {
      ...one,
      model: one.model,
      limitKey: one.limitKey,
      get maxItems() {
        return maxItems;
      },
      embed: (...given: Parameters<typeof one.embed>) => {
        maxItems = 100;
        return one.embed(...given);
      },
    };
    const run = start({ lanes: lanesOf(world.clock), embedder: growing }, chunks(500));
    expect(await run.finished).toMatchObject({ embedded: 500 });
    expect(Math.max(...world.server.requests.map(({ texts }) => texts.length))).toBe(100);
  });

  test('none for no chunks', async () => {
    expect(await start(world.ready(), []).finished).toEqual({
      embedded: 0,
      refused: 0,
      tokens: 0,
      costMicros: 0,
    });
    expect(world.server.requests).toEqual([]);
  });

  test('cost what they cost together, to the millionth', async () => {
    const run = start(world.ready({ maxItems: 3 }), chunks(100));
    const { costMicros } = await run.finished;
    expect(costMicros).toBe(Math.round(world.server.paid.tokens * 0.02));
    expect(run.batches.reduce((sum, batch) => sum + batch.costMicros, 0)).toBe(costMicros);
    expect(run.batches.every((batch) => Number.isInteger(batch.costMicros))).toBe(true);
    expect(run.batches.reduce((sum, batch) => sum + batch.tokens, 0)).toBe(world.server.paid.tokens);
  });
});

describe('what is handed over', () => {
  test('comes at once, and one batch at a time', async () => {
    let busy = 0;
    const gate = Promise.withResolvers<void>();
    world.server.respond((_, index) => (index === 0 ? {} : { delay: gate.promise }));
    const first = Promise.withResolvers<void>();
    const run = start(world.ready({ maxItems: 10 }), chunks(100), {
      onEmbedded: async () => {
        expect(++busy).toBe(1);
        await new Promise((resolve) => setImmediate(resolve));
        busy--;
        first.resolve();
      },
    });
    await first.promise;
    gate.resolve();
    await run.finished;
    expect(run.vectors.size).toBe(100);
  });

  test('is not asked for faster than it is stored', async () => {
    const gate = Promise.withResolvers<void>();
    const run = start(world.ready({ maxItems: 1 }), chunks(100), { onEmbedded: () => gate.promise });
    await world.server.waitForRequests(4);
    await world.clock.settled();
    // four unstored, and what was in flight when the fourth came
    expect(world.server.requests.length).toBeLessThanOrEqual(4 + 8);
    gate.resolve();
    await run.finished;
  });

  test('that can’t be stored ends the document: nothing more is sent', async () => {
    const lost = new Error('lease lost');
    const run = start(world.ready({ maxItems: 1 }), chunks(100), { onEmbedded: () => Promise.reject(lost) });
    await expect(run.finished).rejects.toBe(lost);
    expect(world.server.requests.length).toBeLessThan(20);
  });
});

describe('documents', () => {
  test('take turns: five passages do not wait for ten thousand', async () => {
    const deps = world.ready({ maxItems: 20, maxInFlight: 2 });
    const large = start(deps, chunks(10_000));
    await world.server.waitForRequests(4);
    const before = world.server.requests.length;
    const small = start(deps, chunks(5, 5, 'small'), { workspaceId: 'other' });
    expect(await small.finished).toMatchObject({ embedded: 5 });
    const place = world.server.requests.findIndex(({ texts }) => texts[0]?.startsWith('small'));
    expect(place - before).toBeLessThanOrEqual(3);
    large.stop.abort(new Error('enough'));
    await expect(large.finished).rejects.toThrow('enough');
  });

  test('of one workspace share its turns: fifty of one are no more than one of another', async () => {
    const deps = world.ready({ maxItems: 1, maxInFlight: 1 });
    const many = Array.from({ length: 50 }, (_, i) =>
      start(deps, chunks(10, 5, `many${i}`), { workspaceId: 'a' }),
    );
    const one = start(deps, chunks(10, 5, 'one'), { workspaceId: 'b' });
    await one.finished;
    expect(world.server.requests.length).toBeLessThanOrEqual(23);
    await Promise.all(many.map(({ finished }) => finished));
  });

  test('end at their signal, in flight or waiting, and others go on', async () => {
    const gate = Promise.withResolvers<void>();
    world.server.respond(({ texts }) =>
      texts[0]?.startsWith('stopped') ? { hang: true } : { delay: gate.promise },
    );
    const deps = world.ready({ maxItems: 10 });
    const stopped = start(deps, chunks(100, 5, 'stopped'));
    const other = start(deps, chunks(100, 5, 'other'));
    await world.server.waitForRequests(2);
    const reason = new Error('drained');
    stopped.stop.abort(reason);
    await expect(stopped.finished).rejects.toBe(reason);
    gate.resolve();
    expect(await other.finished).toMatchObject({ embedded: 100 });
    const already = start(deps, chunks(1));
    already.stop.abort(reason);
    await expect(already.finished).rejects.toBe(reason);
  });

  test('whose chunks can’t be read fail with that', async () => {
    async function* broken(): AsyncGenerator<DocumentChunk> {
      yield* chunks(3);
      throw new Error('the worker has crashed');
    }
    await expect(start(world.ready(), broken()).finished).rejects.toThrow('the worker has crashed');
  });

  test('need no server with the offline embedder', async () => {
    const run = start({ lanes: lanesOf(world.clock), embedder: featureHashEmbedder(64) }, chunks(200));
    expect(await run.finished).toEqual({ embedded: 200, refused: 0, tokens: 0, costMicros: 0 });
    expect(world.server.requests).toEqual([]);
  });
});

test('each request is told of, how it went and what it cost', async () => {
  const told: { outcome: string; items: number; tokens: number }[] = [];
  world.server.respond((_, index) => (index === 0 ? { status: 429, headers: { 'retry-after': '1' } } : {}));
  const run = start(world.ready({ onRequest: (outcome) => told.push(outcome) }), chunks(10));
  await world.passUntil(run.finished);
  expect(told.map(({ outcome, items, tokens }) => [outcome, items, tokens])).toEqual([
    ['rate_limited', 10, 0],
    ['completed', 10, world.server.paid.tokens],
  ]);
});
