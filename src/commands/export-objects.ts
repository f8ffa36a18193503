/** The stored files of an export, copied as they come. */
import { createReadStream } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Config } from '../config.ts';
import { FailingBuckets, type StorageFailure } from '../providers/failing-buckets.ts';
import { type ObjectStorage, openStorage } from '../providers/object-storage.ts';
import { CommandError } from './errors.ts';
import { type ExportedFile, ExportFile } from './export-folder.ts';
import { count } from './format.ts';

/** What the manifest says of them. */
export type ExportedObjects = {
  readonly index: ExportedFile | null;
  readonly stored: number;
  readonly missing: number;
  /** How many of the missing ones may be there: the storage did not give them. */
  readonly refused: number;
  readonly bytes: number;
};

const LARGEST_OBJECT_BYTES = 5 * 1024 ** 3;
const OBJECT_MS = 600_000;
/** What no second attempt, key or setting would mend. */
const FOR_GOOD = ['not_found', 'too_large', 'corrupt'];

/**
 * Copies the objects that the exported rows name, by number; objects.jsonl says which is which, and why one is not there. Throws when the
 * storage gives none of them.
 */
export async function exportObjects(
  config: Config,
  folder: string,
  rowsOfMedia: string | null,
  note: (text: string) => void,
): Promise<ExportedObjects> {
  if (rowsOfMedia === null) return { index: null, stored: 0, missing: 0, refused: 0, bytes: 0 };
  await mkdir(join(folder, 'objects'), { mode: 0o700 });
  const index = await ExportFile.create(folder, 'objects.jsonl');
  const storage = openStorage(config.storageUrl, config.storageKeys);
  const failing = new FailingBuckets(storage);
  const total = { stored: 0, missing: 0, refused: 0, bytes: 0 };
  let refusal: StorageFailure | null = null;
  try {
    for await (const line of linesOf(join(folder, rowsOfMedia))) {
      const row = JSON.parse(line) as { id: string; bucket: string; storage_path: string | null };
      if (row.storage_path === null) continue;
      const about = { media_id: row.id, bucket: row.bucket, storage_path: row.storage_path };
      const name = `objects/${String(total.stored + 1).padStart(8, '0')}`;
      const copied =
        failing.givenUp(row.bucket) ??
        (await copyObject(
          storage,
          row.bucket,
          row.storage_path,
          await ExportFile.create(folder, name),
          failing,
        ));
      if ('reason' in copied) {
        total.missing++;
        if (!FOR_GOOD.includes(copied.reason_code)) {
          total.refused++;
          refusal = copied;
        }
        await index.write(`${JSON.stringify({ ...about, file: null, ...copied })}\n`);
        note(`file of media ${row.id} is left out: ${copied.reason}`);
        continue;
      }
      const { path, bytes, sha256 } = copied;
      total.stored++;
      total.bytes += bytes;
      await index.write(`${JSON.stringify({ ...about, file: path, bytes, sha256 })}\n`);
      if (total.stored % 100 === 0) note(`${count(total.stored)} files`);
    }
  } finally {
    await storage.close();
  }
  if (refusal !== null && total.stored === 0) {
    throw new CommandError(
      `The storage gives none of the files (${refusal.reason_code}): ${refusal.reason}`,
      'Mend that, or leave out --with-files.',
    );
  }
  return { index: await index.end(), ...total };
}

/** Copies an object into a file, or takes the file away and says why there is none. Throws where the file can't be written. */
async function copyObject(
  storage: ObjectStorage,
  bucket: string,
  path: string,
  file: ExportFile,
  failing: FailingBuckets,
): Promise<ExportedFile | StorageFailure> {
  let unwritten: { readonly error: unknown } | null = null;
  // what the disk refuses is no failure of the storage's, though it comes as one
  const written = async (work: () => Promise<void>): Promise<void> => {
    if (unwritten !== null) throw unwritten.error;
    try {
      await work();
    } catch (error) {
      unwritten = { error };
      throw error;
    }
  };
  const sink = {
    begin: () => written(() => file.restart()),
    take: (piece: Uint8Array) => written(() => file.write(piece)),
  };
  try {
    const signal = AbortSignal.timeout(OBJECT_MS);
    await storage.readInto(bucket, path, sink, { maxBytes: LARGEST_OBJECT_BYTES, signal });
    failing.answered(bucket);
  } catch (error) {
    await file.drop();
    const disk = unwritten as { readonly error: unknown } | null;
    if (disk !== null) throw disk.error;
    return failing.failed(bucket, error);
  }
  return file.end();
}

const LINE_END = 10;

/** The lines of a file. Not of readline, which takes some characters within a text for the end of a line. */
async function* linesOf(place: string): AsyncGenerator<string> {
  let begun: Buffer[] = [];
  for await (const piece of createReadStream(place) as AsyncIterable<Buffer>) {
    let from = 0;
    for (let end = piece.indexOf(LINE_END); end >= 0; end = piece.indexOf(LINE_END, from)) {
      yield Buffer.concat([...begun, piece.subarray(from, end)]).toString('utf8');
      begun = [];
      from = end + 1;
    }
    if (from < piece.length) begun.push(piece.subarray(from));
  }
}
