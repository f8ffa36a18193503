import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { gzipSync } from 'node:zlib';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { ProviderError } from '../../src/providers/errors.ts';
import { type ModelRequest, openAiModelClient } from '../../src/providers/models.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';

let server: ModelServer;

beforeEach(async () => {
  server = await startModelServer();
});

afterEach(async () => {
  vi.useRealTimers();
  vi.unstubAllEnvs();
  await server.close();
});

const forever = new AbortController().signal;

function client(overrides: { apiKey?: string; baseUrl?: string; timeoutMs?: number } = {}) {
  return openAiModelClient({ apiKey: server.apiKey, baseUrl: server.url, timeoutMs: 30_000, ...overrides });
}

function ask(overrides: Partial<ModelRequest> = {}): ModelRequest {
  return {
    model: 'gpt-4.1-mini',
    messages: [
      { role: 'system', content: 'Answer.' },
      { role: 'user', content: 'hello' },
    ],
    idempotencyKey: 'run-step-turn',
    ...overrides,
  };
}

async function failure(promise: Promise<unknown>): Promise<ProviderError> {
  const error = await promise.then(
    () => null,
    (thrown: unknown) => thrown,
  );
  expect(error).toBeInstanceOf(ProviderError);
  return error as ProviderError;
}

const WEATHER = {
  type: 'function' as const,
  function: {
    name: 'weather',
    description: 'The weather of a city',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
};

test('an answer comes back whole: content, usage, model, id', async () => {
  server.respond(() => ({
    content: 'Good day.',
    usage: { promptTokens: 20, completionTokens: 3, cachedTokens: 8 },
  }));
  const answer = await client().complete(ask({ temperature: 0.2, maxTokens: 50 }), forever);
  expect(answer).toMatchObject({
    content: 'Good day.',
    toolCalls: [],
    refusal: null,
    finishReason: 'stop',
    usage: { promptTokens: 20, completionTokens: 3, cachedTokens: 8, reported: true },
    model: 'gpt-4.1-mini',
    responseId: 'chatcmpl-1',
  });
  expect(Number.isInteger(answer.latencyMs)).toBe(true);
  expect(server.requests[0]?.body).toEqual({
    model: 'gpt-4.1-mini',
    messages: ask().messages,
    temperature: 0.2,
    max_tokens: 50,
  });
  expect(server.rejected).toEqual([]);
});

test('the request carries the journal’s key and nothing of the operator’s environment', async () => {
  vi.stubEnv('OPENAI_ORG_ID', 'org-of-the-operator');
  vi.stubEnv('OPENAI_PROJECT_ID', 'project-of-the-operator');
  vi.stubEnv('OPENAI_ADMIN_KEY', 'sk-admin-of-the-operator');
  vi.stubEnv('OPENAI_CUSTOM_HEADERS', 'x-operator: secret');
  vi.stubEnv('OPENAI_BASE_URL', 'http://127.0.0.1:1/v1');
  await client({ timeoutMs: 29_000 }).complete(ask(), forever);
  const headers = server.requests[0]?.headers ?? {};
  expect(server.requests[0]?.idempotencyKey).toBe('run-step-turn');
  expect(headers.authorization).toBe(`Bearer ${server.apiKey}`);
  expect(JSON.stringify(headers)).not.toMatch(/operator|stainless/);
});

test('a conversation with tools passes a strict server, turn after turn', async () => {
  server.respond((request, index) =>
    index === 0
      ? { toolCalls: [{ name: 'weather', arguments: { city: 'Bern' } }] }
      : { content: `It is ${request.body.messages.at(-1)?.content}.` },
  );
  const first = await client().complete(ask({ tools: [WEATHER] }), forever);
  expect(first).toMatchObject({ content: null, finishReason: 'tool_calls' });
  const [call] = first.toolCalls;
  expect(call).toMatchObject({ name: 'weather', arguments: '{"city":"Bern"}' });
  if (!call) throw new Error('no call');
  const second = await client().complete(
    ask({
      tools: [WEATHER],
      messages: [
        ...ask().messages,
        {
          role: 'assistant',
          content: null,
          tool_calls: [
            { id: call.id, type: 'function', function: { name: call.name, arguments: call.arguments } },
          ],
        },
        { role: 'tool', tool_call_id: call.id, content: 'sunny' },
      ],
    }),
    forever,
  );
  expect(second.content).toBe('It is sunny.');
  expect(server.rejected).toEqual([]);
});

test('a wrong key is a credential error and neither key nor echo is in any text of it', async () => {
  const apiKey = 'sk-proj-Canary7391xYzAbCdEfGhIjKlMnOp';
  const error = await failure(client({ apiKey }).complete(ask(), forever));
  expect(error).toMatchObject({ kind: 'credential', code: 'invalid_api_key', status: 401 });
  expect(server.rejected[0]?.message).toContain('sk-proj-'); // the peer did echo a part of it
  expectNoPiece(error, apiKey);
});

test('a key echoed by any other error is masked', async () => {
  const { apiKey } = server;
  const shown = `${apiKey.slice(0, 9)}...${apiKey.slice(-4)}`;
  for (const status of [400, 403, 404, 422, 429, 500]) {
    server.respond(() => ({
      status,
      error: { message: `Project of key ${apiKey}, also ${shown} or ${apiKey.slice(3, 20)}` },
    }));
    const error = await failure(client().complete(ask(), forever));
    expect(error.message).toContain('Project of key');
    expectNoPiece(error, apiKey);
  }
});

function expectNoPiece(error: Error, key: string): void {
  const everything = `${JSON.stringify(error, Object.getOwnPropertyNames(error))} ${error.stack} ${String(error.cause)}`;
  for (let at = 0; at + 6 <= key.length; at++) expect(everything).not.toContain(key.slice(at, at + 6));
  expect(everything).not.toContain(key.slice(-4));
}

test('the caller’s signal ends the call at once and is told from a time-out', async () => {
  server.respond(() => ({ hang: true }));
  const controller = new AbortController();
  const failed = failure(client().complete(ask(), controller.signal));
  const request = await server.waitForRequest();
  controller.abort(new Error('lease lost'));
  expect(await failed).toMatchObject({ kind: 'aborted', code: 'aborted' });
  expect(await request.finished).toBe(true);
});

test('a signal that had already fired sends nothing', async () => {
  const error = await failure(client().complete(ask(), AbortSignal.abort()));
  expect(error.kind).toBe('aborted');
  expect(server.requests).toHaveLength(0);
});

test('the time limit ends a silent call as a retryable time-out', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  server.respond(() => ({ hang: true }));
  const failed = failure(client({ timeoutMs: 5000 }).complete(ask(), forever));
  const request = await server.waitForRequest();
  vi.advanceTimersByTime(5001);
  expect(await failed).toMatchObject({ kind: 'retry', code: 'timeout', status: null });
  expect(await request.finished).toBe(true);
});

