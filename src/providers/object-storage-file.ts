/** Object storage in a folder: a folder for each bucket. */
import { randomUUID } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, mkdir, open, readdir, realpath, rename, rm, stat } from 'node:fs/promises';
import { dirname, join, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Clock } from '../clock.ts';
import { ConfigError } from '../config.ts';
import { DocumentError } from './document-error.ts';
import { objectPath, shown } from './object-path.ts';
import type { ObjectStorage, ReadOptions } from './object-storage.ts';

/** Uploads under way lie here, on the same file system, so that a rename puts them in place. */
const INCOMING = '.incoming';
/** What a process that died left there goes after this time. */
const STALE_MS = 24 * 3600_000;
const PIECE_BYTES = 4 * 1024 * 1024;
const READ_ATTEMPTS = 3;

export function openFileStorage(url: string, clock: Clock): ObjectStorage {
  const root = rootOf(url);
  let isSwept = false;

  const placeOf = (bucket: string, path: string): string => {
    const parts = objectPath(bucket, path);
    // Windows takes a backslash for a separator and a colon for a drive or a stream.
    const isForeign = sep === '\\' && [bucket, ...parts].some((part) => /[\\:]/.test(part));
    if (isForeign || bucket.startsWith('.')) throw notFound(bucket, path);
    return join(root, bucket, ...parts);
  };

  const guarded = async <T>(bucket: string, path: string, work: () => Promise<T>): Promise<T> => {
    try {
      return await work();
    } catch (error) {
      throw storageFailure(error, notFound(bucket, path));
    }
  };

  /** Throws unless the place, with every link on its way followed, lies under the root. */
  const inside = async (place: string, bucket: string, path: string): Promise<string> => {
    const real = await realpath(place);
    if (!real.startsWith((await realpath(root)).replace(/[/\\]$/, '') + sep)) throw outside(bucket, path);
    return real;
  };

  const openInside = async (place: string, bucket: string, path: string): Promise<FileHandle> => {
    const real = await inside(place, bucket, path);
    // A named pipe would block until somebody writes to it; a link that was put there meanwhile is not followed.
    const { O_RDONLY, O_NONBLOCK = 0, O_NOFOLLOW = 0 } = constants;
    const file = await open(real, O_RDONLY | O_NONBLOCK | O_NOFOLLOW);
    if ((await file.stat()).isFile()) return file;
    await file.close();
    throw notFound(bucket, path);
  };

  /** Its version; null when the file changed meanwhile. `take` says whether it met as many bytes as it was told of. */
  const readOnce = async (
    file: FileHandle,
    maxBytes: number,
    tooLarge: (size: bigint) => DocumentError,
    take: (file: FileHandle, size: number) => Promise<boolean>,
  ): Promise<string | null> => {
    const before = await file.stat({ bigint: true });
    if (before.size > BigInt(maxBytes)) throw tooLarge(before.size);
    if (!(await take(file, Number(before.size)))) return null;
    const after = await file.stat({ bigint: true });
    const version = versionOf(after);
    return version === versionOf(before) ? version : null;
  };

  /** Lets `take` read the file until it was of one version, which is returned. */
  const readWhole = async (
    bucket: string,
    path: string,
    { maxBytes, signal, etag = null }: ReadOptions,
    take: (file: FileHandle, size: number) => Promise<boolean>,
  ): Promise<string> => {
    const place = placeOf(bucket, path);
    const tooLarge = (size: bigint): DocumentError =>
      new DocumentError(
        'too_large',
        `'${shown(path)}' has ${size} bytes; the limit is ${maxBytes}. Split the document.`,
      );
    return guarded(bucket, path, async () => {
      for (let attempt = 1; attempt <= READ_ATTEMPTS; attempt++) {
        signal.throwIfAborted();
        const file = await openInside(place, bucket, path);
        try {
          const version = await readOnce(file, maxBytes, tooLarge, take);
          if (version !== null && (etag === null || etag === version)) return version;
          if (version !== null) break;
        } finally {
          await file.close();
        }
      }
      throw changed(bucket, path);
    });
  };

  const sweep = async (folder: string): Promise<void> => {
    if (isSwept) return;
    isSwept = true;
    for (const name of await readdir(folder)) {
      const place = join(folder, name);
      const about = await stat(place).catch(() => null);
      if (about !== null && clock.now() - about.mtimeMs > STALE_MS) await rm(place, { force: true });
    }
  };

  return {
    async read(bucket, path, options) {
      let bytes = Buffer.alloc(0);
      const etag = await readWhole(bucket, path, options, async (file, size) => {
        bytes = Buffer.allocUnsafeSlow(size);
        return fill(file, bytes, 0, options.signal);
      });
      return { bytes, contentType: null, etag };
    },

    async readInto(bucket, path, sink, options) {
      const piece = Buffer.allocUnsafeSlow(PIECE_BYTES);
      await readWhole(bucket, path, options, async (file, size) => {
        await sink.begin();
        for (let at = 0; at < size; at += piece.length) {
          const part = piece.subarray(0, Math.min(piece.length, size - at));
          if (!(await fill(file, part, at, options.signal))) return false;
          await sink.take(part);
        }
        return true;
      });
    },

    async write(bucket, path, bytes, { signal }) {
      const place = placeOf(bucket, path);
      try {
        const incoming = join(root, INCOMING);
        await mkdir(root, { recursive: true });
        // Apart: with `recursive`, Node says ENOENT where a read-only file system says EROFS.
        await mkdir(incoming).catch(ifThere);
        await sweep(incoming);
        const folders = [bucket, ...objectPath(bucket, path).slice(0, -1)];
        await makeFolders(root, folders, (folder) => inside(folder, bucket, path));
        const temporary = join(incoming, randomUUID());
        try {
          const file = await open(temporary, 'wx', 0o640);
          try {
            for (let at = 0; at < bytes.length; ) {
              signal.throwIfAborted();
              at += (await file.write(bytes, at, Math.min(PIECE_BYTES, bytes.length - at))).bytesWritten;
            }
            await file.sync();
          } finally {
            await file.close();
          }
          signal.throwIfAborted();
          await rename(temporary, place);
        } catch (error) {
          await rm(temporary, { force: true });
          throw error;
        }
        await syncFolder(dirname(place));
      } catch (error) {
        throw storageFailure(error, inTheWay(path));
      }
    },

    async remove(bucket, path, { signal }) {
      const place = placeOf(bucket, path);
      await guarded(bucket, path, async () => {
        signal.throwIfAborted();
        const folder = await inside(dirname(place), bucket, path).catch(absent);
        // A folder is no object.
        if (folder !== null && (await isFile(place))) await rm(place, { force: true });
      });
    },

    async exists(bucket, path, { signal }) {
      const place = placeOf(bucket, path);
      return guarded(bucket, path, async () => {
        signal.throwIfAborted();
        const real = await inside(place, bucket, path).catch(absent);
        return real !== null && isFile(real);
      });
    },

    close: async () => {},
  };
}

