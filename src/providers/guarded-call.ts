/**
 * Requests to services whose address comes from a row: to public addresses alone, bounded in time and bytes, no redirect followed, so
 * that what is sent reaches nobody else.
 */
import { Agent, type Dispatcher, request } from 'undici';
import type { Clock } from '../clock.ts';
import { BodyTooLarge, BodyUnreadable, discard, readBody } from './bounded-body.ts';
import { DocumentError } from './document-error.ts';
import { isNamed, parseAllowedHosts } from './guarded-address.ts';
import { guardedConnector, publicResolver, type Resolve } from './guarded-connect.ts';
import { transportError } from './guarded-errors.ts';
import { type Header, header } from './guarded-headers.ts';
import { checkedUrl, originOf } from './guarded-url.ts';

const CONNECT_MS = 5_000;

export type GuardedCall = {
  readonly method: 'GET' | 'POST' | 'DELETE';
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string | null;
  readonly signal: AbortSignal;
  /** Everything together, in milliseconds. */
  readonly timeoutMs: number;
  /** Of the answer, on the wire and inflated. */
  readonly maxBytes: number;
};

/** An answer, whatever its status. */
export type GuardedAnswer = { readonly status: number; readonly headers: Header; readonly text: string };

/** A request that got no usable answer. Its message holds no more of the URL than its origin. */
export class GuardedCallError extends Error {
  override readonly name = 'GuardedCallError';
  readonly code: 'blocked_address' | 'timeout' | 'unreachable' | 'bad_answer';
  /** False where the other side can't have got the request. */
  readonly mayHaveArrived: boolean;
  constructor(code: GuardedCallError['code'], message: string, mayHaveArrived: boolean, cause?: unknown) {
    super(message, { cause });
    this.code = code;
    this.mayHaveArrived = mayHaveArrived;
  }
}

export type GuardedCaller = {
  /** Throws GuardedCallError, or the reason of the caller's signal. */
  call(url: string, what: GuardedCall): Promise<GuardedAnswer>;
  close(): Promise<void>;
};

/** Codes of connections that never came to be. */
const NOT_CONNECTED =
  /^(?:ECONNREFUSED|ENOTFOUND|ENODATA|EAI_AGAIN|EHOSTUNREACH|ENETUNREACH|UND_ERR_CONNECT_TIMEOUT|CERT_|DEPTH_ZERO|SELF_SIGNED|UNABLE_TO_|ERR_TLS|ERR_SSL)/;

/** Opens the caller: one a process, with its connections. */
export function openGuardedCaller(options: {
  /** As in Config. */
  readonly allowedPrivateHosts: readonly string[];
  readonly clock: Clock;
  readonly resolve?: Resolve;
}): GuardedCaller {
  const allowed = parseAllowedHosts(options.allowedPrivateHosts);
  const agent = new Agent({
    connect: guardedConnector(allowed, options.resolve ?? publicResolver(allowed), CONNECT_MS),
    headersTimeout: 0,
    bodyTimeout: 0,
    keepAliveTimeout: 10_000,
  });
  return {
    async call(text, { method, headers, body, signal, timeoutMs, maxBytes }) {
      const late = new AbortController();
      const timer = options.clock.after(timeoutMs, () => late.abort(new Error('deadline')));
      try {
        const url = checkedUrl(text, allowed);
        if (url.protocol !== 'https:' && !isNamed(allowed, url.hostname)) {
          throw new GuardedCallError('blocked_address', `${originOf(url)} is not https.`, false);
        }
        const answer = await request(url, {
          dispatcher: agent,
          method,
          headers: { 'user-agent': 'agentd', 'accept-encoding': 'gzip', ...headers },
          body,
          signal: AbortSignal.any([signal, late.signal]),
        });
        return {
          status: answer.statusCode,
          headers: answer.headers,
          text: await bodyOf(answer, maxBytes),
        };
      } catch (error) {
        if (error instanceof GuardedCallError) throw error;
        if (signal.aborted) throw signal.reason;
        const url = URL.canParse(text) ? new URL(text) : new URL('https://invalid.invalid');
        if (late.signal.aborted) {
          throw new GuardedCallError(
            'timeout',
            `${originOf(url)} did not answer within ${timeoutMs} ms.`,
            true,
            error,
          );
        }
        throw callError(error, url);
      } finally {
        timer.cancel();
      }
    },
    close: () => agent.destroy(),
  };
}

async function bodyOf(answer: Dispatcher.ResponseData, maxBytes: number): Promise<string> {
  try {
    const bytes = await readBody(answer.body, {
      maxBytes,
      atLimit: 'fail',
      contentLength: header(answer.headers, 'content-length'),
      contentEncoding: header(answer.headers, 'content-encoding'),
    });
    return bytes.toString('utf8');
  } catch (error) {
    discard(answer.body);
    throw error;
  }
}

function callError(error: unknown, url: URL): unknown {
  const found = transportError(error, url);
  if (error instanceof BodyTooLarge || error instanceof BodyUnreadable) {
    return new GuardedCallError(
      'bad_answer',
      `The answer of ${originOf(url)} is too large or can't be read.`,
      true,
      error,
    );
  }
  if (!(found instanceof DocumentError)) return found;
  const code =
    found.code === 'blocked_address'
      ? 'blocked_address'
      : found.code === 'timeout'
        ? 'timeout'
        : found.code === 'http_error'
          ? 'bad_answer'
          : 'unreachable';
  const low = String(
    (error as { code?: unknown }).code ?? (error as { cause?: { code?: unknown } }).cause?.code ?? '',
  );
  const isUnsent = code === 'blocked_address' || NOT_CONNECTED.test(low);
  return new GuardedCallError(code, found.message, !isUnsent, error);
}
