import type { IncomingHttpHeaders } from 'node:http';
import { promisify } from 'node:util';
import { brotliDecompress, gunzip, inflate } from 'node:zlib';
import { Agent, type Dispatcher, request } from 'undici';

/**
 * The transport below provider SDKs: a `fetch` for whole answers over kept-alive connections.
 *
 * Why not fetch itself: measured with the openai SDK on a loopback server, the SDK over `undici.request` costs less
 * than half the CPU of the SDK over Node's fetch (bench/model-call.ts), and three properties come with it.
 * - Redirects are answers, not followed: a key is never carried to a place that nobody configured.
 * - Only the headers below go out. The SDK adds whatever OPENAI_CUSTOM_HEADERS holds to every base URL, tenants' own
 *   among them, and its telemetry headers.
 * - An answer is bounded in bytes, so that a hostile base URL cannot exhaust the worker's memory.
 */
const PASSED_HEADERS = ['authorization', 'content-type', 'accept', 'idempotency-key'] as const;

const MAX_RESPONSE_BYTES = 8 * 1024 * 1024;
const EXPAND: Record<string, (data: Uint8Array, options: { maxOutputLength: number }) => Promise<Buffer>> = {
  gzip: promisify(gunzip),
  br: promisify(brotliDecompress),
  deflate: promisify(inflate),
};

const shared = new Agent({
  connect: { timeout: 10_000 },
  // A worker's calls come in bursts; the server's own Keep-Alive hint lowers this.
  keepAliveTimeout: 30_000,
  // Time belongs to the caller's signal: a reasoning model may send nothing for longer than undici's 300 s.
  headersTimeout: 0,
  bodyTimeout: 0,
  maxResponseSize: MAX_RESPONSE_BYTES,
});

/**
 * A `fetch` over the given dispatcher, for example one whose connector refuses private addresses.
 *
 * It resolves when the whole text has come; its answer has `status`, `ok`, `headers`, `text()` and `json()`, no stream.
 */
export function fetchThrough(dispatcher: Dispatcher): typeof fetch {
  return async (input, init) => {
    const url = typeof input === 'string' ? input : input instanceof URL ? input.href : input.url;
    const given = init?.headers instanceof Headers ? init.headers : new Headers(init?.headers);
    const headers: Record<string, string> = { 'user-agent': 'agentd' };
    for (const name of PASSED_HEADERS) {
      const value = given.get(name);
      if (value !== null) headers[name] = value;
    }
    const answer = await request(url, {
      dispatcher,
      method: (init?.method ?? 'GET') as Dispatcher.HttpMethod,
      headers,
      body: (init?.body ?? null) as string | Uint8Array | null,
      signal: init?.signal ?? null,
    });
    const kept = new AnswerHeaders(answer.headers);
    const encoding = kept.get('content-encoding');
    const expand = encoding === null ? undefined : EXPAND[encoding.toLowerCase()];
    const text = expand
      ? (await expand(await answer.body.bytes(), { maxOutputLength: MAX_RESPONSE_BYTES })).toString('utf8')
      : await answer.body.text();
    return new WholeAnswer(url, answer.statusCode, kept, text) as unknown as Response;
  };
}

/** {@link fetchThrough} the process's one pool of provider connections. */
export const providerFetch: typeof fetch = fetchThrough(shared);

/** The part of `Headers` that SDKs read, over what undici parsed: copying into real ones costs 10 µs a call. */
class AnswerHeaders {
  readonly #headers: IncomingHttpHeaders;

  constructor(headers: IncomingHttpHeaders) {
    this.#headers = headers;
  }

  get(name: string): string | null {
    const value = this.#headers[name.toLowerCase()];
    return value === undefined ? null : Array.isArray(value) ? value.join(', ') : value;
  }

  has(name: string): boolean {
    return this.get(name) !== null;
  }

  *entries(): IterableIterator<[string, string]> {
    for (const name of Object.keys(this.#headers)) yield [name, this.get(name) ?? ''];
  }

  [Symbol.iterator](): IterableIterator<[string, string]> {
    return this.entries();
  }
}

/** The part of `Response` that SDKs read, over a text that has already come: a real one wraps it into a stream again. */
class WholeAnswer {
  readonly url: string;
  readonly status: number;
  readonly headers: AnswerHeaders;
  readonly statusText = '';
  readonly redirected = false;
  readonly type = 'basic';
  readonly body = null;
  readonly #text: string;

  constructor(url: string, status: number, headers: AnswerHeaders, text: string) {
    this.url = url;
    this.status = status;
    this.headers = headers;
    this.#text = text;
  }

  get ok(): boolean {
    return this.status >= 200 && this.status < 300;
  }

  async text(): Promise<string> {
    return this.#text;
  }

  async json(): Promise<unknown> {
    return JSON.parse(this.#text);
  }

  async arrayBuffer(): Promise<ArrayBuffer> {
    return new TextEncoder().encode(this.#text).buffer;
  }
}