test('the time limit covers a body that never ends', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  let begun: () => void = () => {};
  const headersSent = new Promise<void>((resolve) => {
    begun = resolve;
  });
  const slow = createServer((_request, response) => {
    response.writeHead(200, { 'content-type': 'application/json' });
    response.write('{"choices":', begun);
  });
  await new Promise<void>((resolve) => void slow.listen(0, '127.0.0.1', resolve));
  const baseUrl = `http://127.0.0.1:${(slow.address() as AddressInfo).port}/v1`;
  const failed = failure(client({ baseUrl, timeoutMs: 5000 }).complete(ask(), forever));
  await headersSent;
  vi.advanceTimersByTime(5001);
  expect(await failed).toMatchObject({ kind: 'retry', code: 'timeout' });
  slow.closeAllConnections();
  slow.close();
});

test('a finished call leaves no listener on a long-lived signal', async () => {
  const { signal } = new AbortController();
  const added = vi.spyOn(signal, 'addEventListener');
  const removed = vi.spyOn(signal, 'removeEventListener');
  for (let turn = 0; turn < 3; turn++) await client().complete(ask(), signal);
  expect(added.mock.calls.length).toBeGreaterThan(0);
  expect(removed.mock.calls.length).toBe(added.mock.calls.length);
});

test('a cut connection and a closed port are retryable connection errors', async () => {
  server.respond(() => ({ drop: true }));
  expect(await failure(client().complete(ask(), forever))).toMatchObject({
    kind: 'retry',
    code: 'connection',
  });
  const free = createServer();
  await new Promise<void>((resolve) => void free.listen(0, '127.0.0.1', resolve));
  const { port } = free.address() as AddressInfo;
  await new Promise((resolve) => free.close(resolve));
  const error = await failure(client({ baseUrl: `http://127.0.0.1:${port}/v1` }).complete(ask(), forever));
  expect(error).toMatchObject({ kind: 'retry', code: 'connection', status: null });
  expect(error.message).toContain('ECONNREFUSED');
});

