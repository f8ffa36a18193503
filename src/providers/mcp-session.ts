/** A session with a tool server (MCP): over Streamable HTTP, over server-sent events where that is all it speaks, or over a command's pipes. */
import {
  Client,
  type ClientOptions,
  SSEClientTransport,
  StreamableHTTPClientTransport,
  type Transport,
} from '@modelcontextprotocol/client';
import type { Clock } from '../clock.ts';
import type { AllowedHosts } from './guarded-address.ts';
import type { Resolve } from './guarded-connect.ts';
import type { McpEras } from './mcp-eras.ts';
import { McpError } from './mcp-error.ts';
import { callFailure, isAnswerToRevision, isCommandGone, speaksNoStreamableHttp } from './mcp-failure.ts';
import { type Exchange, type McpFetch, mcpFetch, newExchange } from './mcp-fetch.ts';
import { listAllTools, type McpListing } from './mcp-listing.ts';
import { type McpOutcome, outcomeOf, resultShape } from './mcp-outcome.ts';
import { listedServer, type StdioServer, StdioTransport, stdioName } from './mcp-stdio.ts';
import { untilAborted } from './until-aborted.ts';

export type McpSettings = {
  /** http, https, or `stdio:NAME` for a command that the operator lists. */
  readonly url: string;
  /** Sent to the URL's own origin alone: credentials are among them. */
  readonly headers: Readonly<Record<string, string>>;
  readonly connectTimeoutMs: number;
  readonly requestTimeoutMs: number;
  /** Of one answer, or one message of a stream; and of all pages of a listing together. */
  readonly maxBytes: number;
  /** Of a listing. */
  readonly maxPages: number;
  readonly allowedPrivateHosts: AllowedHosts;
  readonly clock: Clock;
  /** False: over before a notification could matter, so no stream of them is asked for. */
  readonly listens?: boolean;
  /** Asked and told which revisions the server speaks; absent: each session asks the server. */
  readonly eras?: McpEras;
  /** Commands by name; none if absent. */
  readonly stdio?: Readonly<Record<string, StdioServer>>;
  /** Instead of DNS, for tests. */
  readonly resolve?: Resolve;
};

export type McpCall = {
  readonly name: string;
  readonly arguments: Record<string, unknown>;
  /** The same for every repetition of the call; the server gets it as `_meta["agentd/idempotencyKey"]`. */
  readonly idempotencyKey: string;
  readonly signal: AbortSignal;
  readonly timeoutMs: number;
  readonly onProgress?: (text: string) => void;
};

export interface McpSession {
  readonly server: {
    readonly name: string;
    readonly version: string;
    readonly protocolVersion: string;
    readonly transport: 'streamable-http' | 'sse' | 'stdio';
  };
  /** False once the connection has ended: calls fail with `connection_lost`. */
  readonly isOpen: boolean;
  /** Throws McpError. One broken tool does not spoil the others. */
  listTools(signal: AbortSignal): Promise<McpListing>;
  /** Throws McpError. A tool that ran and failed is an outcome, not an error. When the signal fires, the server is told so. */
  callTool(call: McpCall): Promise<McpOutcome>;
  /** Called when the server says that its tools changed. */
  onToolsChanged(listener: () => void): void;
  /** Never throws. */
  close(): Promise<void>;
}

/** Opens a session. Throws McpError; whatever was begun is ended then. */
export async function openMcpSession(settings: McpSettings, signal: AbortSignal): Promise<McpSession> {
  const name = stdioName(settings.url);
  if (name !== null) return openStdio(settings, listedServer(name, settings.stdio ?? {}), signal);
  const fetch = mcpFetch({
    url: settings.url,
    headers: settings.headers,
    connectTimeoutMs: settings.connectTimeoutMs,
    maxBytes: settings.maxBytes,
    allowed: settings.allowedPrivateHosts,
    clock: settings.clock,
    ...(settings.resolve ? { resolve: settings.resolve } : {}),
  });
  const { eras, url } = settings;
  try {
    if (!eras?.isLegacy(url)) return await openHttp(settings, fetch, 'auto', signal);
    try {
      return await openHttp(settings, fetch, 'legacy', signal);
    } catch (error) {
      eras.forget(url);
      if (!isAnswerToRevision(error) || signal.aborted) throw error;
      return await openHttp(settings, fetch, 'auto', signal);
    }
  } catch (error) {
    await fetch.close();
    throw error;
  }
}

/** Why requests of a call that has come to its end are given up; one for all, for making an error takes its time. */
const OVER = new Error('The call is over.');

/** Before a stream of events that has ended is asked for again, in milliseconds. */
const STREAM_AGAIN_MS = { least: 1_000, most: 60_000 } as const;

