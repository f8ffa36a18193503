/** What goes wrong while passages are embedded: a bad one costs itself alone, a provider that fails costs a pause, a limit costs no try. */
import { describe, expect, test } from 'vitest';
import { chunks, embeddingWorld, start } from './embed-support.ts';

const world = embeddingWorld();
const until = { timeout: 15_000, interval: 5 };

describe('a passage that the provider refuses', () => {
  test.each([
    ['400', { status: 400, error: { message: 'no' } }],
    ['500', { status: 500, error: { message: 'the runner has crashed' } }],
  ])('with %s comes back alone, with its reason', async (_, script) => {
    const given = chunks(64);
    world.refuses((text) => text === given[41]?.embedText, script);
    const run = start(world.ready({ maxItems: 32 }), given);
    await world.passUntil(run.finished);
    expect(await run.finished).toMatchObject({ embedded: 63, refused: 1 });
    expect([...run.reasons.keys()]).toEqual([41]);
    expect(run.reasons.get(41)).toContain(String(script.status));
    // each good text was paid for once
    expect([...world.server.paid.times.values()].every((times) => times === 1)).toBe(true);
    expect(world.server.requests.length).toBeLessThan(30);
  });

  test('several of them, wherever they stand', async () => {
    const bad = new Set([0, 1, 17, 63, 99]);
    world.refuses((text) => bad.has(Number(text.split(' ')[1])));
    const run = start(world.ready({ maxItems: 50 }), chunks(100));
    expect(await run.finished).toMatchObject({ embedded: 95, refused: 5 });
    expect(new Set(run.reasons.keys())).toEqual(bad);
  });

  test('an answer that lacks it, or has nonsense for it', async () => {
    world.server.respond(({ texts }) => {
      const at = texts.findIndex((text) => text.startsWith('chunk 7 '));
      return at < 0 ? {} : { data: (items) => items.toSpliced(at, 1) };
    });
    const run = start(world.ready(), chunks(20));
    await world.passUntil(run.finished);
    expect(await run.finished).toMatchObject({ embedded: 19, refused: 1, tokens: world.server.paid.tokens });
    expect([...run.reasons.keys()]).toEqual([7]);
    // what was paid for in vain is counted
    expect(run.batches.reduce((sum, batch) => sum + batch.tokens, 0)).toBe(world.server.paid.tokens);
  });

  test('a request that is too large for the limit is cut, and later ones are smaller', async () => {
    await world.serve({ limits: { tokensPerMinute: 2_000 }, now: () => world.clock.elapsed() });
    const run = start(world.ready(), chunks(100, 40));
    await world.passUntil(run.finished);
    expect(await run.finished).toMatchObject({ embedded: 100, refused: 0 });
    const largest = Math.max(...world.server.requests.slice(-10).map(({ tokens }) => tokens));
    expect(largest).toBeLessThanOrEqual(200);
  });

  test.each([
    [
      'texts',
      ({ texts }: { texts: readonly unknown[] }) => texts.length > 32,
      'batch size > maximum allowed batch size 32',
    ],
    ['tokens', ({ tokens }: { tokens: number }) => tokens > 400, 'Too many tokens in batch'],
  ] as const)(
    'a server that takes fewer %s than others is soon asked for no more',
    async (_, isTooMuch, message) => {
      world.server.respond((request) => (isTooMuch(request) ? { status: 422, error: { message } } : {}));
      const deps = world.ready({ maxItems: 100 });
      expect(await start(deps, chunks(300)).finished).toMatchObject({ embedded: 300, refused: 0 });
      const before = world.server.requests.length;
      expect(await start(deps, chunks(300, 5, 'later')).finished).toMatchObject({ embedded: 300 });
      expect(world.server.requests.slice(before).some(isTooMuch)).toBe(false);
      expect(world.server.requests.length - before).toBeLessThan(30);
    },
  );

  test('a document with too many of them fails before all are looked for', async () => {
    world.refuses((text) => Number(text.split(' ')[1]) % 3 === 0);
    const run = start(world.ready(), chunks(3_000));
    await expect(run.finished).rejects.toMatchObject({ code: 'embedding_refused' });
    // all would take more than 2,000
    expect(world.server.requests.length).toBeLessThan(800);
  });

  test('when it is everything, the document fails after a few requests and not after all', async () => {
    world.refuses(() => true);
    const run = start(world.ready(), chunks(1_000));
    await expect(run.finished).rejects.toMatchObject({ code: 'embedding_refused', isTransient: false });
    expect(world.server.requests.length).toBeLessThan(20);
  });

  test('when it is the only one, the document fails with its reason', async () => {
    world.refuses(() => true);
    const run = start(world.ready(), chunks(1));
    await expect(run.finished).rejects.toMatchObject({ code: 'embedding_refused' });
    expect(run.reasons.size).toBe(1);
  });

  test('when answers are nonsense for every text, few are paid for', async () => {
    world.server.respond(() => ({ vector: (_, numbers) => numbers.map(() => null) }));
    const run = start(world.ready(), chunks(1_000));
    await world.passUntil(run.finished);
    await expect(run.finished).rejects.toMatchObject({ code: 'provider_error', isTransient: true });
    expect(world.server.paid.requests).toBeLessThan(20);
  });

  test('of one document keeps no other from its vectors', async () => {
    world.refuses((text) => text.startsWith('bad'));
    const deps = world.ready({ maxItems: 8 });
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
    world.server.respond((_request, index) => (index < 2 ? script : {}));
    const run = start(world.ready(), chunks(10));
    await world.passUntil(run.finished);
    expect(await run.finished).toMatchObject({ embedded: 10, refused: 0 });
    expect(world.server.requests).toHaveLength(3);
  });

  test.each([
    ['500', { status: 500 }],
    ['503', { status: 503 }],
  ])('for long, with %s, fails the document for now and blames no passage', async (_, script) => {
    world.server.respond((_request, index) => (index < 3 ? {} : script));
    const run = start(world.ready({ maxItems: 10, maxInFlight: 2 }), chunks(1_000));
    await world.passUntil(run.finished);
    await expect(run.finished).rejects.toMatchObject({ code: 'provider_error', isTransient: true });
    expect(run.reasons.size).toBe(0);
    expect(run.vectors.size).toBe(30);
    // a few tries of a few batches, and not of all hundred
    expect(world.server.requests.length).toBeLessThan(50);
  });

  test('and refuses the key, at once', async () => {
    world.server.respond(() => ({ status: 401, error: { code: 'invalid_api_key' } }));
    const run = start(world.ready(), chunks(10));
    await expect(run.finished).rejects.toMatchObject({ code: 'credentials_refused', isTransient: false });
    expect(world.server.requests).toHaveLength(1);
  });

  test('and makes vectors of other dimensions, at once: nothing more is paid', async () => {
    world.server.respond(() => ({ dimensions: 17 }));
    const run = start(world.ready(), chunks(10));
    await expect(run.finished).rejects.toMatchObject({ code: 'wrong_dimensions' });
    expect(world.server.requests).toHaveLength(1);
  });

  test('while others are in flight: what they bring is still stored', async () => {
    const gate = Promise.withResolvers<void>();
    world.server.respond((_, index) => (index === 0 ? { delay: gate.promise } : { status: 401 }));
    const run = start(world.ready({ maxItems: 10 }), chunks(20));
    await world.server.waitForRequests(2);
    await world.clock.settled();
    gate.resolve();
    await expect(run.finished).rejects.toMatchObject({ code: 'credentials_refused' });
    expect(run.vectors.size).toBe(10);
  });

  test('while another request waits for its limit: that one is given up at once', async () => {
    const gate = Promise.withResolvers<void>();
    world.server.respond((_, index) => {
      if (index < 2) return {};
      if (index === 2) return { status: 429, headers: { 'retry-after': '30' } };
      return { delay: gate.promise, status: 401 };
    });
    const run = start(world.ready({ maxItems: 10 }), chunks(40));
    await world.server.waitForRequests(4);
    await expect.poll(() => world.server.open, until).toBe(1);
    await world.clock.settled();
    gate.resolve();
    // the clock stands still
    await expect(run.finished).rejects.toMatchObject({ code: 'credentials_refused' });
    expect(run.vectors.size).toBe(20);
  });

  test('by a hang ends with its time limit', async () => {
    world.server.respond(() => ({ hang: true }));
    // long enough for each request to arrive
    const run = start(world.ready({ timeoutMs: 300 }), chunks(10));
    await expect
      .poll(async () => {
        await world.clock.advance(1_000);
        return world.server.requests.length;
      }, until)
      .toBe(4);
    await expect(run.finished).rejects.toMatchObject({ code: 'provider_error', isTransient: true });
  });
});

