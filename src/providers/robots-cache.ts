/** What sites let us fetch, asked once a day of each. */
import type { Clock } from '../clock.ts';
import { DocumentError } from './document-error.ts';
import { originOf } from './guarded-url.ts';
import { isAllowedBy, ourRules } from './robots-rules.ts';

/** RFC 9309: a day at most. */
const KEPT_MS = 24 * 3600_000;
/** A file that could not be read is asked for again sooner. */
const KEPT_UNAVAILABLE_MS = 5 * 60_000;
const MAX_ORIGINS = 200;

/** How a site answered: the text of its file, or the status that came instead of it. */
export type RobotsAnswer = { readonly status: number; readonly text: string };

type Entry = { readonly rules: string; readonly unavailable: number | null; readonly until: number };

/** Throws DocumentError `blocked_by_robots` for a URL that its site does not want fetched. */
export type RobotsCheck = (url: URL, signal: AbortSignal) => Promise<void>;

/**
 * @param read fetches a robots.txt through the same guard as pages; it has its own time limit, because its answer is
 *   shared by all who wait for it
 */
export function robotsCache(clock: Clock, read: (url: URL) => Promise<RobotsAnswer>): RobotsCheck {
  const entries = new Map<string, Entry>();
  const reading = new Map<string, Promise<Entry>>();

  const ask = async (origin: string): Promise<Entry> => {
    const { status, text } = await read(new URL('/robots.txt', origin));
    // No file is leave to fetch everything; a site in trouble is left alone, and 429 is trouble.
    const isThere = status >= 200 && status < 300;
    const unavailable = status >= 500 || status === 429 ? status : null;
    const until = clock.elapsed() + (unavailable === null ? KEPT_MS : KEPT_UNAVAILABLE_MS);
    const entry = { rules: isThere ? ourRules(text) : '', unavailable, until };
    entries.delete(origin);
    for (const oldest of entries.keys()) {
      if (entries.size < MAX_ORIGINS) break;
      entries.delete(oldest);
    }
    entries.set(origin, entry);
    return entry;
  };

  const entryOf = (origin: string): Promise<Entry> => {
    const known = entries.get(origin);
    if (known !== undefined && known.until > clock.elapsed()) return Promise.resolve(known);
    let asked = reading.get(origin);
    if (asked === undefined) {
      asked = ask(origin).finally(() => reading.delete(origin));
      reading.set(origin, asked);
    }
    return asked;
  };

  return async (url, signal) => {
    const entry = await orAborted(entryOf(url.origin), signal);
    if (entry.unavailable !== null) {
      throw new DocumentError(
        'blocked_by_robots',
        `${originOf(url)}/robots.txt answers ${entry.unavailable}; until it can be read, nothing is fetched there.`,
        { transient: true, retryAfterMs: Math.max(0, Math.ceil(entry.until - clock.elapsed())) },
      );
    }
    if (isAllowedBy(entry.rules, url)) return;
    throw new DocumentError(
      'blocked_by_robots',
      `${originOf(url)} does not let agentd fetch this page (robots.txt). Ask the site's owner, or upload the text.`,
    );
  };
}

/** The promise, or the signal's reason as soon as it fires. The promise goes on for the others. */
function orAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) {
      promise.catch(() => {});
      return reject(signal.reason);
    }
    const abort = (): void => reject(signal.reason);
    signal.addEventListener('abort', abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}
