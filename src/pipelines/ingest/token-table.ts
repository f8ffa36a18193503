/**
 * Byte pair encoding of cl100k_base, counting only: how many tokens a piece of text is.
 *
 * The ranks are gpt-tokenizer's; its encoder is not used. This one counts the same (tests compare them) in a fraction of the
 * time, and in n log n where that one is quadratic: 20 KB of one letter took it 23 s.
 */
import ranks from 'gpt-tokenizer/bpeRanks/cl100k_base';

/** Pieces that are remembered, at most: they are chosen by whoever wrote the document. */
const MAX_REMEMBERED = 200_000;
/** Longer pieces are hardly seen twice. UTF-16 units. */
const MAX_REMEMBERED_LENGTH = 64;
/** Merges that are remembered, one for each hash. A power of 2. */
const MERGES = 65_536;
/** Bytes of a piece for which the arrays of the last one are taken again. */
const USUAL = 256;
const NONE = -1;

/** Ranks by their bytes, a character each. */
const rankOf = new Map<string, number>();
/** The bytes of a rank. */
const bytesOf: string[] = [];
/** Tokens of pieces as they stand in the text. */
const known = new Map<string, number>();
for (const [rank, token] of (ranks as readonly (string | readonly number[])[]).entries()) {
  const bytes =
    typeof token === 'string' ? Buffer.from(token, 'utf8').toString('latin1') : String.fromCharCode(...token);
  rankOf.set(bytes, rank);
  bytesOf[rank] = bytes;
  if (typeof token === 'string') known.set(token, 1);
}
const VOCABULARY = known.size;
const rankOfByte = Int32Array.from(
  { length: 256 },
  (_, byte) => rankOf.get(String.fromCharCode(byte)) as number,
);
/** The rank that two neighbours merge to, or NONE: by a hash of their two ranks, three numbers each. */
const merges = new Int32Array(3 * MERGES).fill(NONE);
const remembered = { pieces: 0 };

/**
 * Tokens of a piece that the encoding's pattern would match as a whole.
 *
 * @param piece not empty, without lone surrogates, at most 16,384 units: fewer than 2^16 bytes, whose places share a number with a rank
 */
export function pieceTokens(piece: string): number {
  const count = known.get(piece);
  if (count !== undefined) return count;
  const counted = encode(Buffer.from(piece, 'utf8'), null);
  if (piece.length <= MAX_REMEMBERED_LENGTH) remember(piece, counted);
  return counted;
}

/**
 * Where the tokens of a piece end, in UTF-16 units, without those that end within a character. What stands before such an end has, on
 * its own, the same tokens as there, and so has what stands after it: no merge has crossed it.
 *
 * @returns the ends, ascending, with the tokens up to each, and the tokens of all
 */
export function pieceTokenEnds(piece: string): { ends: number[]; counts: number[]; total: number } {
  const bytes = Buffer.from(piece, 'utf8');
  const starts: number[] = [];
  const total = encode(bytes, starts);
  const ends: number[] = [];
  const counts: number[] = [];
  let unit = 0;
  let byte = 0;
  for (let tokens = 1; tokens <= total; tokens++) {
    const end = starts[tokens] ?? bytes.length;
    while (byte < end) {
      const code = piece.codePointAt(unit) as number;
      byte += code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
      unit += code < 0x10000 ? 1 : 2;
    }
    if (byte !== end) continue;
    ends.push(unit);
    counts.push(tokens);
  }
  return { ends, counts, total };
}

function remember(piece: string, count: number): void {
  if (remembered.pieces >= MAX_REMEMBERED) {
    let place = 0;
    for (const key of known.keys()) if (place++ >= VOCABULARY) known.delete(key);
    remembered.pieces = 0;
  }
  // A slice of a document would keep all of it in memory: the copy is the piece alone.
  known.set(Buffer.from(piece, 'utf16le').toString('utf16le'), count);
  remembered.pieces++;
}

function merged(left: number, right: number): number {
  const hash = Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b);
  const slot = 3 * ((hash ^ (hash >>> 15)) & (MERGES - 1));
  if (merges[slot] === left && merges[slot + 1] === right) return merges[slot + 2] as number;
  const rank = rankOf.get(`${bytesOf[left]}${bytesOf[right]}`) ?? NONE;
  merges[slot] = left;
  merges[slot + 1] = right;
  merges[slot + 2] = rank;
  return rank;
}

/** Merges the pair of the lowest rank, the leftmost of equals, until none is left. Gives the tokens' starts if they are asked for. */
function encode(bytes: Uint8Array, starts: number[] | null): number {
  const length = bytes.length;
  const { rank, next, before, heap } = length <= USUAL ? usual : new Parts(length);
  heap.clear();
  for (let i = 0; i < length; i++) {
    rank[i] = rankOfByte[bytes[i] as number] as number;
    next[i] = i + 1 < length ? i + 1 : NONE;
    before[i] = i - 1;
  }
  const offer = (left: number): void => {
    if (left === NONE) return;
    const right = next[left] as number;
    if (right === NONE) return;
    const result = merged(rank[left] as number, rank[right] as number);
    if (result !== NONE) heap.push(result * 65_536 + left);
  };
  for (let i = 0; i < length - 1; i++) offer(i);
  let count = length;
  for (let entry = heap.pop(); entry !== undefined; entry = heap.pop()) {
    const left = entry % 65_536;
    const right = next[left] as number;
    // One of the two has merged with another since.
    if (rank[left] === NONE || right === NONE) continue;
    const result = merged(rank[left] as number, rank[right] as number);
    if (result !== Math.floor(entry / 65_536)) continue;
    rank[left] = result;
    rank[right] = NONE;
    const after = next[right] as number;
    next[left] = after;
    if (after !== NONE) before[after] = left;
    count--;
    offer(before[left] as number);
    offer(left);
  }
  if (starts) for (let at = 0; at !== NONE; at = next[at] as number) starts.push(at);
  return count;
}

/** The smallest number first. */
class Heap {
  readonly #items: Float64Array;
  #size = 0;

  constructor(length: number) {
    // each merge offers two pairs, and takes one
    this.#items = new Float64Array(3 * length);
  }

  clear(): void {
    this.#size = 0;
  }

  push(item: number): void {
    const items = this.#items;
    let at = this.#size++;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if ((items[parent] as number) <= item) break;
      items[at] = items[parent] as number;
      at = parent;
    }
    items[at] = item;
  }

  pop(): number | undefined {
    if (this.#size === 0) return undefined;
    const items = this.#items;
    const top = items[0];
    const last = items[--this.#size] as number;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= this.#size) break;
      if (child + 1 < this.#size && (items[child + 1] as number) < (items[child] as number)) child++;
      if ((items[child] as number) >= last) break;
      items[at] = items[child] as number;
      at = child;
    }
    items[at] = last;
    return top;
  }
}

/** A piece's tokens while they merge, by where they begin: rank, next and previous one; and the merges to come. */
class Parts {
  readonly rank: Int32Array;
  readonly next: Int32Array;
  readonly before: Int32Array;
  readonly heap: Heap;

  constructor(length: number) {
    this.rank = new Int32Array(length);
    this.next = new Int32Array(length);
    this.before = new Int32Array(length);
    this.heap = new Heap(length);
  }
}

/** Taken for one piece after the other. */
const usual = new Parts(USUAL);
