import { afterEach, beforeEach, expect, test } from 'vitest';
import { type ModelServer, startModelServer, validateChatRequest } from './model-server.ts';

let server: ModelServer;
beforeEach(async () => {
  server = await startModelServer({ models: ['tiny'] });
});
afterEach(() => server.close());

const USER = { role: 'user', content: 'hi' };
const call = (id: string, name = 'f') => ({ id, type: 'function', function: { name, arguments: '{}' } });
const calls = (...ids: string[]) => ({
  role: 'assistant',
  content: null,
  tool_calls: ids.map((id) => call(id)),
});
const result = (id: string) => ({ role: 'tool', tool_call_id: id, content: 'x' });
const talk = (...messages: unknown[]) => ({ model: 'gpt-4.1-mini', messages });
const tool = (parameters: unknown, more: object = {}) => ({
  type: 'function',
  function: { name: 'f', parameters, ...more },
});
const withTools = (...tools: unknown[]) => ({ ...talk(USER), tools });
const EMPTY = { type: 'object', properties: {} };

async function post(body: unknown, key: string | null = server.apiKey, path = '/chat/completions') {
  const response = await fetch(server.url + path, {
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      ...(key === null ? {} : { authorization: `Bearer ${key}` }),
    },
    body: JSON.stringify(body),
  });
  return {
    status: response.status,
    body: (await response.json()) as Record<string, Record<string, unknown>>,
  };
}

test('what the real API takes is taken', () => {
  const good = [
    talk(USER),
    talk({ role: 'developer', content: 'd' }, { role: 'user', content: [{ type: 'text', text: 'a' }] }),
    talk(USER, calls('a', 'b'), result('b'), result('a'), USER),
    talk(USER, calls('a'), result('a'), calls('a'), result('a')),
    talk(USER, { role: 'assistant', content: 'ok' }, USER),
    { ...talk(USER), temperature: 2, max_tokens: 1, top_p: 0 },
    withTools({ type: 'function', function: { name: 'no-parameters' } }),
    withTools(tool(EMPTY), tool({ type: 'object', properties: { a: {} } }, { name: 'g' })),
    withTools(
      tool({ type: 'object', properties: { a: { $ref: '#/$defs/a' } }, $defs: { a: { type: 'string' } } }),
    ),
    withTools(
      tool(
        {
          type: 'object',
          properties: { a: { type: ['string', 'null'] } },
          required: ['a'],
          additionalProperties: false,
        },
        { strict: true },
      ),
    ),
  ];
  for (const body of good) expect(validateChatRequest(body), JSON.stringify(body)).toBeNull();
});

test('what the real API refuses is refused', () => {
  const strict = (parameters: object) => withTools(tool(parameters, { strict: true }));
  const object = (properties: object, more: object = {}) => ({
    type: 'object',
    properties,
    required: Object.keys(properties),
    additionalProperties: false,
    ...more,
  });
  const bad: [unknown, RegExp][] = [
    [null, /parse/],
    [{ messages: [USER] }, /model/],
    [{ ...talk(USER), model: 5 }, /'model'/],
    [{ ...talk(USER), stuff: 1 }, /Unrecognized .* stuff/],
    [{ model: 'm' }, /'messages'/],
    [talk(), /empty array/],
    [talk('hi'), /messages\[0\]/],
    [talk({ role: 'bot', content: 'x' }), /'bot'/],
    [talk({ ...USER, extra: 1 }), /messages\[0\]\.extra/],
    [talk({ role: 'user', content: null }), /got null/],
    [talk({ role: 'user', content: [] }), /empty/],
    [talk({ role: 'user', content: [{ type: 'video' }] }), /video/],
    [talk({ role: 'assistant', content: null }), /got null/],
    [talk({ role: 'assistant', content: 'x', tool_calls: [] }), /empty array/],
    [talk(result('a')), /role 'tool'/],
    [talk(USER, result('a')), /role 'tool'/],
    [talk(USER, calls('a'), result('b')), /'b' not found/],
    [talk(USER, calls('a'), result('a'), result('a')), /'a' not found/],
    [talk(USER, calls('a'), result('a'), USER, result('a')), /role 'tool'/],
    [talk(USER, calls('a', 'b'), result('a')), /did not have response messages: b/],
    [talk(USER, calls('a', 'b'), result('a'), USER), /did not have response messages: b/],
    [talk(USER, calls('a')), /response messages: a/],
    [talk(USER, calls('a'), calls('b'), result('b')), /response messages: a/],
    [talk(USER, calls('a', 'a'), result('a')), /Duplicate/],
    [talk(USER, calls('x'.repeat(41)), result('x')), /maximum length 40/],
    [talk(USER, { ...calls(), tool_calls: [call('a', 'bad name')] }, result('a')), /pattern/],
    [
      talk(
        USER,
        { ...calls(), tool_calls: [{ ...call('a'), function: { name: 'f', arguments: {} } }] },
        result('a'),
      ),
      /a string/,
    ],
    [{ ...talk(USER), temperature: 2.1 }, /temperature.*<= 2/],
    [{ ...talk(USER), temperature: '1' }, /temperature/],
    [{ ...talk(USER), max_tokens: 0 }, />= 1/],
    [{ ...talk(USER), max_tokens: 1.5 }, /integer/],
    [{ ...talk(USER), max_tokens: 5, max_completion_tokens: 5 }, /same time/],
    [{ ...talk(USER), model: 'o3', max_tokens: 5 }, /max_completion_tokens/],
    [{ ...talk(USER), model: 'gpt-5', temperature: 0 }, /temperature/],
    [{ ...talk(USER), tool_choice: 'auto' }, /only allowed when 'tools'/],
    [withTools(), /empty array/],
    [withTools(...Array.from({ length: 129 }, (_, at) => tool(EMPTY, { name: `f${at}` }))), /128/],
    [withTools(tool(EMPTY, { name: 'a b' })), /pattern/],
    [withTools(tool(EMPTY, { name: 'a'.repeat(65) })), /64/],
    [withTools(tool(EMPTY), tool(EMPTY)), /unique/],
    [withTools(tool({})), /type: "None"/],
    [withTools(tool({ type: 'array', items: {} })), /type: "array"/],
    [withTools(tool({ type: 'object' })), /missing properties/],
    [withTools(tool({ ...EMPTY, anyOf: [] })), /anyOf/],
    [withTools(tool({ type: 'object', properties: { a: { type: 'array' } } })), /'a'.*missing items/],
    [withTools(tool({ type: 'object', properties: { a: { type: 'any' } } })), /'any'/],
    [withTools(tool({ type: 'object', properties: { a: { $ref: '#/$defs/gone' } } })), /unresolved/],
    [withTools(tool({ type: 'object', properties: { a: { $ref: 'https://x/y' } } })), /unresolved/],
    [strict(EMPTY), /additionalProperties/],
    [strict(object({ a: { type: 'string' } }, { required: [] })), /Missing 'a'/],
    [strict(object({ a: { type: 'string', format: 'uri' } })), /'uri'/],
    [strict(object({ a: { type: 'string', default: '' } })), /'default'/],
    [strict(object({ a: {} })), /'type'/],
    [strict(object({ a: { type: 'object', properties: {}, required: [] } })), /'a'.*additionalProperties/],
    [{ ...withTools(tool(EMPTY)), tool_choice: { type: 'function', function: { name: 'g' } } }, /not found/],
  ];
  for (const [body, message] of bad) expect(validateChatRequest(body), JSON.stringify(body)).toMatch(message);
});