/** Reads so many bytes from a place of the file; false: it has fewer. */
async function fill(file: FileHandle, bytes: Buffer, from: number, signal: AbortSignal): Promise<boolean> {
  for (let at = 0; at < bytes.length; ) {
    signal.throwIfAborted();
    const { bytesRead } = await file.read(bytes, at, Math.min(PIECE_BYTES, bytes.length - at), from + at);
    if (bytesRead === 0) return false;
    at += bytesRead;
  }
  return true;
}

function rootOf(url: string): string {
  try {
    return fileURLToPath(url);
  } catch {
    throw new ConfigError([
      'AGENTD_STORAGE_URL must be file:///dir, with three slashes and an absolute path, or s3://host.',
    ]);
  }
}

/** Makes the folders one by one, so that a link among them is noticed before anything is made behind it. */
async function makeFolders(
  root: string,
  parts: readonly string[],
  check: (folder: string) => Promise<unknown>,
): Promise<void> {
  let folder = root;
  for (const part of parts) {
    folder = join(folder, part);
    await mkdir(folder).catch(ifThere);
    await check(folder);
  }
}

function ifThere(error: NodeJS.ErrnoException): void {
  if (error.code !== 'EEXIST') throw error;
}

/** After a crash of the machine the new name is there as well. Not every system can sync a folder. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r').catch(() => null);
  if (handle === null) return;
  await handle.sync().catch(() => {});
  await handle.close();
}

async function isFile(place: string): Promise<boolean> {
  return (await stat(place).catch(absent))?.isFile() ?? false;
}

/** Without the time of the last change of its entry, which a rename over the file moves and its content does not. */
function versionOf(about: { ino: bigint; size: bigint; mtimeNs: bigint }): string {
  return `"${about.ino.toString(36)}-${about.size}-${about.mtimeNs.toString(36)}"`;
}

function absent(error: unknown): null {
  const { code } = error as NodeJS.ErrnoException;
  if (code === 'ENOENT' || code === 'ENOTDIR' || code === 'ENAMETOOLONG') return null;
  throw error;
}

function notFound(bucket: string, path: string): DocumentError {
  return new DocumentError(
    'not_found',
    `There is no file '${shown(path)}' in the bucket '${shown(bucket)}'. Upload it again.`,
  );
}

function inTheWay(path: string): DocumentError {
  return new DocumentError(
    'storage_error',
    `'${shown(path)}' can't be stored: a file or a folder is in the way of its path, or a part of it is too long.`,
  );
}

function outside(bucket: string, path: string): DocumentError {
  return new DocumentError(
    'not_found',
    `'${shown(path)}' of the bucket '${shown(bucket)}' is a link that leads out of the storage. Put the file itself there.`,
  );
}

function changed(bucket: string, path: string): DocumentError {
  return new DocumentError(
    'changed_while_read',
    `'${shown(path)}' of the bucket '${shown(bucket)}' changes while it is read. It is read again later.`,
    { transient: true },
  );
}

/** What the system says, and what somebody can do about it. No message holds the folder's own place. */
function storageFailure(error: unknown, misplaced: DocumentError): unknown {
  const code = (error as NodeJS.ErrnoException | null)?.code;
  if (error instanceof DocumentError || typeof code !== 'string' || !/^E[A-Z0-9]+$/.test(code)) return error;
  if (/^(?:ENOENT|ENOTDIR|EISDIR|ENOTEMPTY|ENAMETOOLONG|ELOOP|ENXIO)$/.test(code)) return misplaced;
  const advice: Record<string, string> = {
    ENOSPC: 'The disk of the storage is full: free some space.',
    EDQUOT: 'The quota of the storage is used up: raise it or free some space.',
    EFBIG: 'The file is larger than the system lets the worker write: raise its limit.',
    EROFS: 'The storage is mounted for reading only: mount it for writing.',
    EACCES: 'The worker may not use the storage: give its user the right to read and write there.',
    EPERM: 'The worker may not use the storage: give its user the right to read and write there.',
  };
  return new DocumentError(
    'storage_error',
    advice[code] ?? `The storage failed (${code}). It is tried again; if it lasts, look at its disk.`,
    { transient: true },
  );
}