async function openHttp(
  settings: McpSettings,
  fetch: McpFetch,
  mode: Way['mode'],
  signal: AbortSignal,
): Promise<McpSession> {
  const url = new URL(settings.url);
  try {
    const transport = new StreamableHTTPClientTransport(url, {
      fetch: settings.listens === false ? withoutNotifications(fetch) : fetch.fetch,
      // how soon to come back for a stream that has ended is the server's to say, within bounds
      reconnectionScheduler: (reconnect, delay) => {
        const wait = Math.min(STREAM_AGAIN_MS.most, Math.max(STREAM_AGAIN_MS.least, delay));
        const timer = settings.clock.after(wait, reconnect);
        return () => timer.cancel();
      },
    });
    return await connect(settings, { transport, kind: 'streamable-http', fetch, mode }, signal);
  } catch (error) {
    if (!speaksNoStreamableHttp(error) || signal.aborted) throw error;
    const lost = new AbortController();
    const transport = new SSEClientTransport(url, { fetch: firstStreamOnly(fetch, lost) });
    try {
      return await connect(
        settings,
        { transport, kind: 'sse', fetch, mode: 'legacy', lost: lost.signal },
        signal,
      );
    } catch (later) {
      // neither way leads to a server: what the usual one met says more
      throw later instanceof McpError && (later.code === 'not_found' || later.code === 'http_error')
        ? error
        : later;
    }
  }
}

/** As if the server offered no stream of notifications; answers that go on in another stream are fetched. */
function withoutNotifications(fetch: McpFetch): McpFetch['fetch'] {
  return (url, init) =>
    init?.method === 'GET' && !new Headers(init.headers).has('last-event-id')
      ? Promise.resolve(new Response(null, { status: 405 }))
      : fetch.fetch(url, init);
}

/** A stream of events that ended is not begun again by itself: its calls are lost, and how soon to come back would be the server's to say. */
function firstStreamOnly(fetch: McpFetch, lost: AbortController): McpFetch['fetch'] {
  let began = false;
  return (url, init) => {
    if ((init?.method ?? 'GET') !== 'GET') return fetch.fetch(url, init);
    if (began) return Promise.resolve(new Response(null, { status: 204 }));
    began = true;
    return fetch.fetch(url, init, () => lost.abort());
  };
}

async function openStdio(
  settings: McpSettings,
  server: StdioServer,
  signal: AbortSignal,
): Promise<McpSession> {
  const open = (mode: 'auto' | 'legacy'): Promise<McpSession> =>
    connect(
      settings,
      { transport: new StdioTransport(server, settings.maxBytes), kind: 'stdio', fetch: null, mode },
      signal,
    );
  try {
    return await open('auto');
  } catch (error) {
    // older servers end at a request that they do not know
    if (!isCommandGone(error) || signal.aborted) throw error;
    return await open('legacy');
  }
}

type Way = {
  readonly transport: Transport;
  readonly kind: McpSession['server']['transport'];
  readonly fetch: McpFetch | null;
  readonly mode: 'auto' | 'legacy';
  /** Aborted when the connection has ended, where the client does not say so. */
  readonly lost?: AbortSignal;
};

async function connect(settings: McpSettings, way: Way, signal: AbortSignal): Promise<McpSession> {
  const { clock, connectTimeoutMs } = settings;
  const options: ClientOptions = {
    capabilities: {},
    versionNegotiation: { mode: way.mode, probe: { timeoutMs: Math.ceil(connectTimeoutMs / 2) } },
    // a tool that asks a person gets no answer here
    inputRequired: { autoFulfill: false },
  };
  const client = new Client({ name: 'agentd', version: '1.0.0' }, options);
  const state = { isOpen: true };
  const late = new AbortController();
  const timer = clock.after(connectTimeoutMs, () => late.abort());
  // no signal in it: the stream of notifications begins here and goes on
  const exchange = newExchange(null);
  const either = AbortSignal.any([signal, late.signal, exchange.broken.signal]);
  try {
    const connecting = inExchange(way, exchange, () =>
      client.connect(way.transport, { signal: either, timeout: connectTimeoutMs }),
    );
    await untilAborted(connecting, either);
  } catch (error) {
    void client.close().catch(() => {});
    await way.transport.close().catch(() => {});
    if (signal.aborted) throw new McpError('cancelled', 'The connection was given up.', { transient: true });
    if (late.signal.aborted) {
      throw new McpError('timeout', `The server was not ready within ${connectTimeoutMs} ms.`, {
        transient: true,
      });
    }
    throw callFailure(error, exchange, settings, 'connect');
  } finally {
    timer.cancel();
  }
  const close = (): void => {
    state.isOpen = false;
  };
  client.onclose = close;
  if (way.kind === 'streamable-http' && client.getProtocolEra() === 'legacy')
    settings.eras?.learn(settings.url);
  way.lost?.addEventListener('abort', close, { once: true });
  client.onerror = () => {};
  return sessionOf(settings, way, client, state);
}