describe('a limit', () => {
  test('is waited for as the provider says and costs no try', async () => {
    const began = world.clock.elapsed();
    world.server.respond((_, index) => (index < 9 ? { status: 429, headers: { 'retry-after': '2' } } : {}));
    const run = start(world.ready(), chunks(10));
    await world.passUntil(run.finished);
    expect(await run.finished).toMatchObject({ embedded: 10 });
    expect(world.clock.elapsed() - began).toBeGreaterThanOrEqual(18_000);
  });

  test('without a Retry-After is asked again after longer and longer pauses', async () => {
    const began = world.clock.elapsed();
    world.server.respond((_, index) => (index < 5 ? { status: 429 } : {}));
    const run = start(world.ready(), chunks(10));
    await world.passUntil(run.finished);
    await run.finished;
    // 0.5, 1, 2, 4 and 8 s, each by a half longer
    expect(world.clock.elapsed() - began).toBeGreaterThanOrEqual(23_000);
    expect(world.server.requests).toHaveLength(6);
  });

  test('that takes long gives the document back, with when to come again', async () => {
    world.server.respond((_, index) =>
      index === 0 ? {} : { status: 429, headers: { 'retry-after': '3600' } },
    );
    const deps = world.ready({ maxItems: 10, maxInFlight: 1 });
    const run = start(deps, chunks(20));
    const other = start(deps, chunks(20, 5, 'other'));
    await expect(run.finished).rejects.toMatchObject({ code: 'rate_limited', isTransient: true });
    const error = (await run.finished.catch((thrown: unknown) => thrown)) as { retryAfterMs: number };
    expect(error.retryAfterMs).toBeGreaterThan(3_590_000);
    await expect(other.finished).rejects.toMatchObject({ code: 'rate_limited' });
    expect(run.vectors.size + other.vectors.size).toBe(10);
    expect(world.server.requests).toHaveLength(2);
  });

  test('halves what is in flight, once for all that were', async () => {
    const gate = Promise.withResolvers<void>();
    world.server.respond((_, index) =>
      index < 30 ? {} : { delay: gate.promise, status: 429, headers: { 'retry-after': '1' } },
    );
    const deps = world.ready({ maxItems: 1, maxInFlight: 8 });
    const run = start(deps, chunks(100));
    await world.server.waitForRequests(38);
    expect(deps.lanes.of(deps.embedder).width).toBe(8);
    world.server.respond(() => ({}));
    gate.resolve();
    await expect.poll(() => world.server.open, until).toBe(0);
    expect(deps.lanes.of(deps.embedder).width).toBe(4);
    await world.passUntil(run.finished);
    expect(await run.finished).toMatchObject({ embedded: 100 });
  });
});
