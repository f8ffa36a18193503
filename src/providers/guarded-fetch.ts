/**
 * The HTTP client for URLs that tenants name.
 *
 * What it keeps: connections go to public addresses alone, to the very address that was judged, on every hop of a
 * redirect; time, bytes and hops are bounded whatever the other side does; sites that do not want robots are left
 * alone; no message holds more of a URL than its origin.
 */
import { Agent, type Dispatcher, request } from 'undici';
import { type Clock, systemClock } from '../clock.ts';
import { type BodyOptions, BodyTooLarge, BodyUnreadable, discard, drain, readBody } from './bounded-body.ts';
import { DocumentError } from './document-error.ts';
import { parseAllowedHosts } from './guarded-address.ts';
import { guardedConnector, publicResolver, type Resolve } from './guarded-connect.ts';
import { transportError } from './guarded-errors.ts';
import { answeredType, charsetOf, fileNameOf, header, REFUSED_TYPES } from './guarded-headers.ts';
import { callersHeaders, requestHeaders, statusError } from './guarded-request.ts';
import { checkedUrl, originOf } from './guarded-url.ts';
import { robotsCache } from './robots-cache.ts';
import { MAX_ROBOTS_BYTES } from './robots-rules.ts';

const MAX_REDIRECTS = 5;
/** For a robots.txt: it is a small file, and pages wait for it. */
const ROBOTS_MS = 30_000;
const DEFAULT_MAX_BYTES = 100 * 1024 * 1024;
const REDIRECTS: ReadonlySet<number> = new Set([301, 302, 303, 307, 308]);
/** All in milliseconds. */
export type GuardedTimeouts = {
  /** Name, connection and TLS together. */
  readonly connectMs: number;
  readonly headersMs: number;
  /** Silence in the middle of a body. */
  readonly stallMs: number;
  /** Everything, redirects included. */
  readonly totalMs: number;
};

const TIMEOUTS: GuardedTimeouts = { connectMs: 10_000, headersMs: 30_000, stallMs: 30_000, totalMs: 180_000 };

export type GuardedClientOptions = {
  /** As in Config. Throws from {@link openGuardedClient} when an entry is no host. */
  readonly allowedPrivateHosts: readonly string[];
  readonly clock?: Clock;
  readonly timeouts?: Partial<GuardedTimeouts>;
  /** Where names are looked up. */
  readonly resolve?: Resolve;
};

export type GuardedRequest = {
  readonly signal: AbortSignal;
  /** Of the body on the wire, and of what it inflates to. */
  readonly maxBytes?: number;
  /** Validators of an earlier answer: the server may then say that nothing has changed. */
  readonly etag?: string | null;
  readonly lastModified?: string | null;
  /** Sent to the URL's own origin, and dropped for good as soon as a redirect leaves it. */
  readonly headers?: Readonly<Record<string, string>>;
};

/** A page or a file as it came. `bytes` is inflated, but not decoded: `charset` says what the server calls it. */
export type FetchedUrl = {
  readonly bytes: Buffer;
  /** The whole header; null when there is none. */
  readonly contentType: string | null;
  /** An encoding that TextDecoder knows, from the header; null when it names none or an unknown one. */
  readonly charset: string | null;
  /** From content-disposition, or the last part of the path; null when there is neither. */
  readonly fileName: string | null;
  /** After redirects, without fragment. */
  readonly finalUrl: string;
  readonly etag: string | null;
  readonly lastModified: string | null;
  /** The validators still hold; `bytes` is empty. */
  readonly notModified: boolean;
};

export type GuardedClient = {
  /**
   * Throws DocumentError (`blocked_address`, `blocked_by_robots`, `http_error`, `unreachable`, `timeout`, `too_large`,
   * `unsupported` for sounds, pictures and films), or the reason of the caller's signal.
   */
  fetch(url: string, options: GuardedRequest): Promise<FetchedUrl>;
  close(): Promise<void>;
};

