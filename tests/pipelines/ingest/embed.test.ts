/** Passages to vectors: requests are full, a bad passage costs itself alone, documents take turns, and nothing is lost or paid twice. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { DocumentChunk } from '../../../src/pipelines/ingest/document.ts';
import { featureHashEmbedder } from '../../../src/providers/feature-hash.ts';
import {
  type EmbeddingServer,
  type EmbeddingServerOptions,
  startEmbeddingServer,
} from '../../peers/embedding-server.ts';
import { handClock } from '../../support/hand-clock.ts';
import { chunk, chunks, lanesOf, rightVector, serverEmbedder, start } from './embed-support.ts';

let server: EmbeddingServer;
const clock = handClock();

beforeEach(() => serve());
afterEach(async () => {
  expect(server.rejected).toEqual([]);
  await server.close();
});

async function serve(options: EmbeddingServerOptions = {}): Promise<void> {
  await server?.close();
  server = await startEmbeddingServer(options);
}

/** Moves the clock until the promise has settled: for what waits for pauses that it sets itself. */
async function passUntil(settled: Promise<unknown>, stepMs = 250): Promise<void> {
  let isOver = false;
  const over = (): void => {
    isOver = true;
  };
  settled.then(over, over);
  while (!isOver) {
    await clock.settled();
    if (server.open === 0) await clock.advance(stepMs);
  }
}

function ready(options: Parameters<typeof lanesOf>[1] & { maxItems?: number; timeoutMs?: number } = {}) {
  const { maxItems, timeoutMs, ...rest } = options;
  return {
    lanes: lanesOf(clock, rest),
    embedder: serverEmbedder(server, {
      ...(maxItems === undefined ? {} : { maxItems }),
      ...(timeoutMs === undefined ? {} : { timeoutMs }),
    }),
  };
}

/** So many turns of the event loop: long enough for other requests to come. */
async function turns(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve));
}

/** A document of which the server refuses some texts. */
function refuses(bad: (text: string) => boolean, script = { status: 400, error: { message: 'no' } }): void {
  server.respond(({ texts }) => (texts.some(bad) ? script : {}));
}

describe('requests', () => {
  test('are filled to the items and tokens that the provider takes', async () => {
    const given = chunks(95, 20);
    const run = start(ready({ maxItems: 10 }), given);
    expect(await run.finished).toMatchObject({ embedded: 95, refused: 0, tokens: server.paid.tokens });
    expect(server.requests.map(({ texts }) => texts.length)).toEqual([...Array(9).fill(10), 5]);
    for (const one of given) expect(Array.from(run.vectors.get(one.index) ?? [])).toEqual(rightVector(one));

    // 8,000 tokens each, of which 300,000 tokens hold 37
    const long = Array.from({ length: 40 }, (_, i) => chunk(i, `${i}${' word'.repeat(7_999)}`));
    await start(ready(), long).finished;
    expect(
      server.requests
        .slice(10)
        .map(({ texts }) => texts.length)
        .sort(),
    ).toEqual([3, 37]);
  });

  test('are several at once, more while the provider keeps up, and never more than allowed', async () => {
    server.respond(() => ({ delay: turns(20) }));
    const run = start(ready({ maxItems: 5, maxInFlight: 4 }), chunks(200));
    await run.finished;
    expect(server.mostOpen).toBe(4);
  });

  test('hold a text once, however often the document says it', async () => {
    const given = Array.from({ length: 50 }, (_, i) =>
      chunk(i, i % 2 === 0 ? 'the same on every page' : `page ${i}`),
    );
    const run = start(ready(), given);
    expect(await run.finished).toMatchObject({ embedded: 50 });
    expect(server.paid.items).toBe(26);
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
    server.respond(() => ({ delay: gate.promise }));
    const run = start(ready({ maxItems: 10, maxInFlight: 2 }), lazily());
    await server.waitForRequests(2);
    await clock.settled();
    expect(read).toBeLessThanOrEqual(30);
    gate.resolve();
    expect(await run.finished).toMatchObject({ embedded: 1_000 });
  });

  test('none for no chunks', async () => {
    expect(await start(ready(), []).finished).toEqual({ embedded: 0, refused: 0, tokens: 0, costMicros: 0 });
    expect(server.requests).toEqual([]);
  });

  test('cost what they cost together, to the millionth', async () => {
    const run = start(ready({ maxItems: 3 }), chunks(100));
    const { costMicros } = await run.finished;
    expect(costMicros).toBe(Math.round(server.paid.tokens * 0.02));
    expect(run.batches.reduce((sum, batch) => sum + batch.costMicros, 0)).toBe(costMicros);
    expect(run.batches.every((batch) => Number.isInteger(batch.costMicros))).toBe(true);
    expect(run.batches.reduce((sum, batch) => sum + batch.tokens, 0)).toBe(server.paid.tokens);
  });
});

