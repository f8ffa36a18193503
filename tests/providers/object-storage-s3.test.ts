import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { gzipSync } from 'node:zlib';
import { Agent } from 'undici';
import { expect, test } from 'vitest';
import { ConfigError } from '../../src/config.ts';
import { DocumentError } from '../../src/providers/document-error.ts';
import { openStorage, type StorageOptions } from '../../src/providers/object-storage.ts';
import { s3Address } from '../../src/providers/s3-address.ts';
import { type S3Server, type S3ServerOptions, startS3Server } from '../peers/s3-server.ts';

const MAX = 1024 * 1024;
const live = (): AbortSignal => new AbortController().signal;

async function withStorage(
  use: (
    storage: ReturnType<typeof openStorage>,
    server: S3Server,
    objects: Map<string, { bytes: Buffer; contentType: string }>,
  ) => Promise<void>,
  options: StorageOptions & {
    server?: S3ServerOptions;
    env?: Record<string, string | undefined>;
    url?: (server: S3Server) => string;
  } = {},
): Promise<void> {
  await using server = await startS3Server(options.server);
  const objects = new Map<string, { bytes: Buffer; contentType: string }>();
  server.buckets.set('media-library', objects);
  const { keys } = server;
  const url =
    options.url?.(server) ??
    `s3://${server.host}${options.server?.prefix ?? ''}?scheme=http&region=${keys.region}`;
  const env = {
    AWS_ACCESS_KEY_ID: keys.accessKeyId,
    AWS_SECRET_ACCESS_KEY: keys.secretAccessKey,
    AWS_SESSION_TOKEN: keys.sessionToken,
    ...options.env,
  };
  const storage = openStorage(url, env, { backoffMs: 1, ...options });
  try {
    await use(storage, server, objects);
  } finally {
    await storage.close();
  }
}

