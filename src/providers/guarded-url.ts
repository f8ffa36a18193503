/** URLs as tenants write them, judged before anything is resolved or sent. */
import { isIP } from 'node:net';
import { DocumentError } from './document-error.ts';
import {
  type AllowedHosts,
  isNamed,
  isPortAllowed,
  isPrivateName,
  plainHost,
  refusal,
} from './guarded-address.ts';

/** Long enough for signed links; what is longer is no address of a document. */
const MAX_URL_CHARACTERS = 4096;

/**
 * The URL, if its form allows to fetch it. What its name resolves to is checked when the connection is made.
 *
 * Throws DocumentError `blocked_address`; no message repeats more of the URL than its origin: links carry keys.
 */
export function checkedUrl(text: string, allowed: AllowedHosts): URL {
  const blocked = (message: string): DocumentError => new DocumentError('blocked_address', message);
  if (text.length > MAX_URL_CHARACTERS) {
    throw blocked(`The URL is longer than ${MAX_URL_CHARACTERS} characters. Use a shorter link.`);
  }
  const url = URL.canParse(text) ? new URL(text) : null;
  if (url === null) throw blocked('This is no URL. Write it whole, such as https://example.com/page.');
  if (url.protocol !== 'http:' && url.protocol !== 'https:') {
    throw blocked(`Only http and https URLs are fetched, not ${url.protocol.slice(0, 20)} ones.`);
  }
  if (url.username !== '' || url.password !== '') {
    throw blocked('The URL holds a user name or a password. Remove them: they would be stored in the clear.');
  }
  const host = plainHost(url.hostname);
  const port = portOf(url);
  if (!isPortAllowed(allowed, host, port)) {
    throw blocked(
      `Port ${port} is not one on which documents are fetched (80, 443, 8080, 8443). The operator can open it by ` +
        'naming host:port in AGENTD_ALLOWED_PRIVATE_HOSTS.',
    );
  }
  if (isIP(host) !== 0) {
    const why = refusal(allowed, host, host, port);
    if (why !== null) throw notPublicError(url, why);
  } else if (isPrivateName(host) && !isNamed(allowed, host)) {
    throw notPublicError(url, 'private');
  }
  url.hash = '';
  return url;
}

/** The failure of a URL that leads to an address which nobody opened. It does not say to which one. */
export function notPublicError(url: URL, why: string): DocumentError {
  return new DocumentError(
    'blocked_address',
    `${originOf(url)} leads to an address that is not public (${why}). Use a public address; the operator can open ` +
      'others in AGENTD_ALLOWED_PRIVATE_HOSTS.',
  );
}

export function portOf(url: URL): number {
  if (url.port !== '') return Number(url.port);
  return url.protocol === 'https:' ? 443 : 80;
}

/** What a message may say of a URL. */
export function originOf(url: URL): string {
  return url.origin.slice(0, 200);
}
