/** A text's smallest parts, in their order: sentences, rows, lines of code; and how good a place to cut lies before each. */
import type { Section } from './headings.ts';

/** What lies before a segment, from the worst place for a cut to the best. Headings: HEADING + 6 for level 1 to HEADING for 6 and less. */
export const CUT = {
  withinWord: 1,
  word: 2,
  afterHeading: 3,
  line: 4,
  row: 5,
  blankLineOfCode: 6,
  sentence: 8,
  item: 10,
  block: 12,
  heading: 20,
  /** The text must be cut here. */
  forced: 63,
} as const;

export const KIND = { text: 0, table: 1, code: 2, heading: 3 } as const;

/** The header row of a table. */
export type TableHeader = { readonly start: number; readonly end: number };

/** UTF-16 units of text before a cut by which it is found again. */
export const MARK_LENGTH = 48;

/** Where a text was cut before it changed; `cutAfter` makes one. */
export type EarlierCut = {
  /** Offset in the text of then, in UTF-16 units. */
  readonly end: number;
  /** What stood before it, MARK_LENGTH units at most. */
  readonly mark: string;
};

/** The cut after a chunk that ended there. @param text the chunk's, or its last MARK_LENGTH units at least */
export const cutAfter = (end: number, text: string): EarlierCut => ({ end, mark: text.slice(-MARK_LENGTH) });

/** Above every rank with its hash. */
const KEPT = 2 ** 40;

const NO_TABLE = -1;
const EVERYWHERE = -1;
/** Neighbours that are shorter together are one segment, so that 20 MB of `a. a. a.` are not millions of them. UTF-16 units. */
const SMALL = 48;

export class Segments {
  readonly #text: string;
  readonly #joinsSmall: boolean;
  #starts = new Uint32Array(1024);
  #ends = new Uint32Array(1024);
  #kinds = new Uint8Array(1024);
  #ranks = new Uint8Array(1024);
  #hashes = new Uint32Array(1024);
  #sections = new Int32Array(1024);
  #tables = new Int32Array(1024);
  /** Segments before which the text was cut before it changed. */
  #kept: ReadonlySet<number> | null = null;
  readonly #sectionList: Section[] = [];
  readonly #tableList: TableHeader[] = [];
  #length = 0;

  /** @param joinsSmall whether short neighbours may become one: two of them must be far below the limit */
  constructor(text: string, joinsSmall: boolean) {
    this.#text = text;
    this.#joinsSmall = joinsSmall;
  }

  get length(): number {
    return this.#length;
  }

  /** What follows lies in this section. */
  enter(section: Section): void {
    this.#sectionList.push(section);
  }

