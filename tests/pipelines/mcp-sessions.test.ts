/** The pool of sessions with tool servers: how many, for how long, for whom. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { McpSessions } from '../../src/pipelines/agent/mcp-sessions.ts';
import { parseAllowedHosts } from '../../src/providers/guarded-address.ts';
import type { McpSettings } from '../../src/providers/mcp-session.ts';
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

function makePool(more: { maxSessions?: number; idleMs?: number } = {}): McpSessions {
  pool = new McpSessions({ clock: systemClock, onToolsChanged: () => {}, ...more });
  return pool;
}

function settings(token = 'one'): McpSettings {
  return {
    url: server.url,
    headers: { authorization: `Bearer ${token}` },
    connectTimeoutMs: 3_000,
    requestTimeoutMs: 3_000,
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