describe('what is handed over', () => {
  test('comes at once, and one batch at a time', async () => {
    let busy = 0;
    const gate = Promise.withResolvers<void>();
    server.respond((_, index) => (index === 0 ? {} : { delay: gate.promise }));
    const first = Promise.withResolvers<void>();
    const run = start(ready({ maxItems: 10 }), chunks(100), {
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
    const run = start(ready({ maxItems: 1 }), chunks(100), { onEmbedded: () => gate.promise });
    await server.waitForRequests(4);
    await clock.settled();
    // four unstored, and what was in flight when the fourth came
    expect(server.requests.length).toBeLessThanOrEqual(4 + 8);
    gate.resolve();
    await run.finished;
  });

  test('that can’t be stored ends the document: nothing more is sent', async () => {
    const lost = new Error('lease lost');
    const run = start(ready({ maxItems: 1 }), chunks(100), { onEmbedded: () => Promise.reject(lost) });
    await expect(run.finished).rejects.toBe(lost);
    expect(server.requests.length).toBeLessThan(20);
  });
});

describe('a passage that the provider refuses', () => {
  test.each([
    ['400', { status: 400, error: { message: 'no' } }],
    ['500', { status: 500, error: { message: 'the runner has crashed' } }],
  ])('with %s comes back alone, with its reason', async (_, script) => {
    const given = chunks(64);
    refuses((text) => text === given[41]?.embedText, script);
    const run = start(ready({ maxItems: 32 }), given);
    await passUntil(run.finished);
    expect(await run.finished).toMatchObject({ embedded: 63, refused: 1 });
    expect([...run.reasons.keys()]).toEqual([41]);
    expect(run.reasons.get(41)).toContain(String(script.status));
    // each good text was paid for once
    expect([...server.paid.times.values()].every((times) => times === 1)).toBe(true);
    expect(server.requests.length).toBeLessThan(30);
  });

  test('several of them, wherever they stand', async () => {
    const bad = new Set([0, 1, 17, 63, 99]);
    refuses((text) => bad.has(Number(text.split(' ')[1])));
    const run = start(ready({ maxItems: 50 }), chunks(100));
    expect(await run.finished).toMatchObject({ embedded: 95, refused: 5 });
    expect(new Set(run.reasons.keys())).toEqual(bad);
  });

  test('an answer that lacks it, or has nonsense for it', async () => {
    server.respond(({ texts }) => {
      const at = texts.findIndex((text) => text.startsWith('chunk 7 '));
      return at < 0 ? {} : { data: (items) => items.toSpliced(at, 1) };
    });
    const run = start(ready(), chunks(20));
    await passUntil(run.finished);
    expect(await run.finished).toMatchObject({ embedded: 19, refused: 1, tokens: server.paid.tokens });
    expect([...run.reasons.keys()]).toEqual([7]);
    // what was paid for in vain is counted
    expect(run.batches.reduce((sum, batch) => sum + batch.tokens, 0)).toBe(server.paid.tokens);
  });

  test('a request that is too large for the limit is cut, and later ones are smaller', async () => {
    await serve({ limits: { tokensPerMinute: 2_000 }, now: () => clock.elapsed() });
    const run = start(ready(), chunks(100, 40));
    await passUntil(run.finished);
    expect(await run.finished).toMatchObject({ embedded: 100, refused: 0 });
    const largest = Math.max(...server.requests.slice(-10).map(({ tokens }) => tokens));
    expect(largest).toBeLessThanOrEqual(200);
  });

  test('when it is everything, the document fails after a few requests and not after all', async () => {
    refuses(() => true);
    const run = start(ready(), chunks(1_000));
    await expect(run.finished).rejects.toMatchObject({ code: 'embedding_refused', isTransient: false });
    expect(server.requests.length).toBeLessThan(20);
  });

  test('when it is the only one, the document fails with its reason', async () => {
    refuses(() => true);
    const run = start(ready(), chunks(1));
    await expect(run.finished).rejects.toMatchObject({ code: 'embedding_refused' });
    expect(run.reasons.size).toBe(1);
  });

  test('when answers are nonsense for every text, few are paid for', async () => {
    server.respond(() => ({ vector: (_, numbers) => numbers.map(() => null) }));
    const run = start(ready(), chunks(1_000));
    await passUntil(run.finished);
    await expect(run.finished).rejects.toMatchObject({ code: 'provider_error', isTransient: true });
    expect(server.paid.requests).toBeLessThan(20);
  });

  test('of one document keeps no other from its vectors', async () => {
    refuses((text) => text.startsWith('bad'));
    const deps = ready({ maxItems: 8 });
    const bad = start(deps, chunks(64, 5, 'bad'));
    const good = start(deps, chunks(64, 5, 'good'));
    expect(await good.finished).toMatchObject({ embedded: 64, refused: 0 });
    await expect(bad.finished).rejects.toMatchObject({ code: 'embedding_refused' });
  });
});

describe('a provider that fails', () => {
  test.each([
    ['500', { status: 500 }],
    ['503', { status: 503 }],
    ['a cut connection', { drop: true }],
  ])('for a moment, with %s, costs a pause', async (_, script) => {
    server.respond((_request, index) => (index < 2 ? script : {}));
    const run = start(ready(), chunks(10));
    await passUntil(run.finished);
    expect(await run.finished).toMatchObject({ embedded: 10, refused: 0 });
    expect(server.requests).toHaveLength(3);
  });

  test.each([
    ['500', { status: 500 }],
    ['503', { status: 503 }],
  ])('for long, with %s, fails the document for now and blames no passage', async (_, script) => {
    server.respond((_request, index) => (index < 3 ? {} : script));
    const run = start(ready({ maxItems: 10, maxInFlight: 2 }), chunks(1_000));
    await passUntil(run.finished);
    await expect(run.finished).rejects.toMatchObject({ code: 'provider_error', isTransient: true });
    expect(run.reasons.size).toBe(0);
    expect(run.vectors.size).toBe(30);
    // a few tries of a few batches, and not of all hundred
    expect(server.requests.length).toBeLessThan(50);
  });

  test('and refuses the key, at once', async () => {
    server.respond(() => ({ status: 401, error: { code: 'invalid_api_key' } }));
    const run = start(ready(), chunks(10));
    await expect(run.finished).rejects.toMatchObject({ code: 'credentials_refused', isTransient: false });
    expect(server.requests).toHaveLength(1);
  });

  test('and makes vectors of other dimensions, at once: nothing more is paid', async () => {
    server.respond(() => ({ dimensions: 17 }));
    const run = start(ready(), chunks(10));
    await expect(run.finished).rejects.toMatchObject({ code: 'wrong_dimensions' });
    expect(server.requests).toHaveLength(1);
  });

  test('while others are in flight: what they bring is still stored', async () => {
    const gate = Promise.withResolvers<void>();
    server.respond((_, index) => (index === 0 ? { delay: gate.promise } : { status: 401 }));
    const run = start(ready({ maxItems: 10 }), chunks(20));
    await server.waitForRequests(2);
    await clock.settled();
    gate.resolve();
    await expect(run.finished).rejects.toMatchObject({ code: 'credentials_refused' });
    expect(run.vectors.size).toBe(10);
  });

  test('by a hang ends with its time limit', async () => {
    server.respond(() => ({ hang: true }));
    const run = start(ready({ timeoutMs: 30 }), chunks(10));
    await expect
      .poll(async () => {
        await clock.advance(1_000);
        return server.requests.length;
      })
      .toBe(4);
    await expect(run.finished).rejects.toMatchObject({ code: 'provider_error', isTransient: true });
  });
});

describe('a limit', () => {
  test('is waited for as the provider says and costs no try', async () => {
    const began = clock.elapsed();
    server.respond((_, index) => (index < 9 ? { status: 429, headers: { 'retry-after': '2' } } : {}));
    const run = start(ready(), chunks(10));
    await passUntil(run.finished);
    expect(await run.finished).toMatchObject({ embedded: 10 });
    expect(clock.elapsed() - began).toBeGreaterThanOrEqual(18_000);
  });

  test('without a Retry-After is asked again after longer and longer pauses', async () => {
    const began = clock.elapsed();
    server.respond((_, index) => (index < 5 ? { status: 429 } : {}));
    const run = start(ready(), chunks(10));
    await passUntil(run.finished);
    await run.finished;
    // 0.5, 1, 2, 4 and 8 s, each by a half longer
    expect(clock.elapsed() - began).toBeGreaterThanOrEqual(23_000);
    expect(server.requests).toHaveLength(6);
  });

  test('that takes long gives the document back, with when to come again', async () => {
    server.respond((_, index) => (index === 0 ? {} : { status: 429, headers: { 'retry-after': '3600' } }));
    const deps = ready({ maxItems: 10, maxInFlight: 1 });
    const run = start(deps, chunks(20));
    const other = start(deps, chunks(20, 5, 'other'));
    await expect(run.finished).rejects.toMatchObject({ code: 'rate_limited', isTransient: true });
    const error = (await run.finished.catch((thrown: unknown) => thrown)) as { retryAfterMs: number };
    expect(error.retryAfterMs).toBeGreaterThan(3_590_000);
    await expect(other.finished).rejects.toMatchObject({ code: 'rate_limited' });
    expect(run.vectors.size + other.vectors.size).toBe(10);
    expect(server.requests).toHaveLength(2);
  });

  test('halves what is in flight, once for all that were', async () => {
    const gate = Promise.withResolvers<void>();
    server.respond((_, index) =>
      index < 30 ? {} : { delay: gate.promise, status: 429, headers: { 'retry-after': '1' } },
    );
    const deps = ready({ maxItems: 1, maxInFlight: 8 });
    const run = start(deps, chunks(100));
    await server.waitForRequests(38);
    expect(deps.lanes.of(deps.embedder).width).toBe(8);
    server.respond(() => ({}));
    gate.resolve();
    await expect.poll(() => server.open).toBe(0);
    expect(deps.lanes.of(deps.embedder).width).toBe(4);
    await passUntil(run.finished);
    expect(await run.finished).toMatchObject({ embedded: 100 });
  });
});

describe('documents', () => {
  test('take turns: five passages do not wait for ten thousand', async () => {
    const deps = ready({ maxItems: 20, maxInFlight: 2 });
    const large = start(deps, chunks(10_000));
    await server.waitForRequests(4);
    const before = server.requests.length;
    const small = start(deps, chunks(5, 5, 'small'), { workspaceId: 'other' });
    expect(await small.finished).toMatchObject({ embedded: 5 });
    const place = server.requests.findIndex(({ texts }) => texts[0]?.startsWith('small'));
    expect(place - before).toBeLessThanOrEqual(3);
    large.stop.abort(new Error('enough'));
    await expect(large.finished).rejects.toThrow('enough');
  });

  test('of one workspace share its turns: fifty of one are no more than one of another', async () => {
    const deps = ready({ maxItems: 1, maxInFlight: 1 });
    const many = Array.from({ length: 50 }, (_, i) =>
      start(deps, chunks(10, 5, `many${i}`), { workspaceId: 'a' }),
    );
    const one = start(deps, chunks(10, 5, 'one'), { workspaceId: 'b' });
    await one.finished;
    expect(server.requests.length).toBeLessThanOrEqual(23);
    await Promise.all(many.map(({ finished }) => finished));
  });

  test('end at their signal, in flight or waiting, and others go on', async () => {
    const gate = Promise.withResolvers<void>();
    server.respond(({ texts }) =>
      texts[0]?.startsWith('stopped') ? { hang: true } : { delay: gate.promise },
    );
    const deps = ready({ maxItems: 10 });
    const stopped = start(deps, chunks(100, 5, 'stopped'));
    const other = start(deps, chunks(100, 5, 'other'));
    await server.waitForRequests(2);
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
    await expect(start(ready(), broken()).finished).rejects.toThrow('the worker has crashed');
  });

  test('need no server with the offline embedder', async () => {
    const run = start({ lanes: lanesOf(clock), embedder: featureHashEmbedder(64) }, chunks(200));
    expect(await run.finished).toEqual({ embedded: 200, refused: 0, tokens: 0, costMicros: 0 });
    expect(server.requests).toEqual([]);
  });
});

test('each request is told of, how it went and what it cost', async () => {
  const told: { outcome: string; items: number; tokens: number }[] = [];
  server.respond((_, index) => (index === 0 ? { status: 429, headers: { 'retry-after': '1' } } : {}));
  const run = start(ready({ onRequest: (outcome) => told.push(outcome) }), chunks(10));
  await passUntil(run.finished);
  expect(told.map(({ outcome, items, tokens }) => [outcome, items, tokens])).toEqual([
    ['rate_limited', 10, 0],
    ['completed', 10, server.paid.tokens],
  ]);
});
