/** The transport below an MCP client: guarded connections to one origin, bounded answers and streams. */
import { AsyncLocalStorage } from 'node:async_hooks';
import { type Readable, Transform } from 'node:stream';
import { Agent, type Dispatcher, request } from 'undici';
import type { Clock } from '../clock.ts';
import { BodyTooLarge, discard, readBody } from './bounded-body.ts';
import { DocumentError } from './document-error.ts';
import type { AllowedHosts } from './guarded-address.ts';
import { guardedConnector, publicResolver, type Resolve } from './guarded-connect.ts';
import { transportError } from './guarded-errors.ts';
import { header } from './guarded-headers.ts';
import { checkedUrl, originOf } from './guarded-url.ts';
import { McpError } from './mcp-error.ts';
import { retryAfterMs } from './retry-after.ts';

/** A stream of events may be so many times the limit of one event. */
const STREAM_FACTOR = 16;
/** After the end of a stream, what was in it is read within this time. */
const READ_MS = 500;
/** At once to one server, in one session: its stream of notifications is one of them. */
const CONNECTIONS = 8;

/** What one call, or one listing, has met below the client, which wraps failures in ways of its own. */
export type Exchange = {
  /** Ends requests of this exchange; a cancellation is sent nevertheless. */
  readonly signal: AbortSignal | null;
  failure: McpError | null;
  /** Of the last answer that was no success. */
  status: number | null;
  retryAfterMs: number | null;
  /** Aborted when no answer can come any more, which the client does not notice of every stream. */
  readonly broken: AbortController;
  /** Messages that were sent: each follows the answer to the one before, as the pages of a listing do. */
  messages: number;
};

/** Of an exchange that has met nothing yet. */
export function newExchange(signal: AbortSignal | null): Exchange {
  return {
    signal,
    failure: null,
    status: null,
    retryAfterMs: null,
    broken: new AbortController(),
    messages: 0,
  };
}

export type McpFetch = {
  /** What the client calls. `onEnd`: the body has ended, or was cut off. */
  fetch(url: string | URL, init?: RequestInit, onEnd?: () => void): Promise<Response>;
  /** Runs `work`; what its requests meet is noted in `exchange`. */
  within<T>(exchange: Exchange, work: () => Promise<T>): Promise<T>;
  /** Bytes of all answers so far. */
  received(): number;
  close(): Promise<void>;
};

export type McpFetchOptions = {
  readonly url: string;
  /** Sent to the URL's own origin, which is the only one that anything is sent to. */
  readonly headers: Readonly<Record<string, string>>;
  readonly connectTimeoutMs: number;
  readonly maxBytes: number;
  readonly allowed: AllowedHosts;
  readonly clock: Clock;
  readonly resolve?: Resolve;
};

/** Headers that the protocol's client sets and that are passed on. */
const PASSED = /^(?:accept|content-type|last-event-id|mcp-[a-z0-9-]+)$/;
/** Names that a connection's own headers can't have: they would take the request out of the client's hands. */
const OWN =
  /^(?:host|connection|content-.*|transfer-.*|te|trailer|upgrade|expect|keep-alive|proxy-.*|accept|accept-encoding|mcp-session-id|mcp-protocol-version|last-event-id)$/i;

/** Throws McpError `blocked_address` for a URL that must not be asked. */
export function mcpFetch(options: McpFetchOptions): McpFetch {
  const { allowed, clock, maxBytes } = options;
  const own = checked(options.url, allowed);
  const agent = new Agent({
    connect: guardedConnector(allowed, options.resolve ?? publicResolver(allowed), options.connectTimeoutMs),
    // deadlines are the calls' own: a stream of notifications has none
    headersTimeout: 0,
    bodyTimeout: 0,
    keepAliveTimeout: 10_000,
    connections: CONNECTIONS,
  });
  const exchanges = new AsyncLocalStorage<Exchange>();
  let received = 0;
  const count = (bytes: number): void => {
    received += bytes;
  };

  const send = async (target: string | URL, init: RequestInit = {}, onEnd = () => {}): Promise<Response> => {
    const exchange = exchanges.getStore() ?? null;
    try {
      const url = new URL(target);
      if (url.origin !== own.origin) {
        throw new McpError('other_origin', `${originOf(own)} sends us to another origin.`, {
          nextStep: 'Use the URL of the server itself.',
        });
      }
      if (exchange && isOurs(init.body)) exchange.messages++;
      const message = exchange?.messages ?? 0;
      const answer = await request(url, {
        dispatcher: agent,
        method: (init.method ?? 'GET') as Dispatcher.HttpMethod,
        headers: headersOf(options.headers, init.headers),
        body: typeof init.body === 'string' ? init.body : null,
        signal: signalOf(init, exchange),
      });
      const isCall = init.method === 'POST';
      return await responseOf(answer, url, { maxBytes, clock, exchange, message, isCall, count, onEnd });
    } catch (error) {
      const failure = fetchError(error, own);
      if (exchange && failure instanceof McpError) exchange.failure = failure;
      throw failure;
    }
  };
  return {
    fetch: send,
    within: (exchange, work) => exchanges.run(exchange, work),
    received: () => received,
    close: () => agent.destroy(),
  };
}

