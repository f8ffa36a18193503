/**
 * Zip archives, inflated within bounds. Sizes that an archive declares are not believed: bytes are counted as they are inflated,
 * over the whole archive, and inflation stops at the limit. Archives within it are never opened.
 */
import yauzl from 'yauzl';
import type { DocumentLimits } from '../document.ts';
import { corrupt, password, tooLarge } from './failures.ts';

/** More than this many times its size means a bomb, once it is over 32 MB: office files inflate to 5 to 30 times. */
const MAX_RATIO = 200;
const RATIO_FROM_BYTES = 32 * 1024 * 1024;

export interface Archive {
  readonly names: readonly string[];
  has(name: string): boolean;
  /** Bytes of an entry; nothing where there is no such entry. */
  stream(name: string): AsyncIterable<Uint8Array>;
  /** An entry as UTF-8 (or UTF-16 with a byte order mark); null where there is none. */
  text(name: string): Promise<string | null>;
  bytes(name: string): Promise<Uint8Array | null>;
}

/** Of an entry that is held in memory as a whole: a chapter, a list of types. */
const MAX_HELD_BYTES = 64 * 1024 * 1024;
/** Of an entry that is read in passing: its longest text is held. */
const MAX_ENTRY_BYTES = 256 * 1024 * 1024;

type ArchiveLimits = Pick<DocumentLimits, 'maxEntries' | 'maxInflatedBytes'>;

/** Part names are compared without case and without a leading slash, as the formats ask. */
const key = (name: string): string => name.replace(/^\/+/, '').toLowerCase();

/** @throws DocumentError corrupt, password, too_large */
export async function openArchive(
  bytes: Uint8Array,
  limits: ArchiveLimits,
  signal?: AbortSignal,
): Promise<Archive> {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const zip = await yauzl.fromBufferPromise(buffer).catch((error: unknown) => {
    throw corrupt('The archive', error);
  });
  const entries = new Map<string, yauzl.Entry>();
  let seen = 0;
  try {
    for await (const entry of zip.eachEntry()) {
      signal?.throwIfAborted();
      if (++seen > limits.maxEntries)
        throw tooLarge(`The archive has more than ${limits.maxEntries} entries`);
      const name = key(entry.fileName);
      if (!name.endsWith('/') && !entries.has(name)) entries.set(name, entry);
    }
  } catch (error) {
    throw isDocumentError(error) || signal?.aborted ? error : corrupt('The archive', error);
  }

  let inflated = 0;
  async function* stream(name: string): AsyncGenerator<Uint8Array> {
    const entry = entries.get(key(name));
    if (!entry) return;
    if (entry.isEncrypted()) throw password('The archive');
    try {
      const source = await zip.openReadStreamPromise(entry);
      let own = 0;
      for await (const chunk of source) {
        signal?.throwIfAborted();
        inflated += (chunk as Uint8Array).byteLength;
        own += (chunk as Uint8Array).byteLength;
        if (inflated > limits.maxInflatedBytes || own > MAX_ENTRY_BYTES)
          throw tooLarge(
            `The file inflates to more than ${Math.min(limits.maxInflatedBytes, MAX_ENTRY_BYTES)} bytes`,
          );
        if (inflated > RATIO_FROM_BYTES && inflated > MAX_RATIO * bytes.byteLength)
          throw tooLarge(`The file inflates to more than ${MAX_RATIO} times its size`);
        yield chunk as Uint8Array;
      }
    } catch (error) {
      throw isDocumentError(error) || signal?.aborted ? error : corrupt('The archive', error);
    }
  }
  async function readBytes(name: string): Promise<Uint8Array | null> {
    if (!entries.has(key(name))) return null;
    const parts: Uint8Array[] = [];
    let held = 0;
    for await (const part of stream(name)) {
      held += part.byteLength;
      if (held > MAX_HELD_BYTES) throw tooLarge(`A part of the file has more than ${MAX_HELD_BYTES} bytes`);
      parts.push(part);
    }
    return Buffer.concat(parts);
  }
  return {
    names: [...entries.keys()],
    has: (name) => entries.has(key(name)),
    stream,
    bytes: readBytes,
    async text(name) {
      const content = await readBytes(name);
      return content === null ? null : new TextDecoder(encodingOf(content)).decode(content);
    },
  };
}

/** XML in an office archive is UTF-8, or UTF-16 with its mark. */
export const encodingOf = (bytes: Uint8Array): 'utf-8' | 'utf-16le' | 'utf-16be' => {
  if (bytes[0] === 0xff && bytes[1] === 0xfe) return 'utf-16le';
  if (bytes[0] === 0xfe && bytes[1] === 0xff) return 'utf-16be';
  return 'utf-8';
};

const isDocumentError = (error: unknown): boolean => error instanceof Error && error.name === 'DocumentError';
