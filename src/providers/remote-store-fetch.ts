/** The transport below the clients of stores: guarded connections, whole and bounded answers, failures as RemoteStoreError. */
import { Agent, type Dispatcher, request } from 'undici';
import type { Clock } from '../clock.ts';
import { discard, readBody } from './bounded-body.ts';
import { DocumentError } from './document-error.ts';
import { type AllowedHosts, isNamed } from './guarded-address.ts';
import { guardedConnector, publicResolver, type Resolve } from './guarded-connect.ts';
import { transportError } from './guarded-errors.ts';
import { header } from './guarded-headers.ts';
import { checkedUrl, originOf } from './guarded-url.ts';
import { RemoteStoreError } from './remote-store-error.ts';
import { retryAfterMs } from './retry-after.ts';

const CONNECT_MS = 5_000;
/** Vectors do not come back, and a page of fifty episodes has 2 MB. */
const MAX_RESPONSE_BYTES = 8 * 1024 * 1024;
const MAX_ERROR_BYTES = 64 * 1024;

/** A store's service as the transport sees it. */
export type StoreService = {
  readonly name: string;
  /** Where keys may be sent, beside what the operator names: names of hosts that are the service's own. */
  readonly ownHost: RegExp;
  /** At once to one host, for all tenants that have it. */
  readonly connections: number;
  /** The clients add headers for telemetry; these are all that is needed. */
  readonly passedHeaders: readonly string[];
  /** Headers of an answer that mean something. */
  readonly answerHeaders: readonly string[];
  /** What a status means here, other than everywhere; null: nothing else. */
  statusError(where: string, status: number, text: string): RemoteStoreError | null;
};

export type StoreTransport = {
  /** A `fetch` for requests under a signal, each within `timeoutMs`; what it fails with is told to `onFailure` as well, since a client may change it. */
  fetchWithin(
    signal: AbortSignal,
    timeoutMs: number,
    onFailure?: (error: unknown) => void,
  ): (
    url: string,
    init?: { method?: string; headers?: Record<string, string>; body?: string },
  ) => Promise<Response>;
  close(): Promise<void>;
};

export function storeTransport(options: {
  readonly service: StoreService;
  readonly allowed: AllowedHosts;
  readonly clock: Clock;
  readonly resolve?: Resolve;
}): StoreTransport {
  const { service, allowed, clock } = options;
  const agent = new Agent({
    connect: guardedConnector(allowed, options.resolve ?? publicResolver(allowed), CONNECT_MS),
    headersTimeout: 0,
    bodyTimeout: 0,
    keepAliveTimeout: 10_000,
    connections: service.connections,
  });
  return {
    fetchWithin: (signal, timeoutMs, onFailure) => async (url, init) => {
      const late = new AbortController();
      const timer = clock.after(timeoutMs, () => late.abort(new Error('deadline')));
      try {
        const where = storeUrl(url, service, allowed);
        const given = new Headers(init?.headers);
        const headers: Record<string, string> = { 'user-agent': 'agentd', 'accept-encoding': 'gzip' };
        for (const name of service.passedHeaders) {
          const value = given.get(name);
          if (value !== null) headers[name] = value;
        }
        const answer = await request(where, {
          dispatcher: agent,
          method: (init?.method ?? 'GET') as Dispatcher.HttpMethod,
          headers,
          body: init?.body ?? null,
          signal: AbortSignal.any([signal, late.signal]),
        });
        return await settled(where, answer, service, clock);
      } catch (error) {
        const failure = signal.aborted
          ? signal.reason
          : late.signal.aborted
            ? new RemoteStoreError(
                'timeout',
                `The store did not answer within ${timeoutMs} ms. It is tried again.`,
                {
                  transient: true,
                },
              )
            : storeError(error, url);
        onFailure?.(failure);
        throw failure;
      } finally {
        timer.cancel();
      }
    },
    close: () => agent.destroy(),
  };
}

/** Throws RemoteStoreError `blocked_address` where a key may not be sent. */
function storeUrl(text: string, service: StoreService, allowed: AllowedHosts): URL {
  const url = checkedUrl(text, allowed);
  const isOpened = isNamed(allowed, url.hostname);
  if (isOpened || (service.ownHost.test(url.hostname) && url.protocol === 'https:')) return url;
  throw new RemoteStoreError(
    'blocked_address',
    `${originOf(url)} is no host of ${service.name}'s. Correct the address in the datastore's config; the operator can open others in ` +
      'AGENTD_ALLOWED_PRIVATE_HOSTS.',
  );
}

async function settled(
  url: URL,
  answer: Dispatcher.ResponseData,
  service: StoreService,
  clock: Clock,
): Promise<Response> {
  const { headers, statusCode: status } = answer;
  const isGood = status >= 200 && status < 300;
  const bytes = await readBody(answer.body, {
    maxBytes: isGood ? MAX_RESPONSE_BYTES : MAX_ERROR_BYTES,
    atLimit: isGood ? 'fail' : 'cut',
    contentLength: header(headers, 'content-length'),
    contentEncoding: header(headers, 'content-encoding'),
  });
  if (isGood)
    return new Response(status === 204 ? null : new Uint8Array(bytes), {
      status,
      headers: { 'content-type': 'application/json', ...answerHeaders(headers, service) },
    });
  discard(answer.body);
  const text = bytes.toString('utf8');
  throw (
    service.statusError(originOf(url), status, text) ??
    statusError(url, status, retryAfterMs({ get: (name) => header(headers, name) }, clock.now()))
  );
}

function answerHeaders(
  headers: Dispatcher.ResponseData['headers'],
  service: StoreService,
): Record<string, string> {
  return Object.fromEntries(
    service.answerHeaders.flatMap((name) => {
      const value = header(headers, name);
      return value === null ? [] : [[name, value]];
    }),
  );
}

function statusError(url: URL, status: number, wait: number | null): RemoteStoreError {
  const where = originOf(url);
  if (status === 401 || status === 403) {
    return new RemoteStoreError(
      'credentials_refused',
      `${where} refuses the datastore's key (${status}). Store a valid api_key in the datastore's config.`,
    );
  }
  if (status === 429) {
    return new RemoteStoreError('rate_limited', `${where} asks to come later (429). It is tried again.`, {
      transient: true,
      retryAfterMs: wait,
    });
  }
  if (status >= 500 || status === 408) {
    return new RemoteStoreError('store_error', `${where} answers ${status}. It is tried again.`, {
      transient: true,
      retryAfterMs: wait,
    });
  }
  return new RemoteStoreError('refused', `${where} refuses the request (${status}).`);
}

function storeError(error: unknown, text: string): unknown {
  if (error instanceof RemoteStoreError) return error;
  const url = URL.canParse(text) ? new URL(text) : new URL('https://invalid.invalid');
  const found = transportError(error, url);
  if (!(found instanceof DocumentError)) {
    return new RemoteStoreError(
      'store_error',
      `The answer of ${originOf(url)} can't be read. It is tried again.`,
      {
        transient: true,
        cause: error,
      },
    );
  }
  const code =
    found.code === 'blocked_address'
      ? 'blocked_address'
      : found.code === 'timeout'
        ? 'timeout'
        : 'unreachable';
  return new RemoteStoreError(code, found.message, { transient: found.isTransient, cause: error });
}
