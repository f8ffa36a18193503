/** Object storage behind S3's protocol: AWS, Supabase Storage, MinIO, R2 and others. */
import type { IncomingHttpHeaders } from 'node:http';
import { AwsV4Signer } from 'aws4fetch';
import { Agent, type Dispatcher, request } from 'undici';
import { type Clock, sleep } from '../clock.ts';
import { BodyTooLarge, BodyUnreadable, discard, pourBody, readBody } from './bounded-body.ts';
import { DocumentError } from './document-error.ts';
import { shown } from './object-path.ts';
import type { ObjectStorage, StorageEnv, StorageOptions, StoredObject } from './object-storage.ts';
import { retryAfterMs } from './retry-after.ts';
import { s3Address } from './s3-address.ts';
import { errorCode, refusedError, type S3Refusal } from './s3-errors.ts';

const ATTEMPTS = 4;
/** The longest wait between attempts; a storage that asks for more is left to the document's own retry. */
const MAX_WAIT_MS = 5000;
const TIMEOUTS = { connectMs: 10_000, stallMs: 30_000, totalMs: 300_000 };
const MAX_ERROR_BYTES = 64 * 1024;
const NO_BODY = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855';
/** Keys that were derived; one is added a day. */
const MAX_KEYS = 8;

type Method = 'GET' | 'HEAD' | 'PUT' | 'DELETE';
type Call = {
  readonly method: Method;
  readonly bucket: string;
  readonly path: string;
  readonly signal: AbortSignal;
  readonly body?: Uint8Array;
  readonly contentType?: string | null;
  /** What the call comes to when there is no such object, instead of `not_found`. */
  readonly ifAbsent?: unknown;
};

type Take<T> = (response: Dispatcher.ResponseData) => Promise<T>;

export function openS3Storage(
  url: string,
  env: StorageEnv,
  options: StorageOptions & { readonly clock: Clock },
): ObjectStorage {
  const address = s3Address(url, env.AWS_REGION?.trim() || undefined);
  const { clock } = options;
  const times = { ...TIMEOUTS, ...options.timeouts };
  const pool = options.dispatcher
    ? null
    : new Agent({
        connect: { timeout: times.connectMs },
        headersTimeout: times.stallMs,
        bodyTimeout: times.stallMs,
        keepAliveTimeout: 10_000,
      });
  const dispatcher: Dispatcher = options.dispatcher ?? (pool as Agent);
  const keys = new Map<string, ArrayBuffer>();

  const signed = async (call: Call): Promise<{ url: URL; headers: Record<string, string> }> => {
    const accessKeyId = env.AWS_ACCESS_KEY_ID?.trim();
    const secretAccessKey = env.AWS_SECRET_ACCESS_KEY?.trim();
    if (!accessKeyId || !secretAccessKey) {
      throw new DocumentError(
        'no_credentials',
        'The worker has no keys for its storage. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.',
      );
    }
    const hash = call.body === undefined ? NO_BODY : await sha256(call.body);
    if (keys.size > MAX_KEYS) keys.clear();
    const sessionToken = env.AWS_SESSION_TOKEN?.trim();
    const signer = new AwsV4Signer({
      method: call.method,
      url: address.urlOf(call.bucket, call.path).href,
      headers: { 'x-amz-content-sha256': hash },
      accessKeyId,
      secretAccessKey,
      ...(sessionToken ? { sessionToken } : {}),
      service: 's3',
      region: address.region,
      cache: keys,
      datetime: new Date(clock.now()).toISOString().replace(/[:-]|\.\d{3}/g, ''),
    });
    const result = await signer.sign();
    const headers: Record<string, string> = { 'user-agent': 'agentd', 'accept-encoding': 'identity' };
    if (call.body !== undefined) {
      headers['content-type'] = printable(call.contentType) ?? 'application/octet-stream';
      headers['content-length'] = String(call.body.byteLength);
    }
    result.headers.forEach((value, name) => {
      headers[name] = value;
    });
    return { url: result.url, headers };
  };

  /** One attempt: the answer's body is the caller's to read or to discard. */
  const ask = async (call: Call): Promise<Dispatcher.ResponseData> => {
    const { url, headers } = await signed(call);
    return request(url, {
      dispatcher,
      method: call.method,
      headers,
      body: call.body ?? null,
      signal: call.signal,
    });
  };

  /** One attempt within its time; fails with a DocumentError or with the caller's reason. */
  const attempt = async <T>(call: Call, take: Take<T>): Promise<T> => {
    const late = new AbortController();
    const timer = clock.after(times.totalMs, () => {
      late.abort(
        new DocumentError(
          'timeout',
          `The storage did not finish within ${times.totalMs} ms. It is tried again.`,
          {
            transient: true,
          },
        ),
      );
    });
    const signal = AbortSignal.any([call.signal, late.signal]);
    try {
      const response = await ask({ ...call, signal });
      if (response.statusCode >= 200 && response.statusCode < 300) return await take(response);
      const refusal = await refusalOf(response, clock.now());
      if (refusal.status === 404 && call.ifAbsent !== undefined) return call.ifAbsent as T;
      throw refusedError(refusal, call.bucket, call.path);
    } catch (error) {
      // Whatever an aborted request or stream threw, the reason is why.
      if (signal.aborted) throw signal.reason;
      throw connectionError(error);
    } finally {
      timer.cancel();
    }
  };

  /** Attempts until one succeeds, the storage refuses for good, or there were enough. */
  const persist = async <T>(call: Call, take: Take<T>): Promise<T> => {
    for (let count = 1; ; count++) {
      try {
        return await attempt(call, take);
      } catch (error) {
        const asked = error instanceof DocumentError && error.isTransient ? (error.retryAfterMs ?? 0) : null;
        if (asked === null || asked > MAX_WAIT_MS || count === ATTEMPTS || call.signal.aborted) throw error;
        const backoff = (options.backoffMs ?? 200) * 2 ** (count - 1) * (0.5 + Math.random());
        await sleep(clock, Math.min(MAX_WAIT_MS, Math.max(backoff, asked)), call.signal);
      }
    }
  };

  const done: Take<void> = async (response) => discard(response.body);

  return {
    read: (bucket, path, { maxBytes, signal, etag = null }) =>
      // An attempt that is cut short is made again from the start: its whole answer is of one version, whichever.
      persist({ method: 'GET', bucket, path, signal }, async ({ headers, body }): Promise<StoredObject> => {
        const version = header(headers, 'etag');
        if (etag !== null && version !== etag) {
          discard(body);
          throw changed(path);
        }
        const contentLength = header(headers, 'content-length');
        const contentEncoding = header(headers, 'content-encoding');
        const bytes = await readBody(body, {
          maxBytes,
          contentLength,
          contentEncoding,
          atLimit: 'fail',
        }).catch((error: unknown) => {
          throw bodyError(error, path, maxBytes);
        });
        return { bytes, contentType: header(headers, 'content-type'), etag: version };
      }),

    readInto: (bucket, path, sink, { maxBytes, signal }) =>
      persist({ method: 'GET', bucket, path, signal }, async ({ headers, body }) => {
        body.on('error', () => {});
        await sink.begin().catch((error: unknown) => {
          body.destroy();
          throw error;
        });
        const contentLength = header(headers, 'content-length');
        const contentEncoding = header(headers, 'content-encoding');
        await pourBody(body, { maxBytes, contentLength, contentEncoding }, (piece) => sink.take(piece)).catch(
          (error: unknown) => {
            throw bodyError(error, path, maxBytes);
          },
        );
      }),

    write: (bucket, path, bytes, { contentType, signal }) =>
      persist({ method: 'PUT', bucket, path, signal, body: bytes, contentType }, done),

    remove: (bucket, path, { signal }) =>
      persist({ method: 'DELETE', bucket, path, signal }, done).catch((error: unknown) => {
        if (!(error instanceof DocumentError && error.code === 'not_found')) throw error;
      }),

    exists: (bucket, path, { signal }) =>
      persist({ method: 'HEAD', bucket, path, signal, ifAbsent: false }, async (response) => {
        discard(response.body);
        return true;
      }),

    close: async () => {
      await pool?.destroy();
    },
  };
}

