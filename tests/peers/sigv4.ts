/**
 * AWS Signature Version 4 as a server checks it, written from "Authenticating Requests: Using the Authorization Header"
 * of the S3 reference, and apart from any client.
 */
import { createHash, createHmac, timingSafeEqual } from 'node:crypto';

export type SignedRequest = {
  readonly method: string;
  /** As it came on the wire, with its query. */
  readonly target: string;
  /** Names in small letters. */
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Buffer;
};

export type Keys = {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string | undefined;
  readonly region: string;
};

/** Why the request is refused, as S3 names it; null when its signature is right. */
export function signatureFault(request: SignedRequest, keys: Keys, now: number): string | null {
  const { headers } = request;
  const form =
    /^AWS4-HMAC-SHA256 Credential=([^/,\s]+)\/(\d{8})\/([^/,]+)\/([^/,]+)\/aws4_request, ?SignedHeaders=([a-z0-9;-]+), ?Signature=([0-9a-f]{64})$/;
  const [, keyId, date, region, service, names = '', signature = ''] =
    form.exec(headers.authorization ?? '') ?? [];
  if (keyId === undefined)
    return headers.authorization === undefined ? 'AccessDenied' : 'AuthorizationHeaderMalformed';
  if (keyId !== keys.accessKeyId) return 'InvalidAccessKeyId';
  if (region !== keys.region || service !== 's3') return 'AuthorizationHeaderMalformed';
  const at = headers['x-amz-date'] ?? '';
  const time = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/.exec(at);
  if (time === null || !at.startsWith(date ?? '-')) return 'AccessDenied';
  const [, year, month, day, hour, minute, second] = time.map(Number);
  const sent = Date.UTC(year ?? 0, (month ?? 0) - 1, day, hour, minute, second);
  if (Math.abs(now - sent) > 15 * 60_000) return 'RequestTimeTooSkewed';
  if (keys.sessionToken !== headers['x-amz-security-token']) return 'InvalidToken';

  const signed = names.split(';');
  if (signed.join() !== signed.toSorted().join()) return 'SignatureDoesNotMatch';
  const required = ['host', ...Object.keys(headers).filter((name) => name.startsWith('x-amz-'))];
  if (!required.every((name) => signed.includes(name))) return 'AccessDenied';
  const hash = headers['x-amz-content-sha256'];
  if (hash === undefined) return 'MissingSecurityHeader';
  if (hash !== 'UNSIGNED-PAYLOAD' && hash !== sha256(request.body)) return 'XAmzContentSHA256Mismatch';

  const expected = signatureOf(request, signed, keys, at);
  return timingSafeEqual(Buffer.from(expected), Buffer.from(signature)) ? null : 'SignatureDoesNotMatch';
}

/** The signature that the request must have, in hex. */
export function signatureOf(
  request: SignedRequest,
  signed: readonly string[],
  keys: Keys,
  at: string,
): string {
  const [path = '', query = ''] = request.target.split('?', 2);
  const canonical = [
    request.method,
    encode(decodeURIComponent(path), true),
    query
      .split('&')
      .filter(Boolean)
      .map((pair) => pair.split('=', 2).map((each) => encode(decodeURIComponent(each ?? ''), false)))
      .map(([name, value = '']) => `${name}=${value}`)
      .toSorted()
      .join('&'),
    ...signed.map((name) => `${name}:${(request.headers[name] ?? '').trim().replace(/ +/g, ' ')}`),
    '',
    signed.join(';'),
    request.headers['x-amz-content-sha256'] ?? '',
  ].join('\n');
  const day = at.slice(0, 8);
  const scope = `${day}/${keys.region}/s3/aws4_request`;
  const text = ['AWS4-HMAC-SHA256', at, scope, sha256(Buffer.from(canonical))].join('\n');
  let key: Buffer = Buffer.from(`AWS4${keys.secretAccessKey}`);
  for (const part of [day, keys.region, 's3', 'aws4_request']) key = hmac(key, part);
  return hmac(key, text).toString('hex');
}

/** UriEncode() of the reference: bytes of UTF-8, all but the unreserved characters, in capital hex. */
function encode(text: string, keepsSlash: boolean): string {
  return [...Buffer.from(text)]
    .map((byte) => {
      const character = String.fromCharCode(byte);
      if (/[A-Za-z0-9\-._~]/.test(character) || (keepsSlash && character === '/')) return character;
      return `%${byte.toString(16).toUpperCase().padStart(2, '0')}`;
    })
    .join('');
}

function sha256(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}

function hmac(key: Buffer, text: string): Buffer {
  return createHmac('sha256', key).update(text).digest();
}