test('an answer that is no answer is a retryable bad_response', async () => {
  const nonsense = [
    '',
    'not json',
    'null',
    '[]',
    '"text"',
    '{}',
    '{"choices":[]}',
    '{"choices":[{}]}',
    '{"choices":[{"message":{}}]}',
    '{"choices":[{"message":{"content":null},"finish_reason":"stop"}]}',
    '{"choices":[{"message":{"tool_calls":[{"id":"a"}]}}]}',
    '{"choices":[{"message":{"content":"x"',
  ];
  for (const body of nonsense) {
    server.respond(() => ({ body }));
    const error = await failure(client().complete(ask(), forever));
    expect(error, body).toMatchObject({ kind: 'retry', code: 'bad_response' });
  }
  server.respond(() => ({ body: '<html>login</html>', headers: { 'content-type': 'text/html' } }));
  expect(await failure(client().complete(ask(), forever))).toMatchObject({
    kind: 'retry',
    code: 'bad_response',
  });
});

test('missing usage is zero and says that it is unknown', async () => {
  server.respond(() => ({ content: 'x', usage: null }));
  expect((await client().complete(ask(), forever)).usage).toEqual({
    promptTokens: 0,
    completionTokens: 0,
    cachedTokens: 0,
    reported: false,
  });
});

test('dialects of compatible servers are read', async () => {
  const choice = (message: object, finish_reason = 'stop') =>
    JSON.stringify({ choices: [{ message, finish_reason }] });
  const read = async (body: string) => {
    server.respond(() => ({ body }));
    return client().complete(ask(), forever);
  };
  const parts = [
    { type: 'thinking', thinking: [] },
    { type: 'text', text: 'a' },
    { type: 'text', text: 'b' },
  ];
  expect(await read(choice({ content: parts }))).toMatchObject({
    content: 'ab',
    model: 'gpt-4.1-mini',
    responseId: null,
  });
  const calls = [
    { function: { name: 'f', arguments: { a: 1 } } },
    { id: '', function: { name: 'g', arguments: '{' } },
  ];
  const called = await read(choice({ content: '', tool_calls: calls }));
  expect(called.finishReason).toBe('tool_calls');
  expect(called.toolCalls.map((call) => call.arguments)).toEqual(['{"a":1}', '{']);
  const ids = called.toolCalls.map((call) => call.id);
  expect(new Set(ids).size).toBe(2);
  expect(ids.every((id) => /^call_\w{1,35}$/.test(id))).toBe(true);
  expect((await read(choice({ tool_calls: calls }))).toolCalls.map((call) => call.id)).toEqual(ids);
  expect(await read(choice({ content: null, function_call: { name: 'f', arguments: '{}' } }))).toMatchObject({
    toolCalls: [{ name: 'f', arguments: '{}' }],
  });
  expect(await read(choice({ content: null, refusal: 'No.' }))).toMatchObject({
    content: null,
    refusal: 'No.',
  });
  expect(await read(choice({ content: null }, 'content_filter'))).toMatchObject({
    finishReason: 'content_filter',
  });
  expect(await read(choice({ content: 'cu' }, 'MAX_TOKENS'))).toMatchObject({ finishReason: 'length' });
});

test('an error inside a 200 is that error', async () => {
  server.respond(() => ({ body: '{"error":{"code":429,"message":"upstream is busy"}}' }));
  expect(await failure(client().complete(ask(), forever))).toMatchObject({
    kind: 'rate_limited',
    status: 429,
  });
  server.respond(() => ({
    body: '{"choices":[{"message":{"content":""},"error":{"code":502,"message":"lost"}}]}',
  }));
  expect(await failure(client().complete(ask(), forever))).toMatchObject({
    kind: 'retry',
    code: 'server_error',
  });
});

test('a redirect is not followed: the key stays where it was configured', async () => {
  const other = await startModelServer({ apiKeys: [server.apiKey] });
  server.respond(() => ({ status: 307, headers: { location: `${other.url}/chat/completions` } }));
  expect(await failure(client().complete(ask(), forever))).toMatchObject({
    kind: 'permanent',
    code: 'redirect',
  });
  expect(other.requests).toHaveLength(0);
  await other.close();
});

