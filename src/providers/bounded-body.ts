/** Bodies of answers, whoever sends them: never more memory than the limit, whatever they say or hide. */
import { type Readable, Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createBrotliDecompress, createGunzip } from 'node:zlib';
import type { Dispatcher } from 'undici';

/** Codings that are undone, and so all that is asked for. */
export const ACCEPTED_ENCODINGS = 'gzip, br';

const DRAIN_BYTES = 16 * 1024;
const DRAIN_MS = 1000;
/** The first piece of memory for a body of unknown length, and the largest: each is twice the one before. */
const SLAB_BYTES = { first: 16 * 1024, most: 1024 * 1024 } as const;
/** Copied at once before the loop gets its turn: a few milliseconds. */
const COPY_BYTES = 16 * 1024 * 1024;

/** The body, or what it inflates to, is over its limit. */
export class BodyTooLarge extends Error {
  override readonly name = 'BodyTooLarge';
}

/** The body's coding is not one that was asked for, or the bytes are not of that coding. */
export class BodyUnreadable extends Error {
  override readonly name = 'BodyUnreadable';
}

export type BodyOptions = {
  /** Of the body on the wire and of what it inflates to, each. */
  readonly maxBytes: number;
  /** The headers `content-length` and `content-encoding`; null where there is none. */
  readonly contentLength: string | null;
  readonly contentEncoding: string | null;
  /** What a body over the limit means: an error, or that its beginning is all that is wanted. */
  readonly atLimit: 'fail' | 'cut';
};

/**
 * The whole body, inflated. Destroys the stream whenever it does not read it to its end.
 *
 * Throws BodyTooLarge, BodyUnreadable, and what the stream itself fails with.
 */
export async function readBody(body: Readable, options: BodyOptions): Promise<Buffer> {
  let kept = new Slabs(options.maxBytes, null);
  try {
    await pour(body, options, (announced) => {
      kept = new Slabs(options.maxBytes, announced);
      return (piece) => kept.add(piece);
    });
  } catch (error) {
    if (error instanceof BodyTooLarge && options.atLimit === 'cut') return kept.bytes();
    throw error;
  }
  return kept.bytes();
}

/** The same, piece by piece as it comes: nothing is kept. What `take` throws ends it. */
export async function pourBody(
  body: Readable,
  options: Omit<BodyOptions, 'atLimit'>,
  take: (piece: Buffer) => Promise<void>,
): Promise<void> {
  let total = 0;
  await pour(body, { ...options, atLimit: 'fail' }, () => async (piece) => {
    total += piece.length;
    if (total > options.maxBytes) throw new BodyTooLarge(`over ${options.maxBytes} bytes`);
    await take(piece);
  });
}

/** `begin` is told the length of what will come, where the body says it. */
async function pour(
  body: Readable,
  options: BodyOptions,
  begin: (announced: number | null) => (piece: Buffer) => void | Promise<void>,
): Promise<void> {
  const { maxBytes } = options;
  const announced = /^\d{1,15}$/.test(options.contentLength ?? '') ? Number(options.contentLength) : null;
  if (announced !== null && announced > maxBytes && options.atLimit === 'fail') {
    discard(body);
    throw new BodyTooLarge(`${announced} bytes`);
  }
  const coding = codingOf(options.contentEncoding);
  const inflater = coding === 'gzip' ? createGunzip() : coding === 'br' ? createBrotliDecompress() : null;
  if (inflater === null && coding !== null) {
    discard(body);
    throw new BodyUnreadable(`content-encoding ${coding.slice(0, 40)}`);
  }
  const take = begin(inflater === null ? announced : null);
  const takeAll = async (source: AsyncIterable<Buffer>): Promise<void> => {
    for await (const piece of source) await take(piece);
  };
  try {
    if (inflater === null) await pipeline(body, takeAll);
    else await pipeline(body, limited(maxBytes), inflater, takeAll);
  } catch (error) {
    const code = (error as { code?: unknown }).code;
    if (typeof code === 'string' && /^(?:Z_|ERR_?_?BROTLI|ERR__ERROR)/.test(code)) {
      throw new BodyUnreadable(`the ${coding} stream is broken`);
    }
    throw error;
  }
}

/** Ends the transfer of a body that nobody wants. */
export function discard(body: Readable): void {
  body.on('error', () => {});
  body.destroy();
}

/** As {@link discard}, but reads a short rest that comes soon, so that its connection can be used again. */
export async function drain(body: Dispatcher.ResponseData['body'], signal: AbortSignal): Promise<void> {
  const soon = AbortSignal.any([signal, AbortSignal.timeout(DRAIN_MS)]);
  await body.dump({ limit: DRAIN_BYTES, signal: soon }).catch(() => {});
  // The body has ended, but the client learns a moment later that its connection is free.
  await new Promise((resolve) => setImmediate(resolve));
}

/** Passes so many bytes on. */
function limited(maxBytes: number): Transform {
  let total = 0;
  return new Transform({
    transform(piece: Buffer, _encoding, done) {
      total += piece.length;
      if (total > maxBytes) done(new BodyTooLarge(`over ${maxBytes} bytes`));
      else done(null, piece);
    },
  });
}

/** Null for the plain body. Storage keeps `aws-chunked` of an upload as if it were a coding of the object. */
function codingOf(header: string | null): string | null {
  const codings = (header ?? '')
    .toLowerCase()
    .split(',')
    .map((each) => each.trim())
    .filter((each) => !['', 'identity', 'aws-chunked'].includes(each))
    .map((each) => (each === 'x-gzip' ? 'gzip' : each));
  return codings.length === 0 ? null : codings.join(', ');
}

/**
 * Pieces copied together as they come.
 *
 * Kept as they are, a body sent byte by byte would cost a hundred times its size: each piece is an object, and holds
 * the whole buffer that the socket was read into. With an announced length there is one slab, which the system backs
 * only as far as it is written.
 */
class Slabs {
  readonly #maxBytes: number;
  #slabBytes: number;
  readonly #slabs: Buffer[] = [];
  #used = 0;
  #total = 0;

  constructor(maxBytes: number, announced: number | null) {
    this.#maxBytes = maxBytes;
    this.#slabBytes = announced === null ? SLAB_BYTES.first : Math.max(1, Math.min(announced, maxBytes));
  }

  add(piece: Buffer): void {
    const fits = Math.min(piece.length, this.#maxBytes - this.#total);
    for (let at = 0; at < fits; ) {
      let slab = this.#slabs.at(-1);
      if (slab === undefined || this.#used === slab.length) {
        slab = Buffer.allocUnsafeSlow(this.#slabBytes);
        this.#slabs.push(slab);
        this.#slabBytes = Math.min(2 * slab.length, SLAB_BYTES.most);
        this.#used = 0;
      }
      const copied = piece.copy(slab, this.#used, at, fits);
      this.#used += copied;
      at += copied;
    }
    this.#total += fits;
    if (fits < piece.length) throw new BodyTooLarge(`over ${this.#maxBytes} bytes`);
  }

  async bytes(): Promise<Buffer> {
    const [first] = this.#slabs;
    if (first === undefined) return Buffer.alloc(0);
    if (this.#slabs.length === 1) return first.subarray(0, this.#total);
    const whole = Buffer.allocUnsafeSlow(this.#total);
    let at = 0;
    let turn = COPY_BYTES;
    for (const slab of this.#slabs) {
      at += slab.copy(whole, at, 0, this.#total - at);
      if (at < turn) continue;
      turn += COPY_BYTES;
      await new Promise((resolve) => setImmediate(resolve));
    }
    return whole;
  }
}
