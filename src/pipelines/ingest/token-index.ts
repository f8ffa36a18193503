/** Tokens of any slice of a text, which is tokenized once. */
import { graphemeStart } from './graphemes.ts';
import { pieceEnd } from './token-pieces.ts';
import { pieceTokenEnds, pieceTokens } from './token-table.ts';

/**
 * Pieces longer than this (a word or a line of dashes without end) are cut, so that nothing costs more than its length. UTF-16 units.
 * A slice that holds such a cut counts as its parts do, not as the whole: chunks end there.
 */
export const MAX_PIECE = 4096;
/** The tokens of pieces up to this length are likely known. UTF-16 units. */
const SHORT = 64;
/** Characters whose tokens are summed up beforehand. A power of 2. */
const BLOCK = 64;
const SHIFT = 6;
/** Pieces that are remembered by their place in the text. A power of 2. */
const RECENT = 4096;

/** Tokens of a text on its own, as the provider counts them; special tokens are plain text. */
export function countTokens(text: string): number {
  let tokens = 0;
  for (let at = 0; at < text.length; ) {
    const end = cutPiece(text, at, pieceEnd(text, at, text.length));
    tokens += pieceTokens(text.slice(at, end));
    at = end;
  }
  return tokens;
}

export class TokenIndex {
  readonly #text: string;
  /** At a piece's last unit its tokens, elsewhere 0. */
  readonly #tokens: Uint16Array;
  /** Where a piece of each hash was last. */
  readonly #recent: Int32Array;
  /** Tokens of the pieces that end before each block. */
  readonly #before: Uint32Array;
  /** Where pieces were cut. */
  readonly cuts: ReadonlySet<number>;

  /**
   * @param text without lone surrogates
   * @param partTokens a piece of more tokens is taken as parts of so many at most; 4 or more
   */
  constructor(text: string, partTokens = Number.POSITIVE_INFINITY) {
    this.#text = text;
    this.#tokens = new Uint16Array(text.length);
    this.#recent = new Int32Array(RECENT).fill(-1);
    this.#before = new Uint32Array((text.length >> SHIFT) + 2);
    const cuts = new Set<number>();
    for (let at = 0; at < text.length; ) {
      const whole = pieceEnd(text, at, text.length);
      const end = cutPiece(text, at, whole);
      if (end === whole) {
        this.#add(at, end, partTokens);
        at = end;
        continue;
      }
      for (let part = at; part < whole; ) {
        const partEnd = cutPiece(text, part, whole);
        this.#add(part, partEnd, partTokens);
        if (partEnd < whole) cuts.add(partEnd);
        part = partEnd;
      }
      at = whole;
    }
    this.cuts = cuts;
    for (let block = 0, at = 0, sum = 0; block < this.#before.length; block++) {
      this.#before[block] = sum;
      for (const end = Math.min(at + BLOCK, text.length); at < end; at++) sum += this.#tokens[at] as number;
    }
  }

  /**
   * Writes a piece down, in parts if it has too many tokens. They end where a token does: then each has, on its own, the tokens that it
   * has in the piece.
   */
  #add(start: number, end: number, partTokens: number): void {
    // a unit has at most three bytes, and a token at least one
    if (3 * (end - start) <= partTokens) {
      this.#tokens[end - 1] = this.#shortTokens(start, end);
      return;
    }
    const piece = this.#text.slice(start, end);
    if (piece.length <= SHORT) {
      const tokens = pieceTokens(piece);
      if (tokens <= partTokens) {
        this.#tokens[end - 1] = tokens;
        return;
      }
    }
    const { ends, counts, total } = pieceTokenEnds(piece);
    let [from, done] = [0, 0];
    while (total - done > partTokens) {
      let last = from;
      // one sign before a letter would make a piece with it: two signs are left at least
      while (
        last < ends.length &&
        (counts[last] as number) - done <= partTokens &&
        (ends[last] as number) + 4 <= piece.length
      )
        last++;
      if (last === from) break;
      const at = this.#wholeEnd(start, ends, from, last - 1);
      this.#tokens[start + (ends[at] as number) - 1] = (counts[at] as number) - done;
      done = counts[at] as number;
      from = at + 1;
    }
    this.#tokens[end - 1] = total - done;
  }

  /** Tokens of a piece, as of an equal one shortly before it, if there was one: the most of a text is pieces that come again and again. */
  #shortTokens(start: number, end: number): number {
    const text = this.#text;
    let hash = end - start;
    for (let i = start; i < end; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
    const slot = (hash ^ (hash >>> 15)) & (RECENT - 1);
    const before = this.#recent[slot] as number;
    let at = 0;
    if (before >= 0) {
      const length = end - start;
      // as one piece there, too: what follows a text decides where it is cut
      const last = length - 1;
      while (
        at < length &&
        text.charCodeAt(before + at) === text.charCodeAt(start + at) &&
        (this.#tokens[before + at] !== 0) === (at === last)
      )
        at++;
      if (at === length) {
        this.#recent[slot] = start;
        return this.#tokens[before + length - 1] as number;
      }
    }
    this.#recent[slot] = start;
    return pieceTokens(text.slice(start, end));
  }

  /** Which of a piece's token ends, the last few of those from `first` to `last`, is not within a grapheme; `last` if none is. */
  #wholeEnd(start: number, ends: readonly number[], first: number, last: number): number {
    for (let at = last; at >= Math.max(first, last - 32); at--) {
      const end = start + (ends[at] as number);
      if (graphemeStart(this.#text, start, end) === end) return at;
    }
    return last;
  }

  /** Whether a piece ends at an offset. */
  isPieceEnd(offset: number): boolean {
    return offset === 0 || this.#tokens[offset - 1] !== 0;
  }

  /** The end of the piece that `at` lies in or begins, at most `end`. */
  nextPieceEnd(at: number, end: number): number {
    let next = at + 1;
    while (next < end && !this.isPieceEnd(next)) next++;
    return next;
  }

  /**
   * Tokens of `text.slice(start, end)` on its own. Exact where the slice ends in a character that is not blank and holds no cut.
   * Its pieces are those of the text, but for the first ones (the blank before the first word is missing) and the last one.
   */
  count(start: number, end: number): number {
    const text = this.#text;
    let tokens = 0;
    let at = start;
    while (at < end && (!this.isPieceEnd(at) || (at === start && this.cuts.has(at)))) {
      const next = cutPiece(text, at, pieceEnd(text, at, end));
      tokens += pieceTokens(text.slice(at, next));
      at = next;
    }
    let last = end;
    while (last > at && !this.isPieceEnd(last)) last--;
    tokens += this.#upTo(last) - this.#upTo(at);
    while (last < end) {
      const next = cutPiece(text, last, pieceEnd(text, last, end));
      tokens += pieceTokens(text.slice(last, next));
      last = next;
    }
    return tokens;
  }

  /** Tokens of the text's pieces that end at `offset` or before. */
  #upTo(offset: number): number {
    const block = offset >> SHIFT;
    let sum = this.#before[block] as number;
    for (let at = block << SHIFT; at < offset; at++) sum += this.#tokens[at] as number;
    return sum;
  }
}

/** The end of a piece, or of its first part if it is too long. */
function cutPiece(text: string, at: number, end: number): number {
  return end - at <= MAX_PIECE ? end : graphemeStart(text, at, at + MAX_PIECE);
}