/** Opens the client: one a process, with its connections and its memory of robots.txt. */
export function openGuardedClient(options: GuardedClientOptions): GuardedClient {
  const clock = options.clock ?? systemClock;
  const times = { ...TIMEOUTS, ...options.timeouts };
  const allowed = parseAllowedHosts(options.allowedPrivateHosts);
  const agent = new Agent({
    connect: guardedConnector(allowed, options.resolve ?? publicResolver(allowed), times.connectMs),
    headersTimeout: times.headersMs,
    bodyTimeout: times.stallMs,
    keepAliveTimeout: 4000,
    keepAliveMaxTimeout: 10_000,
  });

  type Answer = { readonly url: URL; readonly response: Dispatcher.ResponseData };

  /** Follows redirects to the first answer that is none. Its body is the caller's to read or to discard. */
  const follow = async (
    first: URL,
    given: GuardedRequest,
    check: (url: URL, signal: AbortSignal) => Promise<void>,
  ): Promise<Answer> => {
    const own = requestHeaders(given);
    let extra = callersHeaders(given.headers ?? {});
    let url = first;
    for (let hops = 0; ; hops++) {
      await check(url, given.signal);
      const response = await request(url, {
        dispatcher: agent,
        headers: { ...extra, ...own },
        signal: given.signal,
      });
      if (!REDIRECTS.has(response.statusCode)) return { url, response };
      await drain(response.body, given.signal);
      if (hops === MAX_REDIRECTS) {
        throw new DocumentError(
          'http_error',
          `${originOf(first)} redirects more than ${MAX_REDIRECTS} times.`,
        );
      }
      const next = redirectedUrl(url, header(response.headers, 'location'));
      if (next.origin !== url.origin) extra = callersHeaders({});
      url = next;
    }
  };

  const redirectedUrl = (from: URL, location: string | null): URL => {
    if (location === null) {
      throw new DocumentError('http_error', `${originOf(from)} redirects, but does not say to where.`);
    }
    // Headers are read as Latin-1; what is beyond ASCII in an address is UTF-8 by custom.
    const target = Buffer.from(location, 'latin1').toString('utf8');
    const url = checkedUrl(
      URL.canParse(target, from.href) ? new URL(target, from.href).href : target,
      allowed,
    );
    if (from.protocol === 'https:' && url.protocol === 'http:') {
      throw new DocumentError(
        'http_error',
        `${originOf(from)} redirects from https to http, where anybody on the way could change the page. Use a URL ` +
          'that stays with https.',
      );
    }
    return url;
  };

  /** Runs `work` under the total time; what it fails with comes out as a DocumentError or as the caller's reason. */
  const within = async <T>(
    url: URL,
    signal: AbortSignal,
    totalMs: number,
    work: (signal: AbortSignal) => Promise<T>,
  ): Promise<T> => {
    const late = new AbortController();
    const timer = clock.after(totalMs, () => {
      late.abort(
        new DocumentError('timeout', `${originOf(url)} did not send all within ${totalMs} ms.`, {
          transient: true,
        }),
      );
    });
    const both = AbortSignal.any([signal, late.signal]);
    try {
      return await work(both);
    } catch (error) {
      // Whatever an aborted request or stream threw, the reason is why.
      if (both.aborted) throw both.reason;
      throw transportError(error, url);
    } finally {
      timer.cancel();
    }
  };

  const body = (answer: Answer, maxBytes: number, atLimit: BodyOptions['atLimit']): Promise<Buffer> => {
    const { headers } = answer.response;
    return readBody(answer.response.body, {
      maxBytes,
      atLimit,
      contentLength: header(headers, 'content-length'),
      contentEncoding: header(headers, 'content-encoding'),
    }).catch((error: unknown) => {
      if (error instanceof BodyTooLarge) {
        throw new DocumentError(
          'too_large',
          `${originOf(answer.url)} sends more than ${maxBytes} bytes. Split the document, or upload the part that matters.`,
        );
      }
      if (error instanceof BodyUnreadable) {
        throw new DocumentError(
          'http_error',
          `${originOf(answer.url)} sends a body that is broken (${error.message}).`,
          { transient: true },
        );
      }
      throw error;
    });
  };

  const robots = robotsCache(clock, (url) =>
    within(url, new AbortController().signal, Math.min(times.totalMs, ROBOTS_MS), async (signal) => {
      const answer = await follow(url, { signal }, async () => {}).catch((error: unknown) => {
        // A loop of redirects is no file; an address that may not be reached is a failure of the page's own site.
        if (error instanceof DocumentError && error.code === 'http_error') return null;
        throw error;
      });
      if (answer === null) return { status: 404, text: '' };
      const status = answer.response.statusCode;
      if (status < 200 || status >= 300) {
        await drain(answer.response.body, signal);
        return { status, text: '' };
      }
      return { status, text: (await body(answer, MAX_ROBOTS_BYTES, 'cut')).toString('utf8') };
    }),
  );

  return {
    async fetch(text, given) {
      given.signal.throwIfAborted();
      const first = checkedUrl(text, allowed);
      return within(first, given.signal, times.totalMs, async (signal) => {
        const answer = await follow(first, { ...given, signal }, robots);
        const { headers, statusCode } = answer.response;
        const about = {
          contentType: answeredType(headers),
          charset: charsetOf(headers),
          fileName: fileNameOf(headers, answer.url),
          finalUrl: answer.url.href,
          etag: header(headers, 'etag'),
          lastModified: header(headers, 'last-modified'),
        };
        const isConditional = Object.keys(requestHeaders(given)).some((name) => name.startsWith('if-'));
        if (statusCode === 304 && isConditional) {
          discard(answer.response.body);
          return { ...about, bytes: Buffer.alloc(0), notModified: true };
        }
        const failure = statusError(answer.url, statusCode, headers, clock.now());
        if (failure !== null) {
          discard(answer.response.body);
          throw failure;
        }
        if (REFUSED_TYPES.test(about.contentType ?? '')) {
          discard(answer.response.body);
          throw new DocumentError(
            'unsupported',
            `${originOf(answer.url)} sends ${about.contentType?.split(';')[0]?.slice(0, 60)}, which holds no text. Name a page or a document.`,
          );
        }
        const bytes = await body(answer, given.maxBytes ?? DEFAULT_MAX_BYTES, 'fail');
        return { ...about, bytes, notModified: false };
      });
    },
    // Not `close`, which waits for whatever a slow site still owes.
    close: () => agent.destroy(),
  };
}
