/** Sessions with a server of the newest revision of the protocol, which keeps no session and takes no older client. */
import { once } from 'node:events';
import { createServer, type Server as HttpServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { toNodeHandler } from '@modelcontextprotocol/node';
import {
  createMcpHandler,
  inputRequired,
  type McpHttpHandler,
  McpServer,
} from '@modelcontextprotocol/server';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { z } from 'zod';
import { systemClock } from '../../src/clock.ts';
import { parseAllowedHosts } from '../../src/providers/guarded-address.ts';
import { McpEras } from '../../src/providers/mcp-eras.ts';
import { McpError } from '../../src/providers/mcp-error.ts';
import { type McpSession, type McpSettings, openMcpSession } from '../../src/providers/mcp-session.ts';
import { handClock } from '../support/hand-clock.ts';

let handler: McpHttpHandler;
let http: HttpServer;
let session: McpSession;
/** What a tool saw of its request. */
let seen: {
  meta?: Record<string, unknown> | undefined;
  aborted: PromiseWithResolvers<void>;
  began: PromiseWithResolvers<void>;
};

beforeEach(async () => {
  seen = { aborted: Promise.withResolvers(), began: Promise.withResolvers() };
  handler = createMcpHandler(
    () => {
      const server = new McpServer(
        { name: 'newest', version: '3' },
        { capabilities: { tools: { listChanged: true } } },
      );
      server.registerTool(
        'echo',
        { inputSchema: z.object({ message: z.string() }) },
        ({ message }, context) => {
          seen.meta = context.mcpReq._meta as Record<string, unknown> | undefined;
          return { content: [{ type: 'text', text: message }] };
        },
      );
      server.registerTool('slow', {}, async (context) => {
        context.mcpReq.signal.addEventListener('abort', () => seen.aborted.resolve());
        seen.began.resolve();
        await seen.aborted.promise;
        return { content: [] };
      });
      server.registerTool('ask', {}, () =>
        inputRequired({
          inputRequests: {
            name: inputRequired.elicit({
              message: 'Who?',
              requestedSchema: { type: 'object', properties: {} },
            }),
          },
        }),
      );
      return server;
    },
    { legacy: 'reject' },
  );
  const node = toNodeHandler(handler);
  http = createServer(
    (request, response) => void node(request as Parameters<typeof node>[0], response),
  ).listen(0, '127.0.0.1');
  await once(http, 'listening');
  const { port } = http.address() as AddressInfo;
  session = await openMcpSession(settings(port), new AbortController().signal);
});

function settings(port: number): McpSettings {
  return {
    url: `http://127.0.0.1:${port}/mcp`,
    headers: {},
    connectTimeoutMs: 3_000,
    requestTimeoutMs: 3_000,
    maxBytes: 100_000,
    maxPages: 5,
    allowedPrivateHosts: parseAllowedHosts([`127.0.0.1:${port}`]),
    clock: systemClock,
  };
}

afterEach(async () => {
  await session.close();
  await handler.close();
  http.close();
  http.closeAllConnections();
});

const call = (name: string, args: Record<string, unknown> = {}, signal = new AbortController().signal) =>
  session.callTool({ name, arguments: args, idempotencyKey: 'the key', signal, timeoutMs: 3_000 });

test('tools are listed and called, and the key of a call arrives', async () => {
  expect(session.server).toMatchObject({
    name: 'newest',
    protocolVersion: '2026-07-28',
    transport: 'streamable-http',
  });
  const { tools } = await session.listTools(new AbortController().signal);
  expect(tools.map(({ name }) => name).toSorted()).toEqual(['ask', 'echo', 'slow']);
  expect(await call('echo', { message: 'hi' })).toEqual({ text: 'hi', isError: false });
  expect(seen.meta?.['agentd/idempotencyKey']).toBe('the key');
});

test('a call that is cancelled is aborted at the server', async () => {
  const stop = new AbortController();
  const working = call('slow', {}, stop.signal);
  await seen.began.promise;
  stop.abort();
  await expect(working).rejects.toMatchObject({ code: 'cancelled' });
  await seen.aborted.promise;
});

test('a tool that asks a person for input ends its call with that', async () => {
  const error = await call('ask').catch((thrown: unknown) => thrown);
  expect(error).toBeInstanceOf(McpError);
  expect(error).toMatchObject({ code: 'input_required' });
});

test('a change of the tools is told to who listens', async () => {
  const { promise, resolve } = Promise.withResolvers<void>();
  session.onToolsChanged(resolve);
  // the subscription is made meanwhile; before that nobody is told
  const tell = setInterval(() => handler.notify.toolsChanged(), 50);
  await promise;
  clearInterval(tell);
});

test('an older server is asked for the newest revision once an hour, and one that has learnt it is found at once', async () => {
  const older = createMcpHandler(() => new McpServer({ name: 'older', version: '1' }), {
    legacy: 'stateless',
  });
  const methods: string[] = [];
  let current: 'older' | 'newest' = 'older';
  const onlyOlder = toNodeHandler(older);
  const onlyNewest = toNodeHandler(handler);
  const server = createServer(async (request, response) => {
    let text = '';
    for await (const part of request) text += part;
    const body = text === '' ? undefined : (JSON.parse(text) as { method: string });
    if (body) methods.push(body.method);
    const isOld = body?.method === 'initialize' || body?.method === 'notifications/initialized';
    if (current === 'older' && !isOld) return void response.writeHead(400).end();
    const serve = current === 'older' ? onlyOlder : onlyNewest;
    await serve(request as Parameters<typeof serve>[0], response, body);
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const clock = handClock();
  const eras = new McpEras(clock);
  const asked = async (): Promise<[string | undefined, string[]]> => {
    methods.length = 0;
    const opened = await openMcpSession(
      { ...settings((server.address() as AddressInfo).port), eras },
      new AbortController().signal,
    );
    await opened.close();
    return [opened.server.name, [...methods]];
  };
  const older2 = ['initialize', 'notifications/initialized'];
  try {
    expect(await asked()).toEqual(['older', ['server/discover', ...older2]]);
    expect(await asked()).toEqual(['older', older2]);
    await clock.advance(3_600_000);
    expect(await asked()).toEqual(['older', ['server/discover', ...older2]]);
    current = 'newest';
    expect(await asked()).toEqual(['newest', ['initialize', 'server/discover']]);
    expect(await asked()).toEqual(['newest', ['server/discover']]);
  } finally {
    server.close();
    server.closeAllConnections();
    await older.close();
  }
});
