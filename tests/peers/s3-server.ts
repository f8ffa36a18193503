/** An S3 endpoint: buckets and objects in memory, signatures checked to the letter, faults to order. */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { type Keys, signatureFault } from './sigv4.ts';

/**
 * What happens to one request instead of the ordinary answer:
 * - a code of S3's, with its status, perhaps a Retry-After in seconds;
 * - `truncate`: half the body and the end of the connection; `slow`: the headers and half the body, then nothing;
 *   `silent`: no answer; `endless`: a body without length or end; `reset`: the connection is cut before the answer;
 *   `change`: half the body, and from then on the object is `to`.
 */
export type S3Fault =
  | { readonly kind: 'code'; readonly status: number; readonly code: string; readonly retryAfter?: number }
  | { readonly kind: 'truncate' | 'slow' | 'silent' | 'endless' | 'reset' }
  | { readonly kind: 'change'; readonly to: Buffer };

export type S3Object = { bytes: Buffer; contentType: string; contentEncoding?: string };

export type S3Server = {
  readonly port: number;
  /** `127.0.0.1:port` */
  readonly host: string;
  readonly keys: Keys;
  readonly buckets: Map<string, Map<string, S3Object>>;
  /** Buckets that these keys may not touch. */
  readonly forbidden: Set<string>;
  /** Buckets and keys, as `bucket/key`, at which it breaks. */
  readonly broken: Set<string>;
  /** For the next requests, first come first served; null is an ordinary answer. */
  readonly faults: (S3Fault | null)[];
  readonly requests: { readonly method: string; readonly target: string; readonly host: string }[];
  /** Milliseconds that its clock is ahead. */
  ahead: number;
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
};

export type S3ServerOptions = {
  readonly keys?: Partial<Keys>;
  /** Before the bucket, as `/storage/v1/s3`. */
  readonly prefix?: string;
  /** Buckets are the first part of this host's name. */
  readonly virtualHost?: string;
};

