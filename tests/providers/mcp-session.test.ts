/** A session with servers that behave as no server should. */
import { readFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { parseAllowedHosts } from '../../src/providers/guarded-address.ts';
import { McpError } from '../../src/providers/mcp-error.ts';
import { type McpSession, type McpSettings, openMcpSession } from '../../src/providers/mcp-session.ts';
import {
  cutOff,
  dribbles,
  floods,
  type HostileMcp,
  hangs,
  plainTool,
  startHostileMcp,
} from '../peers/hostile-mcp.ts';
import { type McpServer, serverTool, startMcpServer, textResult } from '../peers/mcp-server.ts';
import { until } from '../support/runs.ts';

let hostile: HostileMcp;
let server: McpServer;
const open: McpSession[] = [];

beforeEach(async () => {
  hostile = await startHostileMcp();
  server = await startMcpServer([serverTool('plain')]);
});

afterEach(async () => {
  for (const session of open.splice(0)) await session.close();
  await hostile[Symbol.asyncDispose]();
  await server.close();
});

/** Gone, or dead and not yet collected. */
function hasEnded(pid: number): boolean {
  try {
    return / [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch {
    return true;
  }
}

const never = (): AbortSignal => new AbortController().signal;

function settings(url: string, more: Partial<McpSettings> = {}): McpSettings {
  return {
    url,
    headers: { authorization: 'Bearer canary-4711-secret' },
    connectTimeoutMs: 2_000,
    requestTimeoutMs: 1_000,
    maxBytes: 100_000,
    maxPages: 5,
    allowedPrivateHosts: parseAllowedHosts([hostile.host, `127.0.0.1:${server.port}`]),
    clock: systemClock,
    ...more,
  };
}

async function session(url: string, more: Partial<McpSettings> = {}): Promise<McpSession> {
  const opened = await openMcpSession(settings(url, more), never());
  open.push(opened);
  return opened;
}

/** The code of the McpError that it rejects with. No message of one holds the secret. */
async function code(work: Promise<unknown>): Promise<string> {
  const error = await work.then(
    () => null,
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof McpError)) throw new Error(`It ended with ${String(error)}`);
  expect(`${error.message} ${error.nextStep}`).not.toContain('canary');
  return error.code;
}

const call = (opened: McpSession, timeoutMs = 1_000, signal = never()) =>
  opened.callTool({ name: 'plain', arguments: {}, idempotencyKey: 'key', signal, timeoutMs });

describe('an address', () => {
  test('that nobody opened, is no URL of the web, or holds a password, is not asked', async () => {
    const closed = { allowedPrivateHosts: parseAllowedHosts([]) };
    for (const url of [
      server.url,
      'http://169.254.169.254:80/mcp',
      'file:///etc/passwd',
      'https://a:b@example.com/',
    ]) {
      expect([url, await code(session(url, closed))]).toEqual([url, 'blocked_address']);
    }
    expect(server.requests).toEqual([]);
  });

  test('whose name leads to a private address is not asked', async () => {
    const url = 'http://rebound.example.com:80/mcp';
    expect(await code(session(url, { resolve: async () => ['127.0.0.1'] }))).toBe('blocked_address');
  });

  test('that redirects to another origin gets no further, and the credential goes nowhere', async () => {
    const url = hostile.raw('/away', (_request, response) => {
      response.writeHead(307, { location: server.url }).end();
    });
    expect(await code(session(url))).toBe('other_origin');
    expect(server.requests).toEqual([]);
  });

  test('whose event stream names an endpoint of another origin gets no message', async () => {
    const url = hostile.raw('/sse', (request, response) => {
      if (request.method === 'POST') return void response.writeHead(405).end();
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write(`event: endpoint\ndata: ${server.url}\n\n`);
    });
    expect(await code(session(url))).toMatch(/^(?:other_origin|bad_answer)$/);
    expect(server.requests).toEqual([]);
  });
});

describe('an answer', () => {
  test.each([
    ['never comes', hangs, 'timeout'],
    ['comes a little at a time for ever', dribbles('text/event-stream'), 'timeout'],
    ['of JSON comes a little at a time for ever', dribbles('application/json'), 'timeout'],
    ['of JSON is cut off', cutOff(200), 'unreachable'],
    ['that refuses us is cut off', cutOff(401), 'auth_required'],
    ['that says how often we may come is cut off', cutOff(429), 'rate_limited'],
    ['of JSON has no end', floods('application/json', 50_000_000), 'too_large'],
    ['of events has no end', floods('text/event-stream', 50_000_000), 'too_large'],
    [
      'is a page',
      (_: unknown, response: import('node:http').ServerResponse) => void response.end('<html>'),
      'bad_answer',
    ],
  ] as const)('that %s', async (_, page, expected) => {
    expect(await code(session(hostile.raw('/mcp', page)))).toBe(expected);
  });

  test('to a call, of too many bytes: that call fails, and the session serves the next one', async () => {
    const opened = await session(server.url);
    server.call = () => textResult('x'.repeat(200_000));
    expect(await code(call(opened))).toBe('too_large');
    server.call = () => textResult('small');
    expect((await call(opened)).text).toBe('small');
  });

  test.each([
    [401, 'auth_required'],
    [403, 'forbidden'],
    [404, 'session_lost'],
    [429, 'rate_limited'],
    [500, 'server_error'],
    [418, 'http_error'],
  ])('of status %i', async (status, expected) => {
    const opened = await session(server.url);
    server.call = ({ headers }) => ({ status, body: `you sent ${headers.authorization}` });
    expect(await code(call(opened))).toBe(expected);
  });

  test('that quotes the credential is not repeated', async () => {
    const opened = await session(server.url);
    server.call = ({ headers }) => ({
      error: { code: -32000, message: `bad token ${headers.authorization}` },
    });
    expect(await code(call(opened))).toBe('protocol_error');
  });

  test('that asks a person for something ends the call', async () => {
    const opened = await session(server.url);
    server.call = () => ({ result: { resultType: 'input_required', inputRequests: {} } });
    // a server of this revision has no such answer: what it says is no result of a tool, and has no text
    expect((await call(opened)).text).toBe('');
  });
});

describe('a listing', () => {
  const list = async (url: string, more: Partial<McpSettings> = {}) =>
    (await session(url, more)).listTools(never());

  test('with broken tools in it gives the others, and the reason for each', async () => {
    const tools = [
      plainTool('good'),
      null,
      7,
      { name: '' },
      { name: 5 },
      plainTool('also good', { inputSchema: 'x' }),
    ];
    const listing = await list(hostile.serve('/mcp', () => ({ tools })));
    expect(listing.tools.map(({ name }) => name)).toEqual(['good', 'also good']);
    expect(listing.rejected.map(({ code: why }) => why)).toEqual([
      'not_an_object',
      'not_an_object',
      'invalid_name',
      'invalid_name',
    ]);
  });

  test('whose pages come back, or have no end, or are too large together', async () => {
    let page = 0;
    const again = hostile.serve('/again', () => ({ tools: [], nextCursor: 'same' }));
    const endless = hostile.serve('/endless', () => ({ tools: [], nextCursor: String(page++) }));
    const large = hostile.serve('/large', () => ({
      tools: [plainTool('a', { description: 'x'.repeat(60_000) })],
      nextCursor: String(page++),
    }));
    expect(await code(list(again))).toBe('endless_pages');
    expect(await code(list(endless))).toBe('too_many_pages');
    expect(await code(list(large))).toBe('too_large');
  });

  test('whose pages are streams that end is read on, however long the next page takes', async () => {
    const { promise: looked, resolve } = Promise.withResolvers<void>();
    let isAsked = false;
    let looks = 0;
    // all that is looked at a moment after the end of a stream has been looked at
    const after: typeof systemClock.after = (ms, fn) => {
      if (ms < 1_000) looks++;
      return systemClock.after(ms, () => {
        fn();
        if (ms < 1_000 && --looks === 0 && isAsked) resolve();
      });
    };
    const url = hostile.serve('/mcp', async ({ message, response }) => {
      const isFirst = message.params?.cursor === undefined;
      isAsked = !isFirst;
      if (isAsked) await looked;
      const tools = [plainTool(isFirst ? 'one' : 'two')];
      const result = { tools, ...(isFirst ? { nextCursor: 'more' } : {}) };
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.end(`data: ${JSON.stringify({ jsonrpc: '2.0', id: message.id, result })}\n\n`);
    });
    const clock = { ...systemClock, after };
    const { tools } = await list(url, { clock, requestTimeoutMs: 5_000 });
    expect(tools.map(({ name }) => name)).toEqual(['one', 'two']);
  });

  test('that is none', async () => {
    expect(await code(list(hostile.serve('/mcp', () => ({ tools: 'all of them' }))))).toBe('bad_answer');
  });
});

describe('a call', () => {
  test('that takes too long, or is cancelled, is taken back from the server', async () => {
    const opened = await session(server.url);
    server.call = () => ({ hang: true });
    expect(await code(call(opened, 200))).toBe('timeout');
    const stop = new AbortController();
    const working = call(opened, 5_000, stop.signal);
    await server.waitFor(({ method }) => method === 'tools/call', 2);
    stop.abort();
    expect(await code(working)).toBe('cancelled');
    await server.waitFor(({ method }) => method === 'notifications/cancelled', 2);
    const ids = (name: string) => server.requests.filter(({ method }) => method === name);
    expect(ids('notifications/cancelled').map(({ params }) => params.requestId)).toEqual(
      ids('tools/call').map(({ id }) => id),
    );
  });

  test('after the server went away is lost at once, not after its time', async () => {
    const opened = await session(server.url);
    await server.close();
    const before = performance.now();
    expect(await code(call(opened, 30_000))).toBe('unreachable');
    expect(performance.now() - before).toBeLessThan(5_000);
  });
});

describe('an event stream', () => {
  test('that ends, or is cut off, before the result: the call is lost at once', async () => {
    for (const how of ['end', 'destroy'] as const) {
      const url = hostile.raw(`/${how}`, async (request, response) => {
        let text = '';
        for await (const part of request) text += part;
        const { id, method, params } = JSON.parse(text || '{}');
        if (method === 'initialize') {
          const { protocolVersion } = params;
          const result = {
            protocolVersion,
            capabilities: { tools: {} },
            serverInfo: { name: 'x', version: '1' },
          };
          return void response
            .writeHead(200, { 'content-type': 'application/json' })
            .end(JSON.stringify({ jsonrpc: '2.0', id, result }));
        }
        if (method !== 'tools/call') return void response.writeHead(id === undefined ? 202 : 400).end();
        response.writeHead(200, { 'content-type': 'text/event-stream' });
        response.write(': soon\n\n', () => response[how]());
      });
      const opened = await session(url);
      const before = performance.now();
      expect([how, await code(call(opened, 20_000))]).toEqual([how, 'connection_lost']);
      expect(performance.now() - before).toBeLessThan(3_000);
    }
  });
});

test('a server that ends its streams at once and wants them back at once is asked once a second', async () => {
  let streams = 0;
  const url = hostile.raw('/again', async (request, response) => {
    const stream = (): void => {
      response.writeHead(200, { 'content-type': 'text/event-stream' }).end('id: 1\nretry: 0\ndata:\n\n');
    };
    if (request.method !== 'POST') {
      streams++;
      return stream();
    }
    let text = '';
    for await (const part of request) text += part;
    const { id, method, params } = JSON.parse(text);
    if (id === undefined) return void response.writeHead(202).end();
    if (method === 'tools/call') return stream();
    const info = { capabilities: { tools: {} }, serverInfo: { name: 'again', version: '1' } };
    const result = { ...info, protocolVersion: params?.protocolVersion ?? '2025-06-18' };
    const answer = method === 'initialize' ? { result } : { error: { code: -32601, message: 'no' } };
    response
      .writeHead(200, { 'content-type': 'application/json' })
      .end(JSON.stringify({ jsonrpc: '2.0', id, ...answer }));
  });
  const opened = await session(url);
  expect(await code(call(opened))).toMatch(/timeout|connection_lost/);
  expect(streams).toBeLessThan(10);
});

describe('a command', () => {
  const command = (script: string): Partial<McpSettings> => ({
    stdio: { it: { command: process.execPath, args: ['-e', script], env: {} } },
  });

  test('that is not listed, can’t be started, ends at once, is silent, or talks without end', async () => {
    expect(await code(session('stdio:__proto__'))).toBe('not_listed');
    const missing = { stdio: { it: { command: '/nonexistent', args: [], env: {} } } };
    expect(await code(session('stdio:it', missing))).toBe('process_failed');
    expect(await code(session('stdio:it', command('process.exit(3)')))).toMatch(/connection_lost|bad_answer/);
    expect(await code(session('stdio:it', command('setInterval(() => {}, 1000)')))).toBe('timeout');
    const talker = command('setInterval(() => process.stdout.write("x".repeat(65536)), 1)');
    expect(await code(session('stdio:it', talker))).toMatch(/too_large|connection_lost|bad_answer/);
  }, 30_000);

  test('gets nothing of our environment, and leaves no process behind', async () => {
    process.env.CANARY_OF_THE_TEST = 'canary';
    const script = `
      const grandchild = require('node:child_process').spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)']);
      require('node:readline').createInterface({ input: process.stdin }).on('line', (line) => {
        const { id, method } = JSON.parse(line);
        const result = method === 'initialize'
          ? { protocolVersion: '2025-06-18', capabilities: { tools: {} }, serverInfo: { name: 'it', version: '1' } }
          : { content: [{ type: 'text', text: JSON.stringify({ env: Object.keys(process.env), pids: [process.pid, grandchild.pid] }) }] };
        const answer = method === 'server/discover' ? { error: { code: -32601, message: 'no' } } : { result };
        if (id !== undefined) console.log(JSON.stringify({ jsonrpc: '2.0', id, ...answer }));
      });`;
    const opened = await session('stdio:it', command(script));
    const { env, pids } = JSON.parse((await call(opened)).text) as { env: string[]; pids: number[] };
    delete process.env.CANARY_OF_THE_TEST;
    expect(env).toEqual(['PATH']);
    await opened.close();
    for (const pid of pids) await until(`${pid} has ended`, () => hasEnded(pid));
  });
});
