/** The pool of sessions with tool servers: how many, for how long, for whom. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { McpSessions, type McpSessionsDeps } from '../../src/pipelines/agent/mcp-sessions.ts';
import { parseAllowedHosts } from '../../src/providers/guarded-address.ts';
import type { McpSettings } from '../../src/providers/mcp-session.ts';
import { hangs, startHostileMcp } from '../peers/hostile-mcp.ts';
import { type McpServer, serverTool, startMcpServer } from '../peers/mcp-server.ts';
import { until } from '../support/runs.ts';

let server: McpServer;
let pool: McpSessions;
const never = (): AbortSignal => new AbortController().signal;

beforeEach(async () => {
  server = await startMcpServer([serverTool('plain')]);
});

afterEach(async () => {
  await pool.close();
  expect(server.sessions.size).toBe(0);
  await server.close();
});

function makePool(more: Partial<McpSessionsDeps> = {}): McpSessions {
  pool = new McpSessions({ clock: systemClock, onToolsChanged: () => {}, ...more });
  return pool;
}

function settings(token = 'one'): McpSettings {
  return {
    url: server.url,
    headers: { authorization: `Bearer ${token}` },
    connectTimeoutMs: 20_000,
    requestTimeoutMs: 20_000,
    maxBytes: 100_000,
    maxPages: 5,
    allowedPrivateHosts: parseAllowedHosts([`127.0.0.1:${server.port}`]),
    clock: systemClock,
  };
}

const begun = (): number => server.requests.filter(({ method }) => method === 'initialize').length;
const nothing = async (): Promise<void> => {};

test('calls of a connection with one credential share a session; another connection or credential has its own', async () => {
  makePool();
  await Promise.all([1, 2, 3].map(() => pool.use('a', settings(), never(), nothing)));
  expect(begun()).toBe(1);
  await pool.use('b', settings(), never(), nothing);
  await pool.use('a', settings('two'), never(), nothing);
  expect(begun()).toBe(3);
});

test('one that nobody used for a while is closed', async () => {
  makePool({ idleMs: 50 });
  await pool.use('a', settings(), never(), nothing);
  expect(server.sessions.size).toBe(1);
  await until('the session has ended', () => server.sessions.size === 0);
  expect(pool.size).toBe(0);
});

test('there are so many at most: the one that was not used for longest makes room, one in use does not', async () => {
  makePool({ maxSessions: 2 });
  await pool.use('a', settings(), never(), nothing);
  await pool.use('b', settings(), never(), nothing);
  await pool.use('a', settings(), never(), nothing);
  await pool.use('c', settings(), never(), nothing);
  expect(pool.size).toBe(2);
  const before = begun();
  await pool.use('a', settings(), never(), nothing);
  expect(begun()).toBe(before);
  await pool.use('a', settings(), never(), () =>
    pool.use('c', settings(), never(), async () => {
      await expect(pool.use('d', settings(), never(), nothing)).rejects.toMatchObject({
        code: 'rate_limited',
      });
    }),
  );
});

test('eight calls at once are in a session, the next one waits, and gives up with its signal', async () => {
  makePool();
  const gate = Promise.withResolvers<void>();
  let inside = 0;
  const enter = async (): Promise<void> => {
    inside++;
    await gate.promise;
  };
  const first = Array.from({ length: 8 }, () => pool.use('a', settings(), never(), enter));
  await until('eight are in', () => inside === 8);
  const impatient = new AbortController();
  const given = pool.use('a', settings(), impatient.signal, enter);
  const patient = pool.use('a', settings(), never(), enter);
  impatient.abort(new Error('enough'));
  await expect(given).rejects.toThrow('enough');
  expect(inside).toBe(8);
  gate.resolve();
  await Promise.all([...first, patient]);
  expect(inside).toBe(9);
});

test('a server that can’t be reached fails its call and stays in nobody’s way', async () => {
  makePool();
  const away = { ...settings(), url: `${server.origin}/mcp`, allowedPrivateHosts: [] };
  await expect(pool.use('a', away, never(), nothing)).rejects.toMatchObject({ code: 'blocked_address' });
  expect(pool.size).toBe(0);
  await pool.use('a', settings(), never(), nothing);
});

test('a server that says again and again that its tools changed is heard at once, and then so often at most', async () => {
  let told = 0;
  const timers: (() => void)[] = [];
  const after: typeof systemClock.after = (ms, fn) => {
    if (ms !== 5_000) return systemClock.after(ms, fn);
    timers.push(fn);
    return { cancel: () => {} };
  };
  makePool({ clock: { ...systemClock, after }, onToolsChanged: () => told++ });
  await pool.use('a', settings(), never(), async ({ liveHash }) => {
    for (let n = 0; n < 50; n++) await server.notify('notifications/tools/list_changed');
    await until('the first is heard', () => told > 0);
    // whatever came before this answer has been heard
    await liveHash('plain', never());
    expect([told, timers.length]).toEqual([1, 1]);
    await server.notify('notifications/tools/list_changed');
    await until('it has heard the last', async () => {
      timers.shift()?.();
      return told > 1;
    });
  });
  const before = told;
  await pool.close();
  expect(told).toBeLessThanOrEqual(before + 1);
});

test('a command that hangs in a call is not asked again: the next call has a new one', async () => {
  makePool();
  const script = `
    process.stdin.on('data', (text) => {
      for (const line of String(text).split('\\n').filter(Boolean)) {
        const { id, method, params } = JSON.parse(line);
        const info = { capabilities: {}, serverInfo: { name: 'x', version: String(process.pid) } };
        const result = { ...info, protocolVersion: params?.protocolVersion };
        const error = { code: -32601, message: 'no such method' };
        if (method === 'tools/call' || id === undefined) continue;
        console.log(JSON.stringify({ jsonrpc: '2.0', id, ...(method === 'initialize' ? { result } : { error }) }));
      }
    });`;
  const stdio = { it: { command: process.execPath, args: ['-e', script], env: {} } };
  const hanging = { ...settings(), url: 'stdio:it', stdio };
  const pids = new Set<string>();
  for (let n = 0; n < 2; n++) {
    const calling = pool.use('a', hanging, never(), ({ session }) => {
      pids.add(session.server.version);
      const call = { name: 'plain', arguments: {}, idempotencyKey: 'key' };
      return session.callTool({ ...call, signal: never(), timeoutMs: 100 });
    });
    await expect(calling).rejects.toMatchObject({ code: 'timeout' });
  }
  expect(pids.size).toBe(2);
});

test('a pool that closes waits for no server that never answers', async () => {
  const hostile = await startHostileMcp();
  makePool();
  const url = hostile.raw('/mcp', hangs);
  const silent = { ...settings(), url, allowedPrivateHosts: parseAllowedHosts([hostile.host]) };
  const using = pool.use('a', { ...silent, connectTimeoutMs: 60_000 }, never(), nothing);
  await Promise.all([expect(using).rejects.toMatchObject({ code: 'cancelled' }), pool.close()]);
  await hostile[Symbol.asyncDispose]();
});
