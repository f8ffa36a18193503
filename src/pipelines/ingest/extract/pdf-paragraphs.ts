/**
 * Paragraphs from a PDF's lines. A PDF does not say where paragraphs end; a line as wide as its neighbours goes on in the next one.
 * Words parted at a line's end become one again.
 */
import { BEYOND_ASCII } from './clean.ts';
import { escapeMarks } from './markdown-writer.ts';

export type PdfPage = {
  readonly lines: readonly string[];
  /** Heading levels by line; empty where the file says nothing of headings. */
  readonly headings: ReadonlyMap<number, number>;
};

/** Narrower than this a column holds no prose, or too little to tell. */
const MIN_WIDTH = 24;
const CJK = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\u3000-\u303f\uff00-\uffef]/u;
const STARTS_ITEM = /^([•◦▪●○■‣⁃∙–—*-]|\(?\d{1,3}[.)]|\(?[a-zA-Z][.)]|[A-Z]\d?:)\s/u;
/** An entry of a table of contents, its leaders made short. */
const IS_CONTENTS = /… ?[\divxlc]+$/;
const ENDS_SENTENCE = /[.!?:;。！？]["'”’»)\]]*$/u;
const STARTS_LOWER = /^["'“‘«([]?\p{Ll}/u;
const ENDS_HYPHEN = /(\p{L}+)[-\u2010]$/u;
const STARTS_WORD = /^\p{Ll}+/u;
/** The same of lines of any characters, and, several times as fast, of lines of ASCII. */
type Pattern = { readonly any: RegExp; readonly ascii: RegExp };
const PARTED: Pattern = { any: /\p{Ll}+(?:-\p{Ll}+)+/gu, ascii: /[a-z]+(?:-[a-z]+)+/g };
const WORD: Pattern = { any: /\p{Ll}+(?:-\p{Ll}+)*/gu, ascii: /[a-z]+(?:-[a-z]+)*/g };

/** @returns the text, and where in it each page begins. `markup` decides whether marks of Markdown in the text are escaped. */
export function joinPages(
  pages: readonly PdfPage[],
  markup: 'markdown' | 'plain',
): { text: string; pageStarts: number[] } {
  const joiner = new PageJoiner(new Vocabulary(pages), markup);
  for (const page of pages) joiner.add(page);
  return { text: joiner.out.join(''), pageStarts: joiner.pageStarts };
}

class PageJoiner {
  readonly out: string[] = [];
  readonly pageStarts: number[] = [];
  readonly #words: Vocabulary;
  readonly #markup: 'markdown' | 'plain';
  #length = 0;
  #before: Line | null = null;
  #isProse = false;

  constructor(words: Vocabulary, markup: 'markdown' | 'plain') {
    this.#words = words;
    this.#markup = markup;
  }

  add({ lines, headings }: PdfPage): void {
    const width = widthOf(lines);
    if (lines.length === 0) this.pageStarts.push(this.#length);
    for (let i = 0; i < lines.length; i++) {
      const text = lines[i] as string;
      const isFull = text.length >= 0.8 * width && width >= MIN_WIDTH;
      this.#addLine({ text, level: headings.get(i) ?? 0, isFull, width }, i === 0);
    }
  }

  #addLine(line: Line, isFirst: boolean): void {
    const { text, level } = line;
    const before = this.#before;
    const glue = before === null ? '' : glueOf(before, line, isFirst, this.#words);
    const isJoined = glue === '' || glue === ' ' || glue === HYPHEN;
    if (before !== null && isJoined) {
      this.#isProse = true;
      if (glue === HYPHEN) this.#length -= cutHyphen(this.out);
      else this.#put(glue);
    } else if (before !== null) {
      const isList = IS_CONTENTS.test(text) && IS_CONTENTS.test(before.text);
      const parted =
        isFirst ||
        this.#isProse ||
        before.level > 0 ||
        level > 0 ||
        ((before.isFull || line.isFull) && !isList);
      this.#put(parted ? '\n\n' : '\n');
      this.#isProse = false;
    }
    if (isFirst) this.pageStarts.push(this.#length);
    if (level > 0) this.#put(`${'#'.repeat(level)} ${text}`);
    else this.#put(this.#markup === 'markdown' && !(isJoined && before) ? escapeLine(text) : text);
    this.#before = line;
  }

  #put(text: string): void {
    this.out.push(text);
    this.#length += text.length;
  }
}

type Line = {
  readonly text: string;
  readonly level: number;
  readonly isFull: boolean;
  readonly width: number;
};

/** Stands for: no blank, and the hyphen goes. */
const HYPHEN = '-';
/** What stands between two lines; null: they are two. */
function glueOf(before: Line, line: Line, isNewPage: boolean, words: Vocabulary): string | null {
  if (before.level > 0 || line.level > 0) return null;
  const first = partedWord(before.text);
  const second = first ? STARTS_WORD.exec(line.text)?.[0] : undefined;
  if (first && second) {
    return words.keepsHyphen(first.toLowerCase(), second.toLowerCase()) ? '' : HYPHEN;
  }
  if (first && before.isFull && /^[\p{L}\p{N}]/u.test(line.text)) return '';
  // PDFium puts what follows a raised mark on a line of its own
  if (/^[,.;:)\]](\s|$)/.test(line.text) && !isNewPage) return '';
  if (STARTS_ITEM.test(line.text) || IS_CONTENTS.test(before.text)) return null;
  const blank = CJK.test(before.text.slice(-1)) || CJK.test(line.text.slice(0, 1)) ? '' : ' ';
  const goesOn = STARTS_LOWER.test(line.text) || CJK.test(line.text.slice(0, 1));
  if (isNewPage) return before.isFull && goesOn && !ENDS_SENTENCE.test(before.text) ? blank : null;
  // a sentence that ends with its line, and a short line: most often the end of a paragraph and a heading
  if (before.isFull && !line.isFull && ENDS_SENTENCE.test(before.text) && !goesOn) return null;
  if (before.isFull) return blank;
  const isLong = before.width >= MIN_WIDTH && before.text.length >= 0.6 * before.width;
  return isLong && STARTS_LOWER.test(line.text) && !ENDS_SENTENCE.test(before.text) ? blank : null;
}

/** The letters before a hyphen at the line's end; null where there is none. The last character is looked at first: the expression tries every word. */
function partedWord(text: string): string | null {
  const last = text.charCodeAt(text.length - 1);
  return last === 0x2d || last === 0x2010 ? (ENDS_HYPHEN.exec(text)?.[1] ?? null) : null;
}

/** The width that most of a page's lines stay within: long ones are prose, and few are longer. */
function widthOf(lines: readonly string[]): number {
  if (lines.length < 3) return 0;
  const widths = lines.map((line) => line.length).sort((a, b) => a - b);
  return widths[Math.floor(0.85 * (widths.length - 1))] ?? 0;
}

/** Words of the whole document, those with hyphens as one: they tell `re-use` from a word that was merely parted. Read when first asked. */
class Vocabulary {
  readonly #pages: readonly PdfPage[];
  #parted: Set<string> | null = null;
  #whole: Set<string> | null = null;

  constructor(pages: readonly PdfPage[]) {
    this.#pages = pages;
  }

  /** Whether the document has the two with a hyphen between, and never as one word. */
  keepsHyphen(first: string, second: string): boolean {
    this.#parted ??= this.#words(PARTED, (line) => line.includes('-'));
    if (!this.#parted.has(`${first}-${second}`)) return false;
    this.#whole ??= this.#words(WORD, () => true);
    return !this.#whole.has(`${first}${second}`);
  }

  #words(pattern: Pattern, isWorthReading: (line: string) => boolean): Set<string> {
    const words = new Set<string>();
    for (const { lines } of this.#pages)
      for (const line of lines) {
        if (!isWorthReading(line)) continue;
        const text = line.toLowerCase();
        const found = text.match(BEYOND_ASCII.test(text) ? pattern.any : pattern.ascii);
        if (found) for (let i = 0; i < found.length; i++) words.add(found[i] as string);
      }
    return words;
  }
}

/** @returns how many characters went. */
function cutHyphen(out: string[]): number {
  const last = out.pop() ?? '';
  out.push(last.slice(0, -1));
  return 1;
}

const escapeLine = (line: string): string => (/^(=+|-+)$/.test(line) ? `\\${line}` : escapeMarks(line));