function checked(text: string, allowed: AllowedHosts): URL {
  try {
    return checkedUrl(text, allowed);
  } catch (error) {
    throw fetchError(error, new URL('https://invalid.invalid'));
  }
}

/** The connection's headers, over which the protocol's own go. */
function headersOf(
  own: Readonly<Record<string, string>>,
  given: RequestInit['headers'],
): Record<string, string> {
  const headers: Record<string, string> = { 'user-agent': 'agentd', 'accept-encoding': 'identity' };
  for (const [name, value] of Object.entries(own)) if (!OWN.test(name)) headers[name.toLowerCase()] = value;
  for (const [name, value] of new Headers(given)) if (PASSED.test(name)) headers[name] = value;
  return headers;
}

/** The caller's end ends its requests, but not the message that tells the server of it. */
function signalOf(init: RequestInit, exchange: Exchange | null): AbortSignal | null {
  const signals = [init.signal ?? null];
  const cancels = typeof init.body === 'string' && init.body.includes('"method":"notifications/cancelled"');
  if (exchange?.signal && !(cancels && isNotification(init.body as string))) signals.push(exchange.signal);
  const given = signals.filter((signal) => signal !== null);
  return given.length === 0 ? null : AbortSignal.any(given);
}

/** A request or notification; what else is sent answers a request of the server's, in the middle of ours. */
function isOurs(body: RequestInit['body']): boolean {
  return typeof body === 'string' && (JSON.parse(body) as { method?: unknown }).method !== undefined;
}

function isNotification(body: string): boolean {
  return (JSON.parse(body) as { id?: unknown }).id === undefined;
}

type Reading = {
  readonly maxBytes: number;
  readonly clock: Clock;
  readonly exchange: Exchange | null;
  /** Which of the exchange's messages it answers. */
  readonly message: number;
  /** The answer to a message, in which its result must come. */
  readonly isCall: boolean;
  count(bytes: number): void;
  onEnd(): void;
};

async function responseOf(answer: Dispatcher.ResponseData, url: URL, reading: Reading): Promise<Response> {
  const { statusCode: status, headers } = answer;
  const { exchange, clock, maxBytes } = reading;
  if (exchange && status >= 300) {
    exchange.status = status;
    exchange.retryAfterMs = retryAfterMs({ get: (name) => header(headers, name) }, clock.now());
  }
  const type = header(headers, 'content-type') ?? '';
  const coding = (header(headers, 'content-encoding') ?? 'identity').toLowerCase();
  const length = header(headers, 'content-length') ?? '';
  const hasNoBody = status === 204 || status === 205 || status === 304;
  if (coding !== 'identity' || hasNoBody || status < 200 || status > 599) {
    discard(answer.body);
    if (hasNoBody && coding === 'identity') return new Response(null, { status });
    throw new McpError('bad_answer', `${originOf(url)} answers in a form that was not asked for.`, {
      nextStep: 'Check that the server’s proxy does not change its answers.',
    });
  }
  if (/^\d{1,15}$/.test(length) && Number(length) > maxBytes) {
    discard(answer.body);
    throw tooLarge(url, maxBytes);
  }
  const isStream = /^text\/event-stream\b/i.test(type.trim());
  const body =
    status === 200 && reading.isCall && !isStream
      ? await wholeBody(answer.body, length, url, reading)
      : bounded(answer.body, url, isStream, reading);
  return new Response(body as unknown as ReadableStream, { status, headers: answerHeaders(headers, type) });
}

/**
 * The usual answer to a call, read at once: streams of Node and of the web between would take more time than all else. One that is cut off fails
 * when it is read, as it would as a stream: of some answers the client wants the status alone. Throws McpError `too_large`.
 */
