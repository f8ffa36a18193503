/**
 * A folder that is written and then put in its place at once: before that it has another name and no manifest.
 *
 * Its files have names that are made here, never a tenant's.
 */
import { createHash, type Hash, randomUUID } from 'node:crypto';
import { renameSync, rmSync } from 'node:fs';
import { type FileHandle, link, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { CommandError, UsageError } from './errors.ts';
import { packTar } from './tar.ts';

/** A file of an export, as the manifest lists it. */
export type ExportedFile = { readonly path: string; readonly bytes: number; readonly sha256: string };

const BUFFER_BYTES = 256 * 1024;

/** A file that is being written. */
export class ExportFile {
  readonly path: string;
  readonly place: string;
  private readonly handle: FileHandle;
  private hash: Hash = createHash('sha256');
  private bytes = 0;
  private at = 0;
  private waiting: Buffer[] = [];
  private waitingBytes = 0;

  private constructor(path: string, place: string, handle: FileHandle) {
    this.path = path;
    this.place = place;
    this.handle = handle;
  }

  /** Makes the file; for its owner alone. Throws when it is there. */
  static async create(folder: string, path: string): Promise<ExportFile> {
    const place = join(folder, ...path.split('/'));
    return new ExportFile(path, place, await open(place, 'wx', 0o600));
  }

  /** What is given is the caller's again when this is over. */
  async write(data: string | Uint8Array): Promise<void> {
    if (typeof data !== 'string' && data.length >= BUFFER_BYTES) {
      // as it is, without a copy
      await this.flush();
      return this.put(data);
    }
    const bytes = typeof data === 'string' ? Buffer.from(data) : Buffer.from(data);
    this.waiting.push(bytes);
    this.waitingBytes += bytes.length;
    if (this.waitingBytes >= BUFFER_BYTES) await this.flush();
  }

  /** Empties it: what was written so far was not to be. */
  async restart(): Promise<void> {
    this.waiting = [];
    this.waitingBytes = 0;
    this.hash = createHash('sha256');
    this.bytes = 0;
    await this.handle.truncate(0);
    this.at = 0;
  }

  /** Closes it and takes it away. */
  async drop(): Promise<void> {
    await this.handle.close();
    await rm(this.place);
  }

  private async flush(): Promise<void> {
    const all = Buffer.concat(this.waiting);
    this.waiting = [];
    this.waitingBytes = 0;
    await this.put(all);
  }

  private async put(bytes: Uint8Array): Promise<void> {
    this.hash.update(bytes);
    this.bytes += bytes.length;
    for (let done = 0; done < bytes.length; ) {
      const { bytesWritten } = await this.handle.write(bytes, done, bytes.length - done, this.at);
      done += bytesWritten;
      this.at += bytesWritten;
    }
  }

  /** Writes what waits, to the disk. */
  async end(): Promise<ExportedFile> {
    await this.flush();
    await this.handle.sync();
    await this.handle.close();
    return { path: this.path, bytes: this.bytes, sha256: this.hash.digest('hex') };
  }
}

/** Whether the target is an archive. */
export const isArchive = (target: string): boolean => target.endsWith('.tar');

/**
 * Lets `fill` write a folder and puts it at `target`, packed if that ends with .tar. What fails leaves nothing; a process that dies leaves a folder
 * beside the target whose name has `.partial-`. Throws UsageError where the target is there already.
 */
export async function putExport<T>(target: string, fill: (folder: string) => Promise<T>): Promise<T> {
  const place = resolve(target);
  await refuseExisting(place);
  const parent = dirname(place);
  if (!(await stat(parent).catch(() => null))?.isDirectory()) {
    throw new UsageError(`There is no folder ${parent}.`, 'Make it first.');
  }
  const folder = join(parent, `${basename(place)}.partial-${randomUUID().slice(0, 8)}`);
  const archive = `${folder}.tar`;
  const clean = async (): Promise<void> => {
    await rm(folder, { recursive: true, force: true });
    await rm(archive, { force: true });
  };
  // What is still being written meanwhile finds no folder under the old name any more, so nothing comes after what is removed.
  const undo = (signal: NodeJS.Signals): void => {
    const dropped = `${folder}.dropped`;
    try {
      renameSync(folder, dropped);
      rmSync(dropped, { recursive: true, force: true });
      rmSync(archive, { force: true });
    } catch {
      // not made yet, or in its place already
    }
    process.exit(signal === 'SIGINT' ? 130 : 143);
  };
  process.once('SIGINT', undo);
  process.once('SIGTERM', undo);
  try {
    await mkdir(folder, { mode: 0o700 });
    const result = await fill(folder);
    if (isArchive(place)) {
      await packTar(folder, archive, basename(place).slice(0, -'.tar'.length));
      // unlike a rename, it never replaces what has come there meanwhile
      await link(archive, place).catch(occupied(place));
    } else {
      await syncFolder(folder);
      await refuseExisting(place);
      await rename(folder, place).catch(occupied(place));
    }
    await syncFolder(parent);
    return result;
  } finally {
    process.off('SIGINT', undo);
    process.off('SIGTERM', undo);
    await clean();
  }
}

/** Where `.partial-` stands in the names of what exports began and did not end. */
const PARTIAL = /\.partial-[0-9a-f]{8}(\.tar|\.dropped)?$/;

/** What exports have begun beside this target, for it or for others, and left there: they were killed, or are running. */
export async function leftovers(target: string): Promise<string[]> {
  const parent = dirname(resolve(target));
  const names = await readdir(parent).catch(() => []);
  return names.filter((name) => PARTIAL.test(name)).map((name) => join(parent, name));
}

async function refuseExisting(place: string): Promise<void> {
  const there = await stat(place).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null;
    throw new UsageError(`${place} can't be written: ${error.message}`, 'Name another place.');
  });
  if (there !== null)
    throw new UsageError(`${place} is there already.`, 'Name another place; nothing is overwritten.');
}

const occupied =
  (place: string) =>
  (error: NodeJS.ErrnoException): never => {
    throw new CommandError(
      `The export could not be put at ${place}: ${error.code ?? error.message}.`,
      'Name another place on the same disk, and run it again.',
    );
  };

async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r').catch(() => null);
  if (handle === null) return;
  await handle.sync().catch(() => {});
  await handle.close();
}
