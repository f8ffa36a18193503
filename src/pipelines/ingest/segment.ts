/** From blocks to segments: none of them is longer than a chunk may be. */
import { type Block, blocksOf } from './blocks.ts';
import type { ExtractedDocument } from './document.ts';
import { openSection, type Prefixes, ROOT, type Section } from './headings.ts';
import { CUT, isSpace, KIND, Segments, type TableHeader } from './segments.ts';
import { sentenceEnd } from './sentences.ts';
import type { TokenIndex } from './token-index.ts';
import { wordPartEnd } from './word-parts.ts';

/** Below this limit, two short neighbours might not fit into one chunk. */
const JOINS_SMALL_FROM = 512;

/** Cuts a document into segments. Each fits, with the headings above it and its table's header, into `maxTokens`. */
export function segmentsOf(
  document: ExtractedDocument,
  index: TokenIndex,
  prefixes: Prefixes,
  maxTokens: number,
): Segments {
  return new Segmenter(document.text, index, prefixes, maxTokens).run(document.markup);
}

class Segmenter {
  readonly #text: string;
  readonly #index: TokenIndex;
  readonly #prefixes: Prefixes;
  readonly #maxTokens: number;
  readonly #segments: Segments;
  #section: Section = ROOT;
  #pathTokens = 0;
  #afterHeading = false;
  /** Forced cuts that lie ahead, ascending. */
  readonly #cuts: readonly number[];
  #nextCut = 0;

  constructor(text: string, index: TokenIndex, prefixes: Prefixes, maxTokens: number) {
    this.#text = text;
    this.#index = index;
    this.#prefixes = prefixes;
    this.#maxTokens = maxTokens;
    this.#segments = new Segments(text, maxTokens >= JOINS_SMALL_FROM);
    this.#cuts = [...index.cuts];
  }