async function failure(work: Promise<unknown>): Promise<DocumentError> {
  const error = await work.then(
    () => null,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(DocumentError);
  return error as DocumentError;
}

const PATHS = [
  'a.pdf',
  'user/2026/report (final) [1]!.pdf',
  'sp ace/ü/日本語/🙂.txt',
  "plus+and&equals=q?mark#hash%20percent%/it's*.txt",
  'semi;colon,comma@at:colon$dollar~tilde`tick"quote<angle>|pipe\\back^caret{brace}.txt',
  '...three/..dots/dots..',
];

test('what is written is read again, under every name that a path can have', async () => {
  await withStorage(async (storage, _server, objects) => {
    for (const path of PATHS) {
      const bytes = Buffer.from(`the text of ${path}`);
      expect(await storage.exists('media-library', path, { signal: live() })).toBe(false);
      await storage.write('media-library', path, bytes, { contentType: 'text/plain', signal: live() });
      expect(objects.get(path)?.bytes.equals(bytes)).toBe(true);
      expect(await storage.exists('media-library', path, { signal: live() })).toBe(true);
      const read = await storage.read('media-library', path, { maxBytes: MAX, signal: live() });
      expect(read.bytes.equals(bytes)).toBe(true);
      expect(read.contentType).toBe('text/plain');
      expect(read.etag).toMatch(/^"[0-9a-f]{32}"$/);
      await storage.remove('media-library', path, { signal: live() });
      await storage.remove('media-library', path, { signal: live() });
      expect(objects.has(path)).toBe(false);
    }
    expect(objects.size).toBe(0);
  });
});

test('an empty and a large object come whole', async () => {
  await withStorage(async (storage, _server, objects) => {
    const large = Buffer.alloc(20 * 1024 * 1024 + 7, 'abc');
    objects.set('large', { bytes: large, contentType: 'application/pdf' });
    objects.set('empty', { bytes: Buffer.alloc(0), contentType: 'text/plain' });
    const read = await storage.read('media-library', 'large', { maxBytes: large.length, signal: live() });
    expect(read.bytes.equals(large)).toBe(true);
    expect(
      (await storage.read('media-library', 'empty', { maxBytes: 0, signal: live() })).bytes,
    ).toHaveLength(0);
  });
});

test('a temporary session’s token is signed and sent', async () => {
  await withStorage(
    async (storage, _server, objects) => {
      objects.set('a', { bytes: Buffer.from('x'), contentType: 'text/plain' });
      expect(
        (await storage.read('media-library', 'a', { maxBytes: 9, signal: live() })).bytes.toString(),
      ).toBe('x');
    },
    { server: { keys: { sessionToken: 'FwoGZXIvYXdzEXAMPLE//////////token+=' } } },
  );
});

test('a prefix stands before the bucket, as in Supabase’s endpoint', async () => {
  await withStorage(
    async (storage, server, objects) => {
      objects.set('u/a.txt', { bytes: Buffer.from('x'), contentType: 'text/plain' });
      await storage.read('media-library', 'u/a.txt', { maxBytes: 9, signal: live() });
      expect(server.requests[0]?.target).toBe('/storage/v1/s3/media-library/u/a.txt');
    },
    { server: { prefix: '/storage/v1/s3' } },
  );
});

test('with virtual addressing the bucket is part of the signed host', async () => {
  const agent = new Agent({
    connect: { lookup: (_host, _options, done) => done(null, [{ address: '127.0.0.1', family: 4 }]) },
  });
  try {
    await withStorage(
      async (storage, server, objects) => {
        objects.set('a', { bytes: Buffer.from('x'), contentType: 'text/plain' });
        await storage.read('media-library', 'a', { maxBytes: 9, signal: live() });
        expect(server.requests[0]).toMatchObject({
          target: '/a',
          host: `media-library.s3.test:${server.port}`,
        });
        const refused = await failure(storage.read('Media_Library', 'a', { maxBytes: 9, signal: live() }));
        expect(refused.code).toBe('not_found');
      },
      {
        dispatcher: agent,
        server: { virtualHost: 's3.test' },
        url: (server) => `s3://s3.test:${server.port}?scheme=http&region=eu-test-1&addressing=virtual`,
      },
    );
  } finally {
    await agent.destroy();
  }
});

test('AWS is addressed by host, others by path, and the region is found where the host names it', () => {
  const at = (url: string, bucket = 'bucket', region?: string): [string, string] => {
    const address = s3Address(url, region);
    return [address.urlOf(bucket, 'k/f.txt').href, address.region];
  };
  expect(at('s3://s3.eu-central-1.amazonaws.com')).toEqual([
    'https://bucket.s3.eu-central-1.amazonaws.com/k/f.txt',
    'eu-central-1',
  ]);
  expect(at('s3://s3.amazonaws.com', 'bucket.with.dots')).toEqual([
    'https://s3.amazonaws.com/bucket.with.dots/k/f.txt',
    'us-east-1',
  ]);
  expect(at('s3://abc.r2.cloudflarestorage.com')).toEqual([
    'https://abc.r2.cloudflarestorage.com/bucket/k/f.txt',
    'auto',
  ]);
  expect(at('s3://ref.supabase.co/storage/v1/s3?region=eu-west-1', 'Media Library')).toEqual([
    'https://ref.supabase.co/storage/v1/s3/Media%20Library/k/f.txt',
    'eu-west-1',
  ]);
  expect(at('s3://minio:9000/?scheme=http', 'bucket', 'local')).toEqual([
    'http://minio:9000/bucket/k/f.txt',
    'local',
  ]);
});

test('a storage URL that can’t be used says why, and repeats no key', () => {
  for (const url of [
    's3://',
    's3:///bucket',
    's3://AKIA:hunter2@host',
    's3://host?scheme=ftp&secret=hunter2',
    's3://host?addressing=hunter2',
    's3://host?region=a%20hunter2',
    'file://host/dir/hunter2',
    'file:relative/../hunter2?x#',
  ]) {
    let thrown: unknown;
    try {
      openStorage(url, {});
    } catch (error) {
      thrown = error;
    }
    if (url.startsWith('file:relative')) continue;
    expect(thrown, url).toBeInstanceOf(ConfigError);
    expect(String(thrown)).not.toContain('hunter2');
  }
});

test('no path leads out of its bucket: nothing is asked of the storage', async () => {
  await withStorage(async (storage, server) => {
    server.buckets.set('secret', new Map([['key', { bytes: Buffer.from('s'), contentType: 'text/plain' }]]));
    const escapes: [string, string][] = [
      ['media-library', '../secret/key'],
      ['media-library', 'a/../../secret/key'],
      ['media-library', './key'],
      ['media-library', '/secret/key'],
      ['media-library', 'a//b'],
      ['media-library', 'a/'],
      ['media-library', ''],
      ['media-library', 'a\0b'],
      ['media-library', 'a\nb'],
      ['media-library', '\ud800'],
      ['media-library', 'x'.repeat(1025)],
      ['..', 'secret/key'],
      ['.', 'key'],
      ['media-library/../secret', 'key'],
      ['a\\b', 'key'],
      ['', 'key'],
      ['b'.repeat(101), 'key'],
    ];
    for (const [bucket, path] of escapes) {
      const read = await failure(storage.read(bucket, path, { maxBytes: MAX, signal: live() }));
      expect([bucket, path, read.code]).toEqual([bucket, path, 'not_found']);
      for (const work of [
        () => storage.write(bucket, path, Buffer.from('x'), { contentType: null, signal: live() }),
        () => storage.exists(bucket, path, { signal: live() }),
      ]) {
        expect((await failure(work())).code).toBe('not_found');
      }
    }
    // Encoded dots are letters of the name, not a way up.
    const encoded = await failure(
      storage.read('media-library', '%2e%2e/secret/key', { maxBytes: MAX, signal: live() }),
    );
    expect(encoded.code).toBe('not_found');
    expect(server.requests.map(({ target }) => target)).toEqual(['/media-library/%252e%252e/secret/key']);
  });
});

test('what is missing is not found, and says whether it is the file or the bucket', async () => {
  await withStorage(async (storage) => {
    const file = await failure(storage.read('media-library', 'no.pdf', { maxBytes: MAX, signal: live() }));
    expect(file).toMatchObject({ code: 'not_found', isTransient: false });
    expect(file.message).toContain("no file 'no.pdf'");
    const bucket = await failure(storage.read('no-bucket', 'a', { maxBytes: MAX, signal: live() }));
    expect(bucket).toMatchObject({ code: 'not_found', isTransient: false });
    expect(bucket.message).toContain("no bucket 'no-bucket'");
    const written = await failure(
      storage.write('no-bucket', 'a', Buffer.from('x'), { contentType: null, signal: live() }),
    );
    expect(written.code).toBe('not_found');
    await storage.remove('no-bucket', 'a', { signal: live() });
    expect(await storage.exists('no-bucket', 'a', { signal: live() })).toBe(false);
  });
});

test('refused keys are named as such, once, and never repeated', async () => {
  const wrong: Record<string, string | undefined>[] = [
    { AWS_SECRET_ACCESS_KEY: 'not-the-secret-hunter2' },
    { AWS_ACCESS_KEY_ID: 'AKIDWRONGHUNTER2' },
    { AWS_SESSION_TOKEN: 'expired-hunter2' },
  ];
  for (const env of wrong) {
    await withStorage(
      async (storage, server) => {
        for (const work of [
          () => storage.read('media-library', 'a', { maxBytes: MAX, signal: live() }),
          () => storage.write('media-library', 'a', Buffer.from('x'), { contentType: null, signal: live() }),
          () => storage.exists('media-library', 'a', { signal: live() }),
          () => storage.remove('media-library', 'a', { signal: live() }),
        ]) {
          const error = await failure(work());
          expect(error).toMatchObject({ code: 'credentials_refused', isTransient: false });
          expect(error.cause).toBeUndefined();
          expect(error.message).not.toMatch(/hunter2|AKID|wJalr|Signature=/i);
        }
        expect(server.requests).toHaveLength(4);
      },
      { env },
    );
  }
});

test('without keys nothing is sent', async () => {
  for (const env of [{ AWS_ACCESS_KEY_ID: undefined }, { AWS_SECRET_ACCESS_KEY: ' ' }]) {
    await withStorage(
      async (storage, server) => {
        const error = await failure(storage.read('media-library', 'a', { maxBytes: MAX, signal: live() }));
        expect(error).toMatchObject({ code: 'no_credentials', isTransient: false });
        expect(server.requests).toHaveLength(0);
      },
      { env },
    );
  }
});

test('another region and a wrong clock say what to set', async () => {
  await withStorage(
    async (storage) => {
      const error = await failure(storage.read('media-library', 'a', { maxBytes: MAX, signal: live() }));
      expect(error.code).toBe('storage_error');
      expect(error.message).toContain('it is eu-test-1');
    },
    { url: (server) => `s3://${server.host}?scheme=http&region=us-east-9` },
  );
  await withStorage(async (storage, server) => {
    server.ahead = 3600_000;
    const error = await failure(storage.read('media-library', 'a', { maxBytes: MAX, signal: live() }));
    expect(error.code).toBe('storage_error');
    expect(error.message).toContain('clock');
  });
});

test('a busy storage is asked again, and given up after four attempts as a passing failure', async () => {
  await withStorage(async (storage, server, objects) => {
    objects.set('a', { bytes: Buffer.from('x'), contentType: 'text/plain' });
    server.faults.push(
      { kind: 'code', status: 503, code: 'SlowDown' },
      { kind: 'reset' },
      { kind: 'code', status: 500, code: 'InternalError' },
    );
    expect((await storage.read('media-library', 'a', { maxBytes: 9, signal: live() })).bytes.toString()).toBe(
      'x',
    );
    expect(server.requests).toHaveLength(4);
    for (let n = 0; n < 4; n++) server.faults.push({ kind: 'code', status: 503, code: 'SlowDown' });
    const error = await failure(
      storage.write('media-library', 'a', Buffer.from('y'), { contentType: null, signal: live() }),
    );
    expect(error).toMatchObject({ code: 'storage_error', isTransient: true });
    expect(error.message).toContain('SlowDown');
    expect(server.requests).toHaveLength(8);
    // Longer than anybody should wait with a document in hand.
    server.faults.push({ kind: 'code', status: 503, code: 'SlowDown', retryAfter: 60 });
    const later = await failure(storage.exists('media-library', 'a', { signal: live() }));
    expect(later).toMatchObject({ isTransient: true, retryAfterMs: 60_000 });
    expect(server.requests).toHaveLength(9);
  });
});

test('an object over the limit is refused, announced or endless', async () => {
  await withStorage(async (storage, server, objects) => {
    objects.set('a', { bytes: Buffer.alloc(MAX + 1), contentType: 'text/plain' });
    const announced = await failure(storage.read('media-library', 'a', { maxBytes: MAX, signal: live() }));
    expect(announced).toMatchObject({ code: 'too_large', isTransient: false });
    server.faults.push({ kind: 'endless' });
    const endless = await failure(storage.read('media-library', 'a', { maxBytes: MAX, signal: live() }));
    expect(endless.code).toBe('too_large');
    expect(server.requests).toHaveLength(2);
  });
});

test('a truncated object is never taken for the whole one', async () => {
  await withStorage(async (storage, server, objects) => {
    objects.set('a', { bytes: Buffer.alloc(300_000, 'a'), contentType: 'text/plain' });
    server.faults.push({ kind: 'truncate' });
    const read = await storage.read('media-library', 'a', { maxBytes: MAX, signal: live() });
    expect(read.bytes).toHaveLength(300_000);
    for (let n = 0; n < 4; n++) server.faults.push({ kind: 'truncate' });
    const error = await failure(storage.read('media-library', 'a', { maxBytes: MAX, signal: live() }));
    expect(error).toMatchObject({ code: 'changed_while_read', isTransient: true });
  });
});

test('an object that changes while it is read comes whole in one version, or not at all', async () => {
  await withStorage(async (storage, server, objects) => {
    const old = Buffer.alloc(300_000, 'a');
    const fresh = Buffer.alloc(300_000, 'b');
    objects.set('a', { bytes: old, contentType: 'text/plain' });
    const { etag } = await storage.read('media-library', 'a', { maxBytes: MAX, signal: live() });
    server.faults.push({ kind: 'change', to: fresh });
    const read = await storage.read('media-library', 'a', { maxBytes: MAX, signal: live() });
    expect(read.bytes.equals(fresh)).toBe(true);
    expect(read.etag).not.toBe(etag);
    const error = await failure(storage.read('media-library', 'a', { maxBytes: MAX, signal: live(), etag }));
    expect(error).toMatchObject({ code: 'changed_while_read', isTransient: true });
    const same = await storage.read('media-library', 'a', { maxBytes: MAX, signal: live(), etag: read.etag });
    expect(same.bytes.equals(fresh)).toBe(true);
  });
});

test('an object stored with a coding is inflated within the limit', async () => {
  await withStorage(async (storage, _server, objects) => {
    const put = (key: string, bytes: Buffer, contentEncoding: string): unknown =>
      objects.set(key, { bytes, contentType: 'text/html', contentEncoding } as never);
    put('page', gzipSync('<p>hello</p>'), 'gzip');
    put('chunked', Buffer.from('plain'), 'aws-chunked');
    put('bomb', gzipSync(Buffer.alloc(50 * MAX)), 'gzip');
    put('liar', Buffer.from('not gzip'), 'gzip');
    const read = (key: string) => storage.read('media-library', key, { maxBytes: MAX, signal: live() });
    expect((await read('page')).bytes.toString()).toBe('<p>hello</p>');
    expect((await read('chunked')).bytes.toString()).toBe('plain');
    expect((await failure(read('bomb'))).code).toBe('too_large');
    expect((await failure(read('liar'))).code).toBe('corrupt');
  });
});

test('an object is read into a sink as it comes; an attempt that was cut short begins again', async () => {
  await withStorage(async (storage, server, objects) => {
    const bytes = Buffer.from(Array.from({ length: 400_000 }, (_, i) => i % 251));
    objects.set('a', { bytes, contentType: 'text/plain' });
    objects.set('page', {
      bytes: gzipSync('<p>hello</p>'),
      contentType: 'text/html',
      contentEncoding: 'gzip',
    } as never);
    objects.set('bomb', {
      bytes: gzipSync(Buffer.alloc(50 * MAX)),
      contentType: 'text/html',
      contentEncoding: 'gzip',
    } as never);
    let begun = 0;
    let taken: Buffer[] = [];
    const sink = {
      begin: async () => {
        begun++;
        taken = [];
      },
      take: async (piece: Uint8Array) => {
        taken.push(Buffer.from(piece));
      },
    };
    const into = (path: string) =>
      storage.readInto('media-library', path, sink, { maxBytes: MAX, signal: live() });
    server.faults.push({ kind: 'truncate' });
    await into('a');
    expect([begun, Buffer.concat(taken).equals(bytes)]).toEqual([2, true]);
    await into('page');
    expect(Buffer.concat(taken).toString()).toBe('<p>hello</p>');
    expect((await failure(into('bomb'))).code).toBe('too_large');
    expect((await failure(into('none'))).code).toBe('not_found');
    server.faults.push({ kind: 'endless' });
    expect((await failure(into('a'))).code).toBe('too_large');
    // a sink that fails ends it
    sink.take = () => Promise.reject(new Error('the disk is full'));
    await expect(into('a')).rejects.toThrow();
  });
});

test('a silent storage and one that stalls in the middle end by time, an abort at once', async () => {
  await withStorage(
    async (storage, server, objects) => {
      objects.set('a', { bytes: Buffer.alloc(300_000), contentType: 'text/plain' });
      for (let n = 0; n < 4; n++) server.faults.push({ kind: n % 2 === 0 ? 'silent' : 'slow' });
      const error = await failure(storage.read('media-library', 'a', { maxBytes: MAX, signal: live() }));
      expect(error).toMatchObject({ code: 'timeout', isTransient: true });
      expect(server.requests).toHaveLength(4);
    },
    { timeouts: { stallMs: 100 } },
  );
  await withStorage(
    async (storage, server) => {
      server.buckets
        .get('media-library')
        ?.set('a', { bytes: Buffer.alloc(300_000), contentType: 'text/plain' });
      for (let n = 0; n < 8; n++) server.faults.push({ kind: n < 4 ? 'silent' : 'slow' });
      for (const work of [
        () => storage.exists('media-library', 'a', { signal: live() }),
        () => storage.read('media-library', 'a', { maxBytes: MAX, signal: live() }),
      ]) {
        expect(await failure(work())).toMatchObject({ code: 'timeout', isTransient: true });
      }
      expect(server.faults).toEqual([]);
    },
    { timeouts: { totalMs: 200 } },
  );
  await withStorage(async (storage, server) => {
    server.faults.push({ kind: 'silent' });
    const stop = new AbortController();
    const reading = storage.read('media-library', 'a', { maxBytes: MAX, signal: stop.signal });
    const why = new Error('drain');
    await expect
      .poll(() => server.requests.length, { timeout: 15_000 })
      .toBe(1)
      .then(() => stop.abort(why));
    await expect(reading).rejects.toBe(why);
    expect(server.requests).toHaveLength(1);
  });
});

test('a storage that is not there, or is no S3, is a storage error', async () => {
  const env = { AWS_ACCESS_KEY_ID: 'a', AWS_SECRET_ACCESS_KEY: 'hunter2' };
  const other = createServer((_request, response) =>
    response.writeHead(418).end('<html>teapot hunter2</html>'),
  );
  other.listen(0, '127.0.0.1');
  await once(other, 'listening');
  const { port } = other.address() as AddressInfo;
  const storage = openStorage(`s3://127.0.0.1:${port}?scheme=http`, env, { backoffMs: 1 });
  const strange = await failure(storage.read('b', 'a', { maxBytes: MAX, signal: live() }));
  expect(strange).toMatchObject({ code: 'storage_error', isTransient: false });
  other.closeAllConnections();
  await new Promise((resolve) => other.close(resolve));
  const gone = await failure(storage.read('b', 'a', { maxBytes: MAX, signal: live() }));
  expect(gone).toMatchObject({ code: 'storage_error', isTransient: true });
  expect(`${strange.message}${gone.message}`).not.toContain('hunter2');
  await storage.close();
});
