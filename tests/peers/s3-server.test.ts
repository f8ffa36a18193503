import { expect, test } from 'vitest';
import { signatureFault, signatureOf } from './sigv4.ts';

const keys = {
  accessKeyId: 'AKIAIOSFODNN7EXAMPLE',
  secretAccessKey: 'wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY',
  region: 'us-east-1',
};
const at = '20130524T000000Z';
const empty = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855';

// "Examples: Signature Calculations" of the S3 reference.
test('the peer signs the published examples as AWS does', () => {
  const get = {
    method: 'GET',
    target: '/test.txt',
    headers: {
      host: 'examplebucket.s3.amazonaws.com',
      range: 'bytes=0-9',
      'x-amz-content-sha256': empty,
      'x-amz-date': at,
    },
    body: Buffer.alloc(0),
  };
  expect(signatureOf(get, ['host', 'range', 'x-amz-content-sha256', 'x-amz-date'], keys, at)).toBe(
    'f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41',
  );
  const put = {
    method: 'PUT',
    target: '/test%24file.text',
    headers: {
      date: 'Fri, 24 May 2013 00:00:00 GMT',
      host: 'examplebucket.s3.amazonaws.com',
      'x-amz-content-sha256': '44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072',
      'x-amz-date': at,
      'x-amz-storage-class': 'REDUCED_REDUNDANCY',
    },
    body: Buffer.from('Welcome to Amazon S3.'),
  };
  const signed = ['date', 'host', 'x-amz-content-sha256', 'x-amz-date', 'x-amz-storage-class'];
  expect(signatureOf(put, signed, keys, at)).toBe(
    '98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd',
  );
  const list = {
    method: 'GET',
    target: '/?max-keys=2&prefix=J',
    headers: { host: 'examplebucket.s3.amazonaws.com', 'x-amz-content-sha256': empty, 'x-amz-date': at },
    body: Buffer.alloc(0),
  };
  expect(signatureOf(list, ['host', 'x-amz-content-sha256', 'x-amz-date'], keys, at)).toBe(
    '34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7',
  );
});

test('the peer refuses whatever is not signed as it was sent', () => {
  const signed = ['host', 'x-amz-content-sha256', 'x-amz-date'];
  const request = {
    method: 'GET',
    target: '/bucket/file.txt',
    headers: { host: 'h', 'x-amz-content-sha256': empty, 'x-amz-date': at } as Record<string, string>,
    body: Buffer.alloc(0),
  };
  const signature = signatureOf(request, signed, keys, at);
  const authorization = `AWS4-HMAC-SHA256 Credential=${keys.accessKeyId}/20130524/us-east-1/s3/aws4_request, SignedHeaders=${signed.join(';')}, Signature=${signature}`;
  const good = { ...request, headers: { ...request.headers, authorization } as Record<string, string> };
  const now = Date.UTC(2013, 4, 24);
  expect(signatureFault(good, keys, now)).toBeNull();
  const faults: [string, typeof good, number?][] = [
    ['AccessDenied', request],
    ['SignatureDoesNotMatch', { ...good, method: 'PUT' }],
    ['SignatureDoesNotMatch', { ...good, target: '/bucket/other.txt' }],
    ['SignatureDoesNotMatch', { ...good, target: '/bucket/file.txt?acl' }],
    ['SignatureDoesNotMatch', { ...good, headers: { ...good.headers, host: 'other' } }],
    ['XAmzContentSHA256Mismatch', { ...good, body: Buffer.from('x') }],
    ['AccessDenied', { ...good, headers: { ...good.headers, 'x-amz-acl': 'public-read' } }],
    ['InvalidToken', { ...good, headers: { ...good.headers, 'x-amz-security-token': 't' } }],
    ['RequestTimeTooSkewed', good, now + 16 * 60_000],
    ['AuthorizationHeaderMalformed', { ...good, headers: { ...good.headers, authorization: 'Bearer x' } }],
    [
      'SignatureDoesNotMatch',
      { ...good, headers: { ...good.headers, authorization: authorization.replace(/.{4}$/, '0000') } },
    ],
  ];
  for (const [code, faulty, time] of faults) expect(signatureFault(faulty, keys, time ?? now)).toBe(code);
});
