/** Embeddings over HTTP: what is sent, what is checked, and how failures are told apart. */
import { afterEach, describe, expect, test, vi } from 'vitest';
import { DocumentError } from '../../src/providers/document-error.ts';
import { EmbeddingError } from '../../src/providers/embedding-error.ts';
import { loadEmbeddingCatalog } from '../../src/providers/embedding-models.ts';
import { openAiEmbedder } from '../../src/providers/embeddings.ts';
import {
  type EmbeddingServer,
  type EmbeddingServerOptions,
  type ScriptedEmbedding,
  startEmbeddingServer,
  vectorOf,
} from '../peers/embedding-server.ts';

let server: EmbeddingServer;
const catalog = loadEmbeddingCatalog();
const forever = { signal: new AbortController().signal };
const SMALL = 'text-embedding-3-small';

afterEach(async () => {
  vi.unstubAllEnvs();
  await server?.close();
});

async function serve(options: EmbeddingServerOptions = {}): Promise<void> {
  server = await startEmbeddingServer(options);
}

function embedder(changes: Partial<Parameters<typeof openAiEmbedder>[0]> = {}) {
  const model = changes.model ?? SMALL;
  return openAiEmbedder({
    model,
    dimensions: 64,
    known: catalog.model(model),
    apiKey: server.apiKey,
    baseUrl: server.url,
    timeoutMs: 30_000,
    ...changes,
  });
}

async function failure(promise: Promise<unknown>): Promise<EmbeddingError> {
  const error = await promise.then(
    () => null,
    (thrown: unknown) => thrown,
  );
  expect(error).toBeInstanceOf(EmbeddingError);
  expect(error).toBeInstanceOf(DocumentError);
  return error as EmbeddingError;
}

const TEXTS = ['one', 'two words', '東京 <|endoftext|> \u{1F600}'];

describe('an answer', () => {
  test('has one vector for each text, in their order, with what it cost', async () => {
    await serve();
    server.respond(() => ({ data: (items) => items.reverse() }));
    const answer = await embedder().embed(TEXTS, forever);
    expect(answer.vectors.map((vector) => Array.from(vector))).toEqual(
      TEXTS.map((text) => vectorOf(text, 64)),
    );
    expect(answer).toMatchObject({ tokens: server.paid.tokens, isReported: true });
    expect(answer.costMicros).toBeCloseTo(server.paid.tokens * 0.02, 9);
    expect(server.requests[0]?.body).toEqual({
      model: SMALL,
      input: TEXTS,
      encoding_format: 'base64',
      dimensions: 64,
    });
    expect(server.rejected).toEqual([]);
  });

  test('says what is left of the limits', async () => {
    await serve({ limits: { requestsPerMinute: 60, tokensPerMinute: 6_000 } });
    expect((await embedder().embed(['one'], forever)).limits).toMatchObject({
      requests: { limit: 60, left: 59, perSecond: 1 },
      tokens: { limit: 6_000, perSecond: 100 },
    });
  });

  test('of no texts needs no request', async () => {
    await serve();
    expect((await embedder().embed([], forever)).vectors).toEqual([]);
    expect(server.requests).toEqual([]);
  });

  test('without usage is counted by guess and says so', async () => {
    await serve();
    server.respond(() => ({ usage: null }));
    expect(await embedder().embed(['12345678'], forever)).toMatchObject({ tokens: 2, isReported: false });
  });

  test('takes nothing from the environment: a key goes to its base URL alone', async () => {
    await serve();
    vi.stubEnv('OPENAI_API_KEY', 'sk-of-the-operator');
    vi.stubEnv('OPENAI_BASE_URL', 'http://127.0.0.1:9/v1');
    await embedder().embed(['one'], forever);
    expect(server.requests[0]?.apiKey).toBe(server.apiKey);
  });
});

