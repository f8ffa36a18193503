/** What a request to a tenant's URL carries, and what the status of its answer means. */
import { ACCEPTED_ENCODINGS } from './bounded-body.ts';
import { DocumentError } from './document-error.ts';
import { type Header, header } from './guarded-headers.ts';
import { originOf } from './guarded-url.ts';
import { retryAfterMs } from './retry-after.ts';
import { USER_AGENT } from './robots-rules.ts';

/** Set here alone: a caller's header of such a name would take the request out of the client's hands. */
const OWN_HEADERS =
  /^(?:host|connection|content-.*|transfer-.*|te|trailer|upgrade|expect|keep-alive|proxy-.*|accept-encoding|user-agent|if-.*|range)$/i;

/** Of an earlier answer. */
type Validators = { readonly etag?: string | null; readonly lastModified?: string | null };

/** Headers of ours, which go along on every hop. */
export function requestHeaders(given: Validators): Record<string, string> {
  const headers: Record<string, string> = { 'user-agent': USER_AGENT, 'accept-encoding': ACCEPTED_ENCODINGS };
  // From a row that a tenant may have written: what no header can hold is left out, and the page is fetched anew.
  const isSendable = (value: string | null | undefined): value is string =>
    Boolean(value) && /^[\x20-\x7e]{1,1024}$/.test(value ?? '');
  if (isSendable(given.etag)) headers['if-none-match'] = given.etag;
  if (isSendable(given.lastModified)) headers['if-modified-since'] = given.lastModified;
  return headers;
}

/** The caller's headers, for the URL's own origin alone. */
export function callersHeaders(given: Readonly<Record<string, string>>): Record<string, string> {
  const accept = 'text/html, application/pdf, text/markdown, text/plain, application/json;q=0.9, */*;q=0.5';
  const allowed = Object.entries(given).filter(([name]) => !OWN_HEADERS.test(name));
  return { accept, ...Object.fromEntries(allowed.map(([name, value]) => [name.toLowerCase(), value])) };
}

/** Null for an answer that holds the document. */
export function statusError(url: URL, status: number, headers: Header, now: number): DocumentError | null {
  // 206 was not asked for: a part of a document is none.
  if (status >= 200 && status < 300 && status !== 206) return null;
  const isTransient = status >= 500 || status === 408 || status === 425 || status === 429;
  const wait = isTransient ? retryAfterMs({ get: (name) => header(headers, name) }, now) : null;
  const advice =
    status === 401 || status === 403
      ? 'The page needs a login or refuses robots: upload its text instead.'
      : status === 404 || status === 410
        ? 'Check the URL.'
        : isTransient
          ? 'It is tried again.'
          : 'Check that the URL opens in a browser.';
  return new DocumentError('http_error', `${originOf(url)} answers ${status}. ${advice}`, {
    transient: isTransient,
    retryAfterMs: wait,
  });
}