export async function startS3Server(options: S3ServerOptions = {}): Promise<S3Server> {
  const keys: Keys = {
    accessKeyId: 'AKIDEXAMPLEAGENTD0001',
    secretAccessKey: 'wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY',
    region: 'eu-test-1',
    ...options.keys,
  };
  const http = createServer((request, response) => {
    request.on('error', () => {});
    response.on('error', () => {});
    void bodyOf(request).then((body) => answer(request, response, body));
  });
  http.listen(0, '127.0.0.1');
  await once(http, 'listening');
  const { port } = http.address() as AddressInfo;

  const answer = (request: IncomingMessage, response: ServerResponse, body: Buffer): unknown => {
    const { method = '', url: target = '' } = request;
    const headers = Object.fromEntries(
      Object.entries(request.headers).map(([name, value]) => [name, String(value)]),
    );
    server.requests.push({ method, target, host: headers.host ?? '' });
    const wrong = signatureFault({ method, target, headers, body }, keys, Date.now() + server.ahead);
    if (wrong !== null) {
      const status = wrong === 'AuthorizationHeaderMalformed' ? 400 : 403;
      return refuse(method, response, status, wrong, headers, keys.region);
    }
    const fault = server.faults.shift() ?? null;
    if (fault?.kind === 'silent') return;
    if (fault?.kind === 'reset') {
      request.socket.destroy();
      return;
    }
    if (fault?.kind === 'code') {
      if (fault.retryAfter !== undefined) response.setHeader('retry-after', fault.retryAfter);
      return refuse(method, response, fault.status, fault.code, headers, keys.region);
    }
    serve(method, place(target, headers.host ?? ''), headers, body, fault, response);
  };

  /** The bucket and the key, decoded; null for what is neither. */
  const place = (target: string, host: string): readonly [string, string] | null => {
    const path = target.split('?')[0] ?? '';
    const prefix = options.prefix ?? '';
    if (!path.startsWith(`${prefix}/`)) return null;
    const rest = path.slice(prefix.length + 1);
    if (options.virtualHost !== undefined) {
      const bucket = host.replace(/:\d+$/, '').replace(new RegExp(`\\.?${options.virtualHost}$`), '');
      return [bucket, decodeURIComponent(rest)];
    }
    const at = rest.indexOf('/');
    return at < 1 ? null : [decodeURIComponent(rest.slice(0, at)), decodeURIComponent(rest.slice(at + 1))];
  };

  const serve = (
    method: string,
    where: readonly [string, string] | null,
    headers: Record<string, string>,
    body: Buffer,
    fault: S3Fault | null,
    response: ServerResponse,
  ): unknown => {
    const bucket = where === null ? undefined : server.buckets.get(where[0]);
    const key = where?.[1] ?? '';
    if (where !== null && server.forbidden.has(where[0]))
      return refuse(method, response, 403, 'AccessDenied', headers, keys.region);
    if (where !== null && (server.broken.has(where[0]) || server.broken.has(`${where[0]}/${key}`)))
      return refuse(method, response, 500, 'InternalError', headers, keys.region);
    if (bucket === undefined) return refuse(method, response, 404, 'NoSuchBucket', headers, keys.region);
    if (method === 'PUT') {
      bucket.set(key, { bytes: body, contentType: headers['content-type'] ?? 'binary/octet-stream' });
      response.writeHead(200, { etag: etagOf(body) }).end();
      return;
    }
    if (method === 'DELETE') {
      bucket.delete(key);
      response.writeHead(204).end();
      return;
    }
    const found = bucket.get(key);
    if (found === undefined) return refuse(method, response, 404, 'NoSuchKey', headers, keys.region);
    const { bytes } = found;
    response.setHeader('content-type', found.contentType);
    response.setHeader('etag', etagOf(bytes));
    if (found.contentEncoding !== undefined) response.setHeader('content-encoding', found.contentEncoding);
    if (fault?.kind === 'endless') {
      const more = (): void => {
        while (!response.destroyed && response.write(Buffer.alloc(64 * 1024, 'x')));
      };
      response.on('drain', more);
      return more();
    }
    response.setHeader('content-length', bytes.length);
    if (method === 'HEAD' || fault === null) {
      response.end(method === 'HEAD' ? undefined : bytes);
      return;
    }
    if (fault.kind === 'change') bucket.set(key, { ...found, bytes: fault.to });
    response.write(bytes.subarray(0, bytes.length / 2), () => {
      if (fault.kind !== 'slow') response.destroy();
    });
  };

  const server: S3Server = {
    port,
    host: `127.0.0.1:${port}`,
    keys,
    buckets: new Map(),
    forbidden: new Set(),
    broken: new Set(),
    faults: [],
    requests: [],
    ahead: 0,
    async close() {
      const closed = once(http, 'close');
      http.close();
      http.closeAllConnections();
      await closed;
    },
    [Symbol.asyncDispose]: () => server.close(),
  };
  return server;
}

/** As AWS does, with everything that it knows of the request in the message. */
function refuse(
  method: string,
  response: ServerResponse,
  status: number,
  code: string,
  headers: Record<string, string>,
  region: string,
): void {
  const xml =
    `<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>${code}</Code><Message>Refused: ${headers.authorization}` +
    `</Message><AWSAccessKeyId>${headers.authorization}</AWSAccessKeyId>` +
    `<Token>${headers['x-amz-security-token']}</Token></Error>`;
  response.writeHead(status, { 'content-type': 'application/xml', 'x-amz-bucket-region': region });
  response.end(method === 'HEAD' ? undefined : xml);
}

async function bodyOf(request: IncomingMessage): Promise<Buffer> {
  const pieces: Buffer[] = [];
  try {
    for await (const piece of request) pieces.push(piece as Buffer);
  } catch {
    // The client went away; there is nobody to answer.
  }
  return Buffer.concat(pieces);
}

function etagOf(bytes: Buffer): string {
  return `"${createHash('md5').update(bytes).digest('hex')}"`;
}