  /** Adds text up to `end`; blanks at both ends are left out. Nothing is added where nothing is left. */
  add(from: number, to: number, rank: number, kind: number, table: TableHeader | null = null): void {
    const text = this.#text;
    let [start, end] = [from, to];
    while (start < end && isSpace(text.charCodeAt(start))) start++;
    while (end > start && isSpace(text.charCodeAt(end - 1))) end--;
    if (start >= end) return;
    const section = this.#sectionList.length - 1;
    if (table && this.#tableList.at(-1) !== table) this.#tableList.push(table);
    const tableIndex = table ? this.#tableList.length - 1 : NO_TABLE;
    const last = this.#length - 1;
    if (
      this.#joinsSmall &&
      last >= 0 &&
      rank <= CUT.block &&
      end - (this.#starts[last] as number) <= SMALL &&
      kind !== KIND.heading &&
      this.#kinds[last] === kind &&
      this.#sections[last] === section &&
      this.#tables[last] === tableIndex
    ) {
      this.#ends[last] = end;
      return;
    }
    if (this.#length === this.#starts.length) this.#grow();
    const at = this.#length++;
    this.#starts[at] = start;
    this.#ends[at] = end;
    this.#ranks[at] = rank;
    this.#kinds[at] = kind;
    this.#hashes[at] =
      last < 0 ? 0 : hashBefore(text, this.#starts[last] as number, this.#ends[last] as number);
    this.#sections[at] = section;
    this.#tables[at] = tableIndex;
  }

  start(at: number): number {
    return this.#starts[at] as number;
  }
  end(at: number): number {
    return this.#ends[at] as number;
  }
  /** How good the place before it is for a cut. */
  rank(at: number): number {
    return this.#ranks[at] as number;
  }
  kind(at: number): number {
    return this.#kinds[at] as number;
  }
  section(at: number): Section {
    return this.#sectionList[this.#sections[at] as number] as Section;
  }
  table(at: number): TableHeader | null {
    const table = this.#tables[at] as number;
    return table === NO_TABLE ? null : (this.#tableList[table] as TableHeader);
  }

  /**
   * Ranks, and between equal ones the hash of what stands before the cut: an order that depends on nothing but the text nearby, so
   * that a change somewhere else does not move the cut. Cuts of before that are kept come before all others.
   */
  priority(at: number): number {
    const own = (this.#ranks[at] as number) * 2 ** 32 + (this.#hashes[at] as number);
    return this.isKept(at) ? KEPT + own : own;
  }

  /** Whether the text was cut before it earlier, and so is again. */
  isKept(at: number): boolean {
    return this.#kept?.has(at) === true;
  }

  /**
   * Finds the cuts of before in the text, all segments being there: as far from where they were as the one before them, or behind it where their
   * mark stands and nowhere else, or, where it stands in several places, as far as the next one that was found. A cut that would part a heading
   * from what is now below it is none.
   */
  keepCuts(cuts: readonly EarlierCut[]): void {
    const kept = new Set<number>();
    const textEnd = this.#length === 0 ? 0 : (this.#ends[this.#length - 1] as number);
    let places: ReadonlyMap<string, number> | null = null;
    let shift = 0;
    let last = 0;
    let pending: EarlierCut[] = [];
    const keep = (place: number): void => {
      if (this.#kinds[place - 1] !== KIND.heading) kept.add(place);
      last = Math.max(last, place);
    };
    for (const cut of cuts) {
      if (cut.end + shift === textEnd) continue;
      let place = this.#follower(cut, shift);
      if (place === null) {
        places ??= this.#places(new Set(cuts.map(({ mark }) => mark)));
        place = cut.mark.length < MARK_LENGTH ? EVERYWHERE : (places.get(cut.mark) ?? EVERYWHERE);
        if (place <= last) {
          pending.push(cut);
          continue;
        }
        shift = (this.#ends[place - 1] as number) - cut.end;
      }
      for (const earlier of pending) {
        const found = this.#follower(earlier, shift);
        if (found !== null) keep(found);
      }
      pending = [];
      keep(place);
    }
    this.#kept = kept;
  }

  /** The segment after a cut that is so far from where it was; null where there is none. */
  #follower({ end, mark }: EarlierCut, shift: number): number | null {
    return this.#text.endsWith(mark, end + shift) ? this.#after(end + shift) : null;
  }

  /** The segment that follows the one that ends there; null where none does. */
  #after(end: number): number | null {
    let [low, high] = [0, this.#length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#ends[middle] as number) < end) low = middle + 1;
      else high = middle;
    }
    return this.#ends[low] === end && low + 1 < this.#length ? low + 1 : null;
  }

  /** Which segment follows each of the marks, and EVERYWHERE where several do. */
  #places(marks: ReadonlySet<string>): ReadonlyMap<string, number> {
    const places = new Map<string, number>();
    for (let at = 1; at < this.#length; at++) {
      const end = this.#ends[at - 1] as number;
      const mark = this.#text.slice(Math.max(0, end - MARK_LENGTH), end);
      if (marks.has(mark)) places.set(mark, places.has(mark) ? EVERYWHERE : at);
    }
    return places;
  }

  #grow(): void {
    const size = 2 * this.#starts.length;
    this.#starts = copied(new Uint32Array(size), this.#starts);
    this.#ends = copied(new Uint32Array(size), this.#ends);
    this.#ranks = copied(new Uint8Array(size), this.#ranks);
    this.#kinds = copied(new Uint8Array(size), this.#kinds);
    this.#hashes = copied(new Uint32Array(size), this.#hashes);
    this.#sections = copied(new Int32Array(size), this.#sections);
    this.#tables = copied(new Int32Array(size), this.#tables);
  }
}

function copied<A extends Uint8Array | Uint32Array | Int32Array>(into: A, from: A): A {
  into.set(from);
  return into;
}

/** What trim() takes away, and the next line that only Unicode calls a blank. */
export function isSpace(unit: number): boolean {
  if (unit < 128) return unit === 32 || (unit >= 9 && unit <= 13);
  if (unit < 0x1680) return unit === 0xa0 || unit === 0x85;
  return /\s/.test(String.fromCharCode(unit));
}

/** FNV-1a over the last units of a segment, with its bits mixed. */
function hashBefore(text: string, start: number, end: number): number {
  let hash = 0x811c9dc5;
  for (let at = Math.max(start, end - 48); at < end; at++)
    hash = Math.imul(hash ^ text.charCodeAt(at), 0x01000193);
  hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d);
  hash = Math.imul(hash ^ (hash >>> 12), 0x297a2d39);
  return (hash ^ (hash >>> 15)) >>> 0;
}
