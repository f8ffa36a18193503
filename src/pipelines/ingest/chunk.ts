/**
 * Cuts a document into passages for embedding, in one pass of linear time.
 *
 *     text ── blocks ── segments ── atoms ── chunks
 *
 * Blocks are headings, paragraphs, items, tables and code. Segments are their sentences, rows and lines, and never exceed a chunk.
 * Atoms are the segments that stay together wherever the document changes otherwise (see atoms.ts). A chunk is as many
 * neighbouring atoms as fit, after the last sentences of the chunk before it.
 *
 * Tokens are those of the whole embedded text, exactly: a prefix ends with its line, no piece of the tokenizer crosses the end of a line
 * into the next one's first character, and so prefix and body can be counted apart.
 */
import { atomsOf } from './atoms.ts';
import type { DocumentChunk, ExtractedDocument } from './document.ts';
import { commonSection, headingPath, Prefixes } from './headings.ts';
import { segmentsOf } from './segment.ts';
import { CUT, type EarlierCut, KIND, type Segments } from './segments.ts';
import { TokenIndex } from './token-index.ts';

/** Tokens of the smallest limit that is obeyed. */
export const MIN_CHUNK_TOKENS = 16;

export type ChunkOptions = {
  /** Tokens of `embedText` at most. */
  readonly maxTokens: number;
  /** Tokens of the sentences that a chunk repeats from the one before it, at most; more than half of `maxTokens` is taken as half. */
  readonly overlapTokens: number;
  /**
   * Where the document was cut before it changed. Where such a place is found in the new text it is cut there again, unless what lies on its
   * two sides fits into one chunk now: a change makes new chunks of what lies between two cuts, and of little else. Absent for a document
   * that is new.
   */
  readonly earlierCuts?: readonly EarlierCut[];
};

/**
 * The chunks of a document in their order; none if it is blank.
 *
 * The same document and options, earlier cuts among them, give the same chunks. Every character that is not blank lies in one of them; bodies
 * neither begin nor end in a blank. Text that follows a heading is never in a chunk with sentences repeated from before it.
 *
 * @throws RangeError for a limit below MIN_CHUNK_TOKENS or an overlap below 0
 */
export function chunkDocument(document: ExtractedDocument, options: ChunkOptions): DocumentChunk[] {
  const { maxTokens, overlapTokens } = options;
  if (!(maxTokens >= MIN_CHUNK_TOKENS))
    throw new RangeError(`maxTokens must be at least ${MIN_CHUNK_TOKENS}.`);
  if (!(overlapTokens >= 0)) throw new RangeError('overlapTokens must not be negative.');
  const index = new TokenIndex(document.text, Math.max(4, maxTokens >> 2));
  const prefixes = new Prefixes(maxTokens);
  const segments = segmentsOf(document, index, prefixes, maxTokens);
  if (options.earlierCuts) segments.keepCuts(options.earlierCuts);
  return new Packer(document, index, prefixes, segments, {
    maxTokens,
    overlapTokens: Math.min(overlapTokens, maxTokens >> 1),
  }).run();
}

class Packer {
  readonly #document: ExtractedDocument;
  readonly #index: TokenIndex;
  readonly #prefixes: Prefixes;
  readonly #segments: Segments;
  readonly #options: ChunkOptions;
  readonly #chunks: DocumentChunk[] = [];
  #page = 0;

  constructor(
    document: ExtractedDocument,
    index: TokenIndex,
    prefixes: Prefixes,
    segments: Segments,
    options: ChunkOptions,
  ) {
    this.#document = document;
    this.#index = index;
    this.#prefixes = prefixes;
    this.#segments = segments;
    this.#options = options;
  }

  run(): DocumentChunk[] {
    const segments = this.#segments;
    for (let from = 0; from < segments.length; ) {
      let to = from + 1;
      while (to < segments.length && segments.rank(to) !== CUT.forced) to++;
      this.#pack(from, to);
      from = to;
    }
    return this.#chunks;
  }