test('an endless answer is refused, not kept in memory', async () => {
  server.respond(() => ({ body: `{"choices":[{"message":{"content":"${'x'.repeat(33 * 1024 * 1024)}"}}]}` }));
  expect(await failure(client().complete(ask(), forever))).toMatchObject({
    kind: 'retry',
    code: 'bad_response',
  });
});

test('a compressed answer is read, and a compressed bomb refused', async () => {
  const body = JSON.stringify({ choices: [{ message: { content: 'zipped' }, finish_reason: 'stop' }] });
  const bomb = gzipSync(Buffer.alloc(40 * 1024 * 1024));
  let zipped = gzipSync(body);
  const zipping = createServer((request, response) => {
    request.resume();
    response.writeHead(200, { 'content-type': 'application/json', 'content-encoding': 'gzip' });
    response.end(zipped);
  });
  await new Promise<void>((resolve) => void zipping.listen(0, '127.0.0.1', resolve));
  const baseUrl = `http://127.0.0.1:${(zipping.address() as AddressInfo).port}/v1`;
  expect((await client({ baseUrl }).complete(ask(), forever)).content).toBe('zipped');
  zipped = bomb;
  const refused = await failure(client({ baseUrl }).complete(ask(), forever));
  expect(refused).toMatchObject({ kind: 'retry', code: 'bad_response' });
  expect(refused.message).toContain('ERR_BUFFER_TOO_LARGE');
  zipping.closeAllConnections();
  zipping.close();
});

test('parameters that a reasoning model refuses are left out, learned once per client', async () => {
  const mine = client({ timeoutMs: 28_000 });
  const request = ask({ model: 'o4-mini', temperature: 0.3, maxTokens: 100 });
  expect((await mine.complete(request, forever)).content).toBe('echo: hello');
  expect(server.requests.at(-1)?.body).toEqual({
    model: 'o4-mini',
    messages: request.messages,
    max_completion_tokens: 100,
  });
  const used = server.requests.length;
  await mine.complete(request, forever);
  expect(server.requests.length).toBe(used + 1);
  expect(new Set(server.requests.slice(0, used).map((sent) => sent.idempotencyKey)).size).toBe(used);
});

test('a server’s failure is tried once: retries are the worker’s', async () => {
  server.respond(() => ({ status: 503, headers: { 'retry-after': '2' } }));
  expect(await failure(client().complete(ask(), forever))).toMatchObject({
    kind: 'retry',
    code: 'overloaded',
    retryAfterMs: 2000,
  });
  expect(server.requests).toHaveLength(1);
});

test('any fetch can be the transport, and the caller’s signal reaches it', async () => {
  const direct = openAiModelClient({ apiKey: server.apiKey, baseUrl: server.url, timeoutMs: 30_000, fetch });
  expect((await direct.complete(ask(), forever)).content).toBe('echo: hello');
  server.respond(() => ({ status: 429, headers: { 'retry-after': '3' } }));
  expect(await failure(direct.complete(ask(), forever))).toMatchObject({
    kind: 'rate_limited',
    retryAfterMs: 3000,
  });
  server.respond(() => ({ hang: true }));
  const controller = new AbortController();
  const failed = failure(direct.complete(ask(), controller.signal));
  const request = await server.waitForRequest(undefined, 3);
  controller.abort();
  expect((await failed).kind).toBe('aborted');
  expect(await request.finished).toBe(true);
});

test('clients are shared per endpoint and key, never across keys', () => {
  expect(client()).toBe(client());
  expect(client()).not.toBe(client({ apiKey: 'sk-another' }));
  expect(client()).not.toBe(client({ baseUrl: 'http://127.0.0.1:1/v1' }));
});

test('the cache of clients is bounded and drops the least recently used', () => {
  const kept = client({ apiKey: 'kept' });
  const dropped = client({ apiKey: 'dropped' });
  for (let number = 0; number < 499; number++) {
    client({ apiKey: `tenant ${number}` });
    if (number % 100 === 0) expect(client({ apiKey: 'kept' })).toBe(kept);
  }
  expect(client({ apiKey: 'kept' })).toBe(kept);
  expect(client({ apiKey: 'dropped' })).not.toBe(dropped);
});