test('a refusal has OpenAI’s shape, is listed, and asks no script', async () => {
  let asked = 0;
  server.respond(() => ({ content: String(++asked) }));
  const refused = await post(talk(USER, result('a')));
  expect(refused.status).toBe(400);
  expect(refused.body.error).toMatchObject({
    type: 'invalid_request_error',
    param: 'messages[1].role',
    code: null,
  });
  expect((await post(talk(USER), 'sk-wrong-key-0123456789')).body.error?.message).toMatch(
    /provided: sk-wrong\*+6789\./,
  );
  expect((await post(talk(USER), null)).status).toBe(401);
  expect((await post({ ...talk(USER), model: 'gpt-none' })).body.error?.code).toBe('model_not_found');
  expect((await post({ ...talk(USER), max_tokens: 99_999 })).body.error?.message).toMatch(/too large/);
  expect((await post(talk(USER), server.apiKey, '/nothing')).status).toBe(404);
  expect(server.rejected.map(({ status }) => status)).toEqual([400, 401, 401, 404, 400, 404]);
  expect(server.requests).toHaveLength(6);
  expect(asked).toBe(0);
});

test('without a script the last user text is echoed, also for a model of the test’s own', async () => {
  const { body } = await post({
    ...talk(USER, { role: 'assistant', content: 'x' }, { role: 'user', content: 'two' }),
    model: 'tiny',
  });
  expect(body).toMatchObject({
    model: 'tiny',
    choices: [{ message: { content: 'echo: two' }, finish_reason: 'stop' }],
  });
  expect(server.rejected).toEqual([]);
});

test('an answer waits for its signal, and a request can be awaited before and after it comes', async () => {
  let release: () => void = () => {};
  const delay = new Promise<void>((resolve) => {
    release = resolve;
  });
  server.respond((_request, index) => ({ content: `answer ${index}`, delay }));
  const second = server.waitForRequest((request) => request.userText === 'hi', 2);
  const both = Promise.all([post(talk(USER)), post(talk(USER))]);
  expect(await second).toBe(server.requests[1]);
  expect(await server.waitForRequest()).toBe(server.requests[0]);
  release();
  expect((await both).map(({ status }) => status)).toEqual([200, 200]);
  expect(await server.requests[0]?.finished).toBe(false);
});

test('a small window overflows as the real one does', async () => {
  const small = await startModelServer({ contextTokens: 50 });
  const response = await fetch(`${small.url}/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', authorization: `Bearer ${small.apiKey}` },
    body: JSON.stringify(talk({ role: 'user', content: 'x'.repeat(400) })),
  });
  expect(await response.json()).toMatchObject({ error: { code: 'context_length_exceeded' } });
  await small.close();
});