function sessionOf(settings: McpSettings, way: Way, client: Client, state: { isOpen: boolean }): McpSession {
  const who = client.getServerVersion();
  const lost = (): McpError =>
    new McpError('connection_lost', 'The connection to the server has ended.', { transient: true });

  /** A request whose deadline and cancellation reach the server, and everything that it has open. */
  const ask = async <T>(
    signal: AbortSignal,
    timeoutMs: number,
    work: (signal: AbortSignal) => Promise<T>,
  ): Promise<T> => {
    if (!state.isOpen) throw lost();
    if (signal.aborted) throw new McpError('cancelled', 'The call was cancelled.');
    const over = new AbortController();
    const late = new AbortController();
    const timer = settings.clock.after(timeoutMs, () => late.abort(new Error('timeout')));
    const exchange = newExchange(over.signal);
    const ends = [signal, late.signal, exchange.broken.signal, ...(way.lost ? [way.lost] : [])];
    const stop = AbortSignal.any(ends);
    try {
      const working = inExchange(way, exchange, () => work(stop));
      return await untilAborted(working, stop);
    } catch (error) {
      if (signal.aborted) throw new McpError('cancelled', 'The call was cancelled.', { cause: error });
      if (late.signal.aborted) {
        throw new McpError('timeout', `The server did not answer within ${timeoutMs} ms.`, {
          transient: true,
        });
      }
      if (!state.isOpen && !(error instanceof McpError)) throw lost();
      throw callFailure(error, exchange, settings, 'call');
    } finally {
      timer.cancel();
      // the message that tells the server of a cancellation goes first
      setImmediate(() => over.abort(OVER));
    }
  };

  return {
    server: {
      name: shown(who?.name),
      version: shown(who?.version),
      protocolVersion: shown(client.getNegotiatedProtocolVersion()),
      transport: way.kind,
    },
    get isOpen() {
      return state.isOpen;
    },
    listTools: (signal) =>
      ask(signal, settings.requestTimeoutMs, (stop) =>
        listAllTools(client, {
          signal: stop,
          timeoutMs: settings.requestTimeoutMs,
          maxPages: settings.maxPages,
          maxBytes: settings.maxBytes,
          received: way.fetch?.received ?? null,
        }),
      ),
    callTool: (call) =>
      ask(call.signal, call.timeoutMs, async (stop) => {
        const result = await client.request(
          {
            method: 'tools/call',
            params: {
              name: call.name,
              arguments: call.arguments,
              _meta: { 'agentd/idempotencyKey': call.idempotencyKey },
            },
          },
          resultShape,
          {
            signal: stop,
            timeout: call.timeoutMs + 1_000,
            ...(call.onProgress ? { onprogress: (said) => call.onProgress?.(progressText(said)) } : {}),
          },
        );
        return outcomeOf(result);
      }),
    onToolsChanged(listener) {
      client.setNotificationHandler('notifications/tools/list_changed', () => listener());
      const isModern = client.getProtocolEra() === 'modern';
      if (isModern && client.getServerCapabilities()?.tools?.listChanged) {
        client.listen({ toolsListChanged: true }).catch(() => {});
      }
    },
    async close() {
      state.isOpen = false;
      if (way.transport instanceof StreamableHTTPClientTransport) {
        await politely(settings.clock, way.transport.terminateSession());
      }
      await client.close().catch(() => {});
      await way.transport.close().catch(() => {});
      await way.fetch?.close().catch(() => {});
    },
  };
}

/** A server that wants to be told of the end has a second to listen. */
async function politely(clock: Clock, ending: Promise<void>): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = clock.after(1_000, resolve);
  await Promise.race([ending.catch(() => {}), promise]);
  timer.cancel();
}

function inExchange<T>(way: Way, exchange: Exchange, work: () => Promise<T>): Promise<T> {
  return way.fetch ? way.fetch.within(exchange, work) : work();
}

function progressText(said: {
  progress: number;
  total?: number | undefined;
  message?: string | undefined;
}): string {
  const share = said.total === undefined ? String(said.progress) : `${said.progress} of ${said.total}`;
  return said.message === undefined ? share : `${share}: ${shown(said.message)}`;
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is taken out
const CONTROLS = /[\u0000-\u001f\u007f]/g;

function shown(text: unknown): string {
  return typeof text === 'string' ? text.slice(0, 200).toWellFormed().replace(CONTROLS, ' ') : '';
}