async function wholeBody(
  body: Readable,
  length: string,
  url: URL,
  reading: Reading,
): Promise<Uint8Array | ReadableStream> {
  try {
    const bytes = await readBody(body, {
      maxBytes: reading.maxBytes,
      contentLength: length,
      contentEncoding: null,
      atLimit: 'fail',
    });
    reading.count(bytes.length);
    return bytes;
  } catch (error) {
    if (error instanceof BodyTooLarge) throw tooLarge(url, reading.maxBytes);
    return new ReadableStream({ start: (controller) => controller.error(fetchError(error, url)) });
  } finally {
    reading.onEnd();
  }
}

/** Passes on what the client reads of the headers; the rest is the server's affair. */
function answerHeaders(headers: Dispatcher.ResponseData['headers'], type: string): Headers {
  const kept = new Headers({ 'content-type': /^[\x20-\x7e]{0,200}$/.test(type) ? type : '' });
  for (const name of ['mcp-session-id', 'location', 'www-authenticate']) {
    const value = header(headers, name);
    if (value !== null && /^[\x20-\x7e]+$/.test(value)) kept.set(name, value);
  }
  return kept;
}

/**
 * The body as far as the limit, after which it fails with `too_large`. In a stream of events the limit is that of
 * one event, and the whole stream may be some times as long.
 */
function bounded(body: Readable, url: URL, isStream: boolean, reading: Reading): ReadableStream {
  const { clock, maxBytes, exchange, message, isCall, count } = reading;
  let total = 0;
  let event = 0;
  let lineIsEmpty = false;
  // a stream whose events have ids can be gone on with in another one
  let goesOn = false;
  const fail = (failure: McpError): void => {
    if (!exchange) return;
    exchange.failure ??= failure;
    exchange.broken.abort();
  };
  const limit = new Transform({
    transform(piece: Buffer, _encoding, done) {
      total += piece.length;
      count(piece.length);
      if (isStream) {
        goesOn ||= piece.includes('id:');
        for (const byte of piece) {
          event++;
          if (byte === 10) {
            if (lineIsEmpty) event = 0;
            lineIsEmpty = true;
          } else if (byte !== 13) lineIsEmpty = false;
          if (event > maxBytes) break;
        }
      }
      const over = isStream ? event > maxBytes || total > maxBytes * STREAM_FACTOR : total > maxBytes;
      if (!over) return done(null, piece);
      const failure = tooLarge(url, maxBytes);
      if (isCall) fail(failure);
      done(failure);
    },
  });
  const cutOff = (): void => {
    if (!isCall || !isStream || goesOn) return;
    // whoever has sent the next message had the result of this one
    if (exchange && exchange.messages > message) return;
    fail(
      new McpError('connection_lost', `${originOf(url)} ended its answer before the result.`, {
        transient: true,
      }),
    );
  };
  // the client leaves bodies unread: an error must reach whoever reads, and nobody else
  limit.on('error', () => {});
  body.on('error', (error) => {
    cutOff();
    limit.destroy(asError(fetchError(error, url)));
  });
  // what has come is read a moment later
  body.on('end', () => clock.after(READ_MS, cutOff));
  limit.on('close', () => {
    discard(body);
    reading.onEnd();
  });
  body.pipe(limit);
  return webStream(limit);
}

/** A web stream of a Node stream; Node's own adapter throws out of the process where both ends fail at once. */
function webStream(source: Readable): ReadableStream {
  const parts = source[Symbol.asyncIterator]();
  return new ReadableStream({
    async pull(controller) {
      const { done, value } = await parts.next();
      if (done) controller.close();
      else controller.enqueue(new Uint8Array(value as Buffer));
    },
    cancel() {
      source.destroy();
    },
  });
}

function tooLarge(url: URL, maxBytes: number): McpError {
  return new McpError('too_large', `An answer of ${originOf(url)} has more than ${maxBytes} bytes.`, {
    nextStep: 'Let the server answer with less.',
  });
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error('The transfer failed.');
}

/** What a transfer fails with, as the failure of a tool server; what was aborted stays what it is. */
function fetchError(error: unknown, url: URL): unknown {
  if (error instanceof McpError) return error;
  const found = transportError(error, url);
  if (!(found instanceof DocumentError)) return found;
  if (found.code === 'blocked_address') {
    return new McpError('blocked_address', found.message, {
      cause: error,
      nextStep: 'Use the public address of the server.',
    });
  }
  const code =
    found.code === 'timeout' ? 'timeout' : found.code === 'unreachable' ? 'unreachable' : 'bad_answer';
  return new McpError(code, found.message, { transient: found.isTransient, cause: error });
}
