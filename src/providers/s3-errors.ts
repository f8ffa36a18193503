/** What an S3 endpoint's refusal means for a document. Its messages echo keys and signatures: only codes are taken. */
import { DocumentError } from './document-error.ts';
import { shown } from './object-path.ts';

const REFUSED_KEYS =
  /^(?:InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|ExpiredToken|TokenRefreshRequired|InvalidSecurity|Unauthorized|AccessDenied|AllAccessDisabled|AccountProblem|NotSignedUp)$/;
const WRONG_REGION =
  /^(?:AuthorizationHeaderMalformed|PermanentRedirect|IllegalLocationConstraintException)$/;
const BUSY =
  /^(?:SlowDown|SlowDownRead|SlowDownWrite|ServiceUnavailable|InternalError|RequestTimeout|TooManyRequests|Busy)$/;

/** The code in an error's XML; null where there is none. */
export function errorCode(xml: string): string | null {
  return /<Code>\s*([A-Za-z0-9._-]{1,64})\s*<\/Code>/.exec(xml)?.[1] ?? null;
}

/** Whether the same request may well succeed in a moment. */
export function isBusy(status: number, code: string | null): boolean {
  return status >= 500 || status === 429 || status === 408 || (code !== null && BUSY.test(code));
}

export type S3Refusal = {
  readonly status: number;
  readonly code: string | null;
  /** The header x-amz-bucket-region. */
  readonly region: string | null;
  readonly retryAfterMs: number | null;
};

export function refusedError(refusal: S3Refusal, bucket: string, path: string): DocumentError {
  const { status, code } = refusal;
  const said = code ?? String(status);
  if (code === 'NoSuchBucket') {
    return new DocumentError(
      'not_found',
      `The storage has no bucket '${shown(bucket)}'. Create it, or correct the row's bucket.`,
    );
  }
  if (isBusy(status, code)) {
    return new DocumentError('storage_error', `The storage is busy or broken (${said}). It is tried again.`, {
      transient: true,
      retryAfterMs: refusal.retryAfterMs,
    });
  }
  if (code === 'RequestTimeTooSkewed' || code === 'RequestExpired') {
    return new DocumentError(
      'storage_error',
      'The storage refuses requests because its clock and the worker’s differ. Set the worker’s clock.',
      { transient: true },
    );
  }
  if ((code !== null && WRONG_REGION.test(code)) || status === 301) {
    const region = /^[a-z0-9-]{1,64}$/.test(refusal.region ?? '') ? `: it is ${refusal.region}` : '';
    return new DocumentError(
      'storage_error',
      `The bucket '${shown(bucket)}' is in another region or at another host${region}. Set region in AGENTD_STORAGE_URL.`,
    );
  }
  if (status === 404) {
    return new DocumentError(
      'not_found',
      `There is no file '${shown(path)}' in the bucket '${shown(bucket)}'. Upload it again.`,
    );
  }
  if (status === 401 || status === 403 || (code !== null && REFUSED_KEYS.test(code))) {
    return new DocumentError(
      'credentials_refused',
      `The storage refuses the worker’s keys for the bucket '${shown(bucket)}' (${said}). Check AWS_ACCESS_KEY_ID, ` +
        'AWS_SECRET_ACCESS_KEY and what they may do; some storages say the same of a file that is not there.',
    );
  }
  return new DocumentError(
    'storage_error',
    `The storage answers ${status}${code === null ? '' : ` (${code})`}. Check AGENTD_STORAGE_URL.`,
  );
}