describe('servers that are not OpenAI', () => {
  test.each(['ignored', 'refused'] as const)('whose base64 is %s write numbers', async (base64) => {
    await serve({ base64 });
    const one = embedder();
    for (let i = 0; i < 2; i++) {
      const { vectors } = await one.embed(TEXTS, forever);
      expect(vectors.map((vector) => Array.from(vector))).toEqual(TEXTS.map((text) => vectorOf(text, 64)));
    }
    // a 400 is met once
    expect(server.rejected).toHaveLength(base64 === 'refused' ? 1 : 0);
  });

  test('are asked for smaller answers until they have shown that they write base64', async () => {
    await serve();
    const one = embedder({ dimensions: 1536 });
    const before = one.maxItems;
    await one.embed(['one'], forever);
    expect(before).toBeLessThan(80);
    expect(one.maxItems).toBeGreaterThan(200);
    expect(
      openAiEmbedder({ model: SMALL, dimensions: 64, known: null, apiKey: 'k', baseUrl: null }).maxItems,
    ).toBe(2048);
  });

  test('that refuse `dimensions` are asked without', async () => {
    await serve({ models: { nomic: 64 }, refusesDimensions: true });
    const one = embedder({ model: 'nomic' });
    await one.embed(['one'], forever);
    await one.embed(['two'], forever);
    expect(server.requests.map(({ body }) => body.dimensions)).toEqual([64, undefined, undefined]);
  });

  test('that quote a text in a 400 do not thereby change what is asked for', async () => {
    await serve({ models: { nomic: 999 } });
    const one = embedder({ model: 'nomic' });
    server.respond((request) =>
      request.texts[0] === 'bad'
        ? { status: 400, error: { message: "can't embed: the dimensions of base64" } }
        : {},
    );
    expect(await failure(one.embed(['bad'], forever))).toMatchObject({ code: 'embedding_refused' });
    await one.embed(['good'], forever);
    expect(server.requests.at(-1)?.body).toMatchObject({ dimensions: 64, encoding_format: 'base64' });
  });

  test('a known model without a choice of dimensions is not asked for any', async () => {
    await serve();
    await embedder({ model: 'text-embedding-ada-002', dimensions: 1536 }).embed(['one'], forever);
    expect(server.requests[0]?.body.dimensions).toBeUndefined();
    expect(() => embedder({ model: 'text-embedding-ada-002', dimensions: 64 })).toThrow(/1536 dimensions/);
    expect(() => embedder({ dimensions: 1537 })).toThrow(/at most 1536/);
  });
});

type Case = readonly [string, ScriptedEmbedding, Partial<EmbeddingError>];
const passing: Partial<EmbeddingError> = { code: 'provider_error', isTransient: true };
const broken: Partial<EmbeddingError> = { ...passing, mayBeOneText: true };
const CASES: readonly Case[] = [
  [
    '429 with Retry-After',
    { status: 429, headers: { 'retry-after': '7' } },
    { code: 'rate_limited', isTransient: true, retryAfterMs: 7_000, mayBeOneText: false, isOverloaded: true },
  ],
  ['429 without it', { status: 429 }, { code: 'rate_limited', isTransient: true, retryAfterMs: null }],
  [
    '429 of an empty account',
    { status: 429, error: { code: 'insufficient_quota' } },
    { code: 'credentials_refused', isTransient: false },
  ],
  [
    'a request larger than the limit',
    { status: 429, error: { message: 'Request too large for x on tokens per min' } },
    { code: 'embedding_refused', mayBeOneText: true },
  ],
  [
    '400 about a text',
    { status: 400, error: { message: 'bad input' } },
    { code: 'embedding_refused', isTransient: false, mayBeOneText: true },
  ],
  [
    'a content filter',
    { status: 400, error: { code: 'content_filter' } },
    { code: 'embedding_refused', mayBeOneText: true },
  ],
  ['403', { status: 403 }, { code: 'credentials_refused', isTransient: false, mayBeOneText: false }],
  ['500', { status: 500 }, { ...passing, mayBeOneText: true }],
  [
    '503',
    { status: 503, headers: { 'retry-after': '3' } },
    { ...passing, mayBeOneText: false, isOverloaded: true, retryAfterMs: 3_000 },
  ],
  ['a cut connection', { drop: true }, { ...passing, mayBeOneText: false }],
  ['a redirect', { status: 308 }, { code: 'provider_error', isTransient: false }],
  ['no JSON', { body: '<html>' }, broken],
  ['JSON of another kind', { body: '[]' }, broken],
  ['fewer items', { data: (items) => items.slice(1) }, broken],
  ['more items', { data: (items) => [...items, ...items] }, broken],
  ['an index twice', { data: (items) => items.map((item) => ({ ...item, index: 0 })) }, broken],
  ['an index beyond', { data: (items) => items.map((item) => ({ ...item, index: 7 })) }, broken],
  ['no vector', { data: (items) => items.map(({ index }) => ({ index })) }, broken],
  [
    'text that is no base64',
    { data: (items) => items.map((item) => ({ ...item, embedding: 'no!' })) },
    broken,
  ],
  ['NaN', { vector: (_, numbers) => [Number.NaN, ...numbers.slice(1)] }, broken],
  ['Infinity', { vector: (_, numbers) => [Number.POSITIVE_INFINITY, ...numbers.slice(1)] }, broken],
  ['more than half precision holds', { vector: (_, numbers) => [70_000, ...numbers.slice(1)] }, broken],
  ['zeros', { vector: (_, numbers) => numbers.map(() => 0) }, broken],
  [
    'null in a list of numbers',
    { data: (items) => items.map((item) => ({ ...item, embedding: [null, ...Array(63).fill(0.1)] })) },
    broken,
  ],
  [
    'other dimensions',
    { dimensions: 65 },
    { code: 'wrong_dimensions', isTransient: false, mayBeOneText: false },
  ],
];