  /** Chunks of segments between which no cut is forced. */
  #pack(from: number, to: number): void {
    const { maxTokens, overlapTokens } = this.#options;
    const segments = this.#segments;
    const atoms = atomsOf(
      from,
      to,
      (segment) => segments.priority(segment),
      (start, end, cut) => {
        if (segments.isKept(cut)) return false;
        // An atom leaves room for the overlap, unless it is a block that is to stay whole, or a chunk of before.
        const isKept = segments.isKept(start) && (end === to || segments.isKept(end));
        const room = start === from || isKept ? 0 : overlapTokens;
        return this.#tokens(start, end) + room <= maxTokens;
      },
    );
    let start = from;
    let before = from;
    for (let atom = 0; atom < atoms.length; ) {
      let end = atoms[atom++] as number;
      const first = this.#overlapStart(before, start, end);
      while (atom < atoms.length && this.#mayGrow(first, end, atoms[atom] as number))
        end = atoms[atom++] as number;
      this.#emit(first, end);
      before = start;
      start = end;
    }
  }

  /** The first of the sentences before segment `start` that are repeated. Not those of a whole chunk: one of them at least is left out. */
  #overlapStart(before: number, start: number, end: number): number {
    const segments = this.#segments;
    let first = start;
    if (segments.kind(start) !== KIND.text || segments.rank(start) >= CUT.heading) return first;
    while (
      first - 1 > before &&
      segments.kind(first - 1) === KIND.text &&
      this.#index.count(segments.start(first - 1), segments.end(start - 1)) <= this.#options.overlapTokens
    )
      first--;
    while (first < start && this.#tokens(first, end) > this.#options.maxTokens) first++;
    return first;
  }

  /** Whether the atom from `end` to `next` joins the chunk before it. A section does not begin at the end of one that is long enough. */
  #mayGrow(start: number, end: number, next: number): boolean {
    const { maxTokens } = this.#options;
    if (this.#segments.rank(end) >= CUT.heading && this.#tokens(start, end) >= maxTokens / 4) return false;
    return this.#tokens(start, next) <= maxTokens;
  }

  #body(start: number, end: number): number {
    return this.#index.count(this.#segments.start(start), this.#segments.end(end - 1));
  }

  /** Tokens of what would be embedded for the segments from `start` to `end`. */
  #tokens(start: number, end: number): number {
    const { path, header } = this.#prefix(start, end);
    return path.tokens + header.tokens + this.#body(start, end);
  }

  #prefix(start: number, end: number) {
    const segments = this.#segments;
    // Headings at its beginning, as many as there are levels, are above what follows them and not only above themselves.
    let first = start;
    while (first < Math.min(end - 1, start + 6) && segments.kind(first) === KIND.heading) first++;
    const section = commonSection(segments.section(first), segments.section(end - 1));
    const path = this.#prefixes.path(section, segments.start(start));
    const table = segments.table(start);
    const header = table ? this.#prefixes.header(this.#document.text, table) : { text: '', tokens: 0 };
    return { section, path, header };
  }

  #emit(start: number, end: number): void {
    const { text, pageStarts } = this.#document;
    const from = this.#segments.start(start);
    const to = this.#segments.end(end - 1);
    const { section, path, header } = this.#prefix(start, end);
    const content = text.slice(from, to);
    this.#chunks.push({
      index: this.#chunks.length,
      start: from,
      end: to,
      content,
      page: pageStarts && pageStarts.length > 0 ? this.#pageAt(pageStarts, from) : null,
      headingPath: headingPath(section),
      embedText: `${path.text}${header.text}${content}`,
      tokens: path.tokens + header.tokens + this.#body(start, end),
    });
  }

  /** Pages only go on: chunks begin one after the other. */
  #pageAt(pageStarts: readonly number[], offset: number): number {
    while ((pageStarts[this.#page] ?? Number.POSITIVE_INFINITY) <= offset) this.#page++;
    return Math.max(1, this.#page);
  }
}