async function refusalOf(response: Dispatcher.ResponseData, now: number): Promise<S3Refusal> {
  const { headers, statusCode } = response;
  const xml = await readBody(response.body, {
    maxBytes: MAX_ERROR_BYTES,
    atLimit: 'cut',
    contentLength: null,
    contentEncoding: header(headers, 'content-encoding'),
  }).catch(() => Buffer.alloc(0));
  return {
    status: statusCode,
    code: errorCode(xml.toString('latin1')),
    region: header(headers, 'x-amz-bucket-region'),
    retryAfterMs: retryAfterMs({ get: (name) => header(headers, name) }, now),
  };
}

function bodyError(error: unknown, path: string, maxBytes: number): unknown {
  if (error instanceof BodyTooLarge) {
    return new DocumentError(
      'too_large',
      `'${shown(path)}' is larger than ${maxBytes} bytes, which is the limit. Split the document.`,
    );
  }
  if (error instanceof BodyUnreadable) {
    return new DocumentError(
      'corrupt',
      `'${shown(path)}' is stored with a content-encoding that its bytes do not have. Upload it again without one.`,
    );
  }
  // A stall is a matter of time; anything else ended the object before its announced length.
  return codeOf(error) === 'UND_ERR_BODY_TIMEOUT' ? error : changed(path);
}

function changed(path: string): DocumentError {
  return new DocumentError(
    'changed_while_read',
    `'${shown(path)}' came incomplete, or changed while it was read. It is read again.`,
    { transient: true },
  );
}

/** A DocumentError stays what it is, and so does what no connection can fail with: it is a fault of ours. */
function connectionError(error: unknown): unknown {
  const code = codeOf(error);
  if (error instanceof DocumentError || code === '' || code === 'UND_ERR_INVALID_ARG') return error;
  if (/TIMEOUT|ETIMEDOUT/.test(code)) {
    return new DocumentError('timeout', 'The storage did not answer in time. It is tried again.', {
      transient: true,
    });
  }
  return new DocumentError(
    'storage_error',
    `The storage can't be reached (${code.slice(0, 60)}). It is tried again; if it lasts, check AGENTD_STORAGE_URL.`,
    { transient: true },
  );
}

/** Of the error or of the first in its bundle: a socket that tried several addresses fails with one. */
function codeOf(error: unknown): string {
  const all: unknown[] = [error, ...(error instanceof AggregateError ? error.errors : [])];
  for (const each of all) {
    const code = (each as { code?: unknown } | null)?.code;
    if (typeof code === 'string') return code;
  }
  return '';
}

/** Null for what no header can hold. */
function printable(value: string | null | undefined): string | null {
  return value && /^[\x20-\x7e]{1,200}$/.test(value) ? value : null;
}

async function sha256(bytes: Uint8Array): Promise<string> {
  // Not createHash: a hundred megabytes would hold the loop for a tenth of a second.
  return Buffer.from(await crypto.subtle.digest('SHA-256', bytes as Uint8Array<ArrayBuffer>)).toString('hex');
}

function header(headers: IncomingHttpHeaders, name: string): string | null {
  const value = headers[name];
  return (Array.isArray(value) ? value[0] : value) ?? null;
}