describe('a failure is told apart', () => {
  test.each(CASES)('%s', async (_, script, expected) => {
    await serve();
    server.respond(() => script);
    const error = await failure(embedder().embed(TEXTS, forever));
    expect(error).toMatchObject(expected);
    expect(error.message.length).toBeLessThan(900);
    expect(error.message).not.toContain(server.apiKey);
    // what was answered with vectors was paid for
    if (script.data || script.vector || script.dimensions)
      expect(error.usage?.tokens).toBe(server.paid.tokens);
  });

  test('a refused key, of which the message shows nothing', async () => {
    await serve();
    const error = await failure(embedder({ apiKey: 'sk-wrong-0123456789abcdef' }).embed(TEXTS, forever));
    expect(error).toMatchObject({ code: 'credentials_refused', isTransient: false });
    expect(error.message).not.toMatch(/sk-|cdef/);
    expect(error.message).toContain('Replace the API key');
  });

  test('a model that is none', async () => {
    await serve();
    const error = await failure(embedder({ model: 'gpt-9' }).embed(TEXTS, forever));
    expect(error).toMatchObject({ code: 'provider_error', isTransient: false, mayBeOneText: false });
    expect(error.message).toContain('AGENTD_EMBEDDING_MODEL');
  });

  test('nobody there', async () => {
    await serve();
    const error = await failure(embedder({ baseUrl: 'http://127.0.0.1:1/v1' }).embed(TEXTS, forever));
    expect(error).toMatchObject({ code: 'provider_error', isTransient: true, mayBeOneText: false });
  });

  test('a hang ends at the time limit', async () => {
    await serve();
    server.respond(() => ({ hang: true }));
    const error = await failure(embedder({ timeoutMs: 50 }).embed(TEXTS, forever));
    expect(error).toMatchObject({ code: 'provider_error', isTransient: true, mayBeOneText: false });
  });

  test('an abort is the signal’s own reason', async () => {
    await serve();
    server.respond(() => ({ hang: true }));
    const stop = new AbortController();
    const reason = new Error('drained');
    const asked = embedder().embed(TEXTS, { signal: stop.signal });
    asked.catch(() => {});
    await server.waitForRequests(1);
    stop.abort(reason);
    await expect(asked).rejects.toBe(reason);
    await expect(embedder().embed(TEXTS, { signal: stop.signal })).rejects.toBe(reason);
  });
});

test('the server refuses what OpenAI refuses', async () => {
  await serve();
  const refusal = async (texts: readonly string[]) => failure(embedder().embed(texts, forever));
  await refusal(['']);
  await refusal(['a', ' word'.repeat(8_193)]);
  await refusal(Array.from({ length: 2_049 }, () => 'x'));
  await refusal(Array.from({ length: 38 }, () => ' word'.repeat(8_000)));
  expect(server.rejected.map(({ status }) => status)).toEqual([400, 400, 400, 400]);
  expect((await embedder().embed([' word'.repeat(8_192)], forever)).tokens).toBe(8_192);
  expect(
    (
      await embedder().embed(
        Array.from({ length: 2_048 }, () => 'x'),
        forever,
      )
    ).tokens,
  ).toBe(2_048);
});