  run(markup: 'markdown' | 'plain'): Segments {
    this.#segments.enter(ROOT);
    for (const block of blocksOf(this.#text, markup)) {
      this.#block(block);
      this.#afterHeading = block.kind === 'heading';
    }
    return this.#segments;
  }

  #block(block: Block): void {
    const { start, end } = block;
    const first = this.#afterHeading ? CUT.afterHeading : CUT.block;
    switch (block.kind) {
      case 'heading': {
        const { level, title } = block;
        this.#section = openSection(this.#section, { level, title, start });
        this.#segments.enter(this.#section);
        // before the heading's own line stands the path to it, and a long one may lose fewer titles than the path with it
        const above = this.#prefixes.path(this.#section, start).tokens;
        const below = this.#prefixes.path(this.#section, end).tokens;
        this.#pathTokens = Math.max(above, below);
        this.#add(start, end, this.#afterHeading ? CUT.afterHeading : CUT.heading + 6 - level, KIND.heading);
        return;
      }
      case 'paragraph':
        this.#sentences(start, end, first);
        return;
      case 'item':
        this.#sentences(start, end, block.first ? first : CUT.item);
        return;
      case 'code':
        if (this.#fits(start, end)) this.#add(start, end, CUT.block, KIND.code);
        else this.#lines(start, end, CUT.block, CUT.line, KIND.code, null);
        return;
      case 'table': {
        const table = { start, end: block.headerEnd };
        if (this.#fits(start, end)) {
          this.#add(start, end, CUT.block, KIND.table);
          return;
        }
        // what begins with the header row itself is not given it once more
        this.#add(start, block.rowsFrom, CUT.block, KIND.table);
        this.#lines(block.rowsFrom, end, CUT.row, CUT.row, KIND.table, table);
      }
    }
  }

  #sentences(start: number, end: number, first: number): void {
    let rank = first;
    for (let at = start; at < end; ) {
      const next = sentenceEnd(this.#text, at, end);
      this.#add(at, next, rank, KIND.text);
      at = next;
      rank = CUT.sentence;
    }
  }

  #lines(
    start: number,
    end: number,
    first: number,
    other: number,
    kind: number,
    table: TableHeader | null,
  ): void {
    let rank = first;
    for (let at = start; at < end; ) {
      const stop = Math.min(end, lineEnd(this.#text, at));
      this.#add(at, stop, rank, kind, table);
      const isGap = kind === KIND.code && trimmedEnd(this.#text, at, stop) === at;
      rank = at === start ? other : isGap ? CUT.blankLineOfCode : other;
      at = stop + 1;
    }
  }

  /** Tokens that a body may have here: what is over beside the headings and the table's header. */
  #limit(table: TableHeader | null): number {
    const header = table ? this.#prefixes.header(this.#text, table).tokens : 0;
    return this.#maxTokens - header - this.#pathTokens;
  }

  #fits(start: number, end: number): boolean {
    let next = this.#nextCut;
    while ((this.#cuts[next] ?? end) <= start) next++;
    if ((this.#cuts[next] ?? end) < end) return false;
    const stop = trimmedEnd(this.#text, start, end);
    return this.#index.count(trimmedStart(this.#text, start, stop), stop) <= this.#limit(null);
  }

  /** One segment, or as many as are needed: at forced cuts, then at lines, then at words, then within a word. */
  #add(start: number, end: number, rank: number, kind: number, table: TableHeader | null = null): void {
    let at = start;
    let before = rank;
    for (; ; this.#nextCut++) {
      const cut = this.#cuts[this.#nextCut];
      if (cut === undefined || cut >= end) break;
      if (cut <= at) {
        before = CUT.forced;
        continue;
      }
      this.#addWithin(at, cut, before, kind, table);
      at = cut;
      before = CUT.forced;
    }
    this.#addWithin(at, end, before, kind, table);
  }

  #addWithin(from: number, end: number, rank: number, kind: number, table: TableHeader | null): void {
    // A token is at least a byte, and a unit at most three bytes: what is short enough need not be counted.
    const limit = this.#limit(table);
    const stop = trimmedEnd(this.#text, from, end);
    const start = trimmedStart(this.#text, from, stop);
    if (3 * (stop - start) <= limit || this.#index.count(start, stop) <= limit) {
      this.#segments.add(start, end, rank, kind, table);
      return;
    }
    let before = rank;
    for (let at = start; at < stop; ) {
      const lineStop = Math.min(stop, lineEnd(this.#text, at));
      const to = trimmedEnd(this.#text, at, lineStop);
      // without the blanks before it: a word's tokens are others without its blank
      const first = trimmedStart(this.#text, at, to);
      if (this.#index.count(first, to) <= limit) this.#segments.add(first, to, before, kind, table);
      else this.#words(first, to, limit, before, kind, table);
      at = lineStop + 1;
      before = CUT.line;
    }
  }

  /** Groups of words. A word that is longer than the limit is cut. */
  #words(
    start: number,
    end: number,
    limit: number,
    rank: number,
    kind: number,
    table: TableHeader | null,
  ): void {
    const text = this.#text;
    const wanted = Math.max(1, Math.floor(limit / 4));
    let before = rank;
    let from = start;
    let wordEnd = start;
    const flush = (to: number): void => {
      if (to > from) {
        this.#segments.add(from, to, before, kind, table);
        before = CUT.word;
      }
      from = to;
    };
    for (let at = start; at < end; ) {
      while (at < end && isSpace(text.charCodeAt(at))) at++;
      const word = at;
      if (wordEnd <= from) from = word;
      while (at < end && !isSpace(text.charCodeAt(at))) at++;
      if (word === at) break;
      if (3 * (at - from) > wanted && wordEnd > from && this.#index.count(from, at) > wanted) {
        flush(wordEnd);
        from = word;
      }
      if (3 * (at - word) > limit && this.#index.count(word, at) > limit) {
        flush(word);
        this.#word(word, at, limit, before, kind, table);
        before = CUT.word;
        from = at;
      }
      wordEnd = at;
    }
    flush(end);
  }

  /** Parts of a word that does not fit. */
  #word(
    start: number,
    end: number,
    limit: number,
    rank: number,
    kind: number,
    table: TableHeader | null,
  ): void {
    let before = rank;
    for (let at = start; at < end; ) {
      const to = wordPartEnd(this.#text, this.#index, at, end, limit);
      this.#segments.add(at, to, before, kind, table);
      before = CUT.withinWord;
      at = to;
    }
  }
}

function lineEnd(text: string, at: number): number {
  const end = text.indexOf('\n', at);
  return end < 0 ? text.length : end;
}

function trimmedEnd(text: string, start: number, end: number): number {
  let at = end;
  while (at > start && isSpace(text.charCodeAt(at - 1))) at--;
  return at;
}

function trimmedStart(text: string, start: number, end: number): number {
  let at = start;
  while (at < end && isSpace(text.charCodeAt(at))) at++;
  return at;
}
