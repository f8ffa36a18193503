import { execFileSync, spawnSync } from 'node:child_process';
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { configInForce } from '../../src/commands/doctor-checks.ts';
import { loadConfig } from '../../src/config.ts';
import { DocumentError } from '../../src/providers/document-error.ts';
import { type ObjectStorage, openStorage } from '../../src/providers/object-storage.ts';

const MAX = 1024 * 1024;
const BUCKET = 'media-library';
const live = (): AbortSignal => new AbortController().signal;

let above: string;
let root: string;
let storage: ObjectStorage;

beforeEach(() => {
  above = mkdtempSync(join(tmpdir(), 'agentd storage # % '));
  root = join(above, 'root');
  writeFileSync(join(above, 'secret.txt'), 'hunter2');
  storage = openStorage(pathToFileURL(root).href, {});
});
afterEach(() => rmSync(above, { recursive: true, force: true }));

const read = (path: string, bucket = BUCKET): ReturnType<ObjectStorage['read']> =>
  storage.read(bucket, path, { maxBytes: MAX, signal: live() });
const write = (path: string, bytes: Uint8Array | string, bucket = BUCKET): Promise<void> =>
  storage.write(bucket, path, Buffer.from(bytes), { contentType: null, signal: live() });

async function failure(work: Promise<unknown>): Promise<DocumentError> {
  const error = await work.then(
    () => null,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(DocumentError);
  return error as DocumentError;
}

test('what is written is read again, under every name that a path can have', async () => {
  for (const path of [
    'a.pdf',
    'u/2026/ü 日本語 🙂.txt',
    '...a/..b/c..',
    'q?#%2e%2e+&.txt',
    '-rf',
    'back\\slash',
  ]) {
    expect(await storage.exists(BUCKET, path, { signal: live() })).toBe(false);
    await write(path, `the text of ${path}`);
    expect(await storage.exists(BUCKET, path, { signal: live() })).toBe(true);
    const found = await read(path);
    expect(found.bytes.toString()).toBe(`the text of ${path}`);
    expect(found.contentType).toBeNull();
    await storage.remove(BUCKET, path, { signal: live() });
    await storage.remove(BUCKET, path, { signal: live() });
    expect((await failure(read(path))).code).toBe('not_found');
  }
  expect(readdirSync(join(root, '.incoming'))).toEqual([]);
});

/** A sink that keeps what it is given. */
function keeping() {
  const kept = { begun: 0, bytes: Buffer.alloc(0), longest: 0 };
  return {
    kept,
    begin: async () => {
      kept.begun++;
      kept.bytes = Buffer.alloc(0);
    },
    take: async (piece: Uint8Array) => {
      kept.longest = Math.max(kept.longest, piece.length);
      kept.bytes = Buffer.concat([kept.bytes, piece]);
    },
  };
}

test('an object is read into a sink piece by piece, within the limit', async () => {
  const large = Buffer.from(Array.from({ length: 9_000_000 }, (_, i) => i % 251));
  await write('large', large);
  await write('empty', '');
  const sink = keeping();
  const into = (path: string, maxBytes: number) =>
    storage.readInto(BUCKET, path, sink, { maxBytes, signal: live() });
  await into('large', 10_000_000);
  expect(sink.kept.bytes.equals(large)).toBe(true);
  expect(sink.kept.longest).toBeLessThan(5_000_000);
  await into('empty', 10);
  expect(sink.kept).toMatchObject({ begun: 2, bytes: Buffer.alloc(0) });
  expect((await failure(into('large', 1000))).code).toBe('too_large');
  expect((await failure(into('none', 1000))).code).toBe('not_found');
  expect(sink.kept.begun).toBe(2);
});

test('a new version replaces the old one and has another name of its own', async () => {
  await write('a', 'one');
  const first = await read('a');
  expect((await read('a')).etag).toBe(first.etag);
  await write('a', 'two');
  const second = await read('a');
  expect(second.bytes.toString()).toBe('two');
  expect(second.etag).not.toBe(first.etag);
  const stale = storage.read(BUCKET, 'a', { maxBytes: MAX, signal: live(), etag: first.etag });
  expect(await failure(stale)).toMatchObject({ code: 'changed_while_read', isTransient: true });
});

test('no path and no bucket leads out of the folder', async () => {
  await write('inside', 'x');
  const escapes: [string, string][] = [
    [BUCKET, '../../secret.txt'],
    [BUCKET, 'a/../../../secret.txt'],
    [BUCKET, '..'],
    [BUCKET, join(above, 'secret.txt')],
    [BUCKET, `/${join(above, 'secret.txt')}`],
    [BUCKET, './inside'],
    [BUCKET, 'inside/'],
    [BUCKET, ''],
    [BUCKET, 'inside\0.pdf'],
    [BUCKET, 'x'.repeat(1025)],
    [BUCKET, `${'y'.repeat(300)}/a`],
    ['..', 'secret.txt'],
    ['../..', 'secret.txt'],
    ['.', 'secret.txt'],
    ['.incoming', 'a'],
    ['', 'inside'],
    [`${BUCKET}/..`, 'inside'],
    [above, 'secret.txt'],
  ];
  for (const [bucket, path] of escapes) {
    const error = await failure(read(path, bucket));
    expect([bucket, path, error.code]).toEqual([bucket, path, 'not_found']);
    if (path.length < 1000 && !path.startsWith('y')) {
      expect((await failure(write(path, 'overwritten', bucket))).code).toBe('not_found');
    }
  }
  expect(readFileSync(join(above, 'secret.txt'), 'utf8')).toBe('hunter2');
  expect(readdirSync(above).toSorted()).toEqual(['root', 'secret.txt']);
});

test('links that lead out of the folder are not followed, to read, to write or to remove', async () => {
  await write('inside', 'x');
  mkdirSync(join(above, 'elsewhere'));
  writeFileSync(join(above, 'elsewhere', 'kept'), 'kept');
  // A folder beside the root whose name begins like it.
  mkdirSync(`${root}-beside`);
  writeFileSync(join(`${root}-beside`, 'file'), 'hunter2');
  symlinkSync(join(above, 'secret.txt'), join(root, BUCKET, 'link'));
  symlinkSync(join(`${root}-beside`, 'file'), join(root, BUCKET, 'beside'));
  symlinkSync(join(above, 'elsewhere'), join(root, BUCKET, 'folder'));
  symlinkSync(above, join(root, 'bucket'));
  symlinkSync('nowhere', join(root, BUCKET, 'dangling'));
  symlinkSync('loop', join(root, BUCKET, 'loop'));
  symlinkSync('inside', join(root, BUCKET, 'harmless'));
  for (const [bucket, path] of [
    [BUCKET, 'link'],
    [BUCKET, 'beside'],
    [BUCKET, 'folder/kept'],
    ['bucket', 'secret.txt'],
    [BUCKET, 'dangling'],
    [BUCKET, 'loop'],
  ] as const) {
    expect((await failure(read(path, bucket))).code).toBe('not_found');
  }
  expect((await read('harmless')).bytes.toString()).toBe('x');
  expect((await failure(write('folder/new', 'x'))).code).toBe('not_found');
  expect((await failure(write('folder/deep/new', 'x'))).code).toBe('not_found');
  expect((await failure(storage.remove(BUCKET, 'folder/kept', { signal: live() }))).code).toBe('not_found');
  expect(readdirSync(join(above, 'elsewhere'))).toEqual(['kept']);
  // A link is replaced, not written through.
  await write('link', 'mine');
  expect(readFileSync(join(above, 'secret.txt'), 'utf8')).toBe('hunter2');
});

test('what is no file is not found, and nobody waits for a pipe', async () => {
  await write('folder/file', 'x');
  execFileSync('mkfifo', [join(root, BUCKET, 'pipe')]);
  for (const path of ['folder', 'folder/file/below', 'pipe']) {
    expect((await failure(read(path))).code).toBe('not_found');
    expect(await storage.exists(BUCKET, path, { signal: live() })).toBe(false);
  }
  await storage.remove(BUCKET, 'folder', { signal: live() });
  expect((await read('folder/file')).bytes.toString()).toBe('x');
  for (const path of ['folder', 'folder/file/below']) {
    expect(await failure(write(path, 'y'))).toMatchObject({ code: 'storage_error', isTransient: false });
  }
  expect(readdirSync(join(root, '.incoming'))).toEqual([]);
});

test('a file over the limit is refused before it is read', async () => {
  await write('large', Buffer.alloc(MAX + 1));
  expect(await failure(read('large'))).toMatchObject({ code: 'too_large', isTransient: false });
  await write('exact', Buffer.alloc(MAX));
  expect((await read('exact')).bytes).toHaveLength(MAX);
});

test('a file that changes under the reader is never a mixture', async () => {
  const place = join(root, BUCKET, 'a');
  const size = 64 * 1024 * 1024;
  await write('a', Buffer.alloc(size, 'a'));
  let isReading = true;
  let writes = 0;
  // Somebody who writes in place, as no storage should.
  const writing = (async () => {
    const file = await open(place, 'r+');
    for (let n = 0; isReading; n++) {
      await file.write(Buffer.from(n % 2 ? 'a' : 'b'), 0, 1, (n * 7_919_993) % size);
      writes++;
    }
    await file.close();
  })();
  const results = await Promise.allSettled(
    Array.from({ length: 3 }, () => storage.read(BUCKET, 'a', { maxBytes: size, signal: live() })),
  );
  isReading = false;
  await writing;
  expect(writes).toBeGreaterThan(10);
  for (const result of results) {
    expect(result.status).toBe('rejected');
    expect((result as PromiseRejectedResult).reason).toMatchObject({
      code: 'changed_while_read',
      isTransient: true,
    });
  }
  expect((await storage.read(BUCKET, 'a', { maxBytes: size, signal: live() })).bytes).toHaveLength(size);
});

test('readers see the old version or the new one while writers replace it', async () => {
  const versions = ['a', 'b', 'c'].map((letter) => Buffer.alloc(300_000, letter));
  await write('a', versions[0] as Buffer);
  let isWriting = true;
  const writing = (async () => {
    for (let n = 0; n < 30; n++) await write('a', versions[n % 3] as Buffer);
    isWriting = false;
  })();
  let reads = 0;
  while (isWriting) {
    const { bytes } = await read('a');
    expect(versions.some((version) => version.equals(bytes))).toBe(true);
    reads++;
  }
  await writing;
  expect(reads).toBeGreaterThan(3);
});

test('an abandoned upload goes after a day, one under way stays', async () => {
  await write('a', 'x');
  const [stale, fresh] = ['stale', 'fresh'].map((name) => join(root, '.incoming', name)) as [string, string];
  writeFileSync(stale, 'x');
  writeFileSync(fresh, 'x');
  const dayBefore = Date.now() / 1000 - 25 * 3600;
  utimesSync(stale, dayBefore, dayBefore);
  storage = openStorage(pathToFileURL(root).href, {});
  await write('b', 'x');
  expect(readdirSync(join(root, '.incoming'))).toEqual(['fresh']);
});

test('an abort leaves nothing behind', async () => {
  const stop = new AbortController();
  const why = new Error('drain');
  stop.abort(why);
  const options = { contentType: null, signal: stop.signal, maxBytes: MAX };
  await expect(storage.write(BUCKET, 'a', Buffer.from('x'), options)).rejects.toBe(why);
  await expect(storage.read(BUCKET, 'a', options)).rejects.toBe(why);
  expect(await storage.exists(BUCKET, 'a', { signal: live() })).toBe(false);
  expect(readdirSync(join(root, '.incoming'))).toEqual([]);
});

test('the default storage is below the data directory, whatever its name', async () => {
  const config = loadConfig({ AGENTD_DATA_DIR: join(above, 'data?#%41 ü') });
  const own = openStorage(config.storageUrl, config.storageKeys);
  await own.write(BUCKET, 'a', Buffer.from('x'), { contentType: null, signal: live() });
  expect(readFileSync(join(above, 'data?#%41 ü', 'storage', BUCKET, 'a'), 'utf8')).toBe('x');
});

test('the keys of the storage are configured, and never shown', () => {
  const env = {
    AWS_ACCESS_KEY_ID: 'id-hunter2',
    AWS_SECRET_ACCESS_KEY: 'hunter2',
    AWS_SESSION_TOKEN: 'hunter2',
    AWS_REGION: 'eu-1',
  };
  const config = loadConfig({ ...env, AGENTD_STORAGE_URL: 's3://u:hunter2@h' });
  expect(config.storageKeys).toEqual(env);
  const shown = configInForce(config);
  expect(shown).toMatchObject({
    'AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY': 'set',
    AWS_SESSION_TOKEN: 'set',
    AWS_REGION: 'eu-1',
  });
  expect(JSON.stringify(shown)).not.toContain('hunter2');
  expect(configInForce(loadConfig({ AWS_ACCESS_KEY_ID: 'a' }))).toMatchObject({
    'AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY': 'not set',
  });
});

/** A mount of its own needs Linux and leave to make namespaces. */
const canMount = spawnSync('unshare', ['-rm', 'true']).status === 0;

test.skipIf(!canMount)(
  'a full disk is said to be full, the old version stays, and what was begun is gone',
  () => {
    mkdirSync(root);
    const script = join(above, 'fill.ts');
    writeFileSync(
      script,
      `import { readdirSync } from 'node:fs';
     import { openStorage } from ${JSON.stringify(join(import.meta.dirname, '../../src/providers/object-storage.ts'))};
     const storage = openStorage(${JSON.stringify(pathToFileURL(root).href)}, {});
     const signal = new AbortController().signal;
     await storage.write('b', 'a', Buffer.from('old'), { contentType: null, signal });
     const error = await storage.write('b', 'a', Buffer.alloc(2_000_000), { contentType: null, signal }).catch((e) => e);
     const left = readdirSync(${JSON.stringify(join(root, '.incoming'))});
     const { bytes } = await storage.read('b', 'a', { maxBytes: 9, signal });
     console.log(JSON.stringify({ name: error.name, code: error.code, message: error.message, isTransient: error.isTransient, left, old: bytes.toString() }));`,
    );
    const command = `mount -t tmpfs -o size=1m none "$1" && exec "$2" "$3"`;
    const ended = spawnSync('unshare', ['-rm', 'sh', '-c', command, 'sh', root, process.execPath, script], {
      encoding: 'utf8',
    });
    expect(ended.stderr).toBe('');
    const said = JSON.parse(ended.stdout) as Record<string, unknown>;
    expect(said).toMatchObject({
      name: 'DocumentError',
      code: 'storage_error',
      isTransient: true,
      left: [],
      old: 'old',
    });
    expect(said.message).toContain('full');
  },
);

test.skipIf(process.getuid?.() === 0 && !canMount)('a storage without rights says whose they are', () => {
  mkdirSync(root, { mode: 0o500 });
  const script = join(above, 'rights.ts');
  writeFileSync(
    script,
    `import { openStorage } from ${JSON.stringify(join(import.meta.dirname, '../../src/providers/object-storage.ts'))};
     const storage = openStorage(${JSON.stringify(pathToFileURL(root).href)}, {});
     const signal = new AbortController().signal;
     const error = await storage.write('b', 'a', Buffer.from('x'), { contentType: null, signal }).catch((e) => e);
     console.log(JSON.stringify({ code: error.code, message: error.message }));`,
  );
  // A read-only mount refuses root as well.
  const command = `mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && exec "$2" "$3"`;
  const ended = canMount
    ? spawnSync('unshare', ['-rm', 'sh', '-c', command, 'sh', root, process.execPath, script], {
        encoding: 'utf8',
      })
    : spawnSync(process.execPath, [script], { encoding: 'utf8' });
  const said = JSON.parse(ended.stdout) as Record<string, unknown>;
  expect(said.code).toBe('storage_error');
  expect(said.message).toMatch(/mounted for reading only|may not use the storage/);
  expect(said.message).not.toContain(root);
});
