/** What undici and Node say when a transfer fails, as a document's failure. */
import { DocumentError } from './document-error.ts';
import { originOf } from './guarded-url.ts';

const TIMED_OUT =
  /^(?:UND_ERR_CONNECT_TIMEOUT|UND_ERR_HEADERS_TIMEOUT|UND_ERR_BODY_TIMEOUT|ETIMEDOUT|ETIMEOUT)$/;
const NO_NAME = /^(?:ENOTFOUND|ENODATA)$/;
const BAD_CERTIFICATE =
  /^(?:CERT_|DEPTH_ZERO_SELF_SIGNED_CERT|SELF_SIGNED_CERT_IN_CHAIN|UNABLE_TO_|ERR_TLS_CERT_ALTNAME_INVALID|ERR_SSL_)/;
const BAD_HTTP = /^(?:HPE_|UND_ERR_HEADERS_OVERFLOW|UND_ERR_RES_EXCEEDED)/;

/**
 * A DocumentError stays what it is, and so does what no transfer can fail with: it is a fault of ours.
 *
 * No address is part of a message: it would tell a tenant what is where.
 */
export function transportError(error: unknown, url: URL): unknown {
  const found = find(error, (each) => each instanceof DocumentError);
  if (found instanceof DocumentError) return found;
  const code = (error as { name?: unknown } | null)?.name === 'HTTPParserError' ? 'HPE_' : codeOf(error);
  if (code === '' || code === 'UND_ERR_INVALID_ARG') return error;
  const where = originOf(url);
  if (TIMED_OUT.test(code)) {
    return new DocumentError('timeout', `${where} did not answer in time. It is tried again.`, {
      transient: true,
    });
  }
  if (NO_NAME.test(code)) {
    return new DocumentError('unreachable', `There is no host of the name in ${where}. Check the URL.`);
  }
  if (BAD_CERTIFICATE.test(code)) {
    return new DocumentError(
      'unreachable',
      `The TLS certificate of ${where} is not valid (${code.slice(0, 60)}). The site's owner has to renew it.`,
    );
  }
  if (BAD_HTTP.test(code)) {
    return new DocumentError('http_error', `${where} answers with something that is not HTTP.`);
  }
  return new DocumentError(
    'unreachable',
    `The connection to ${where} failed (${code.slice(0, 60)}). It is tried again.`,
    { transient: true },
  );
}

/** Of the error or of what caused it: a socket that tried several addresses fails with a bundle. */
function codeOf(error: unknown): string {
  const withCode = find(error, (each) => typeof (each as { code?: unknown }).code === 'string');
  return (withCode as { code?: string } | null)?.code ?? '';
}

function find(error: unknown, is: (each: object) => boolean, depth = 0): object | null {
  if (typeof error !== 'object' || error === null || depth > 4) return null;
  if (is(error)) return error;
  const inner = error instanceof AggregateError ? error.errors : [];
  for (const each of [...inner, (error as { cause?: unknown }).cause]) {
    const found = find(each, is, depth + 1);
    if (found !== null) return found;
  }
  return null;
}
