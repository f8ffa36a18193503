/** Writes a document as Markdown, block by block, and remembers where its pages begin. */
import type { DocumentFormat, ExtractedDocument } from '../document.ts';
import { cleanCharacters } from './clean.ts';
import { tooLarge } from './failures.ts';

export class MarkdownWriter {
  readonly #maxCharacters: number;
  readonly #parts: string[] = [];
  readonly #pageStarts: number[] = [];
  #length = 0;
  #lastWasItem = false;
  /** The last number of the open ordered lists, by depth. */
  readonly #counts: number[] = [];

  constructor(maxCharacters: number) {
    this.#maxCharacters = maxCharacters;
  }

  /** Characters written so far. */
  get length(): number {
    return this.#length;
  }

  /** What follows belongs to the next page. */
  page(): void {
    if (this.#length > 0 && this.#pageStarts.at(-1) !== this.#length) this.#put('\n\n');
    this.#lastWasItem = false;
    this.#pageStarts.push(this.#length);
  }

  /** Levels beyond six are six. */
  heading(level: number, text: string): void {
    const title = oneLine(text);
    if (title !== '') this.#block(`${'#'.repeat(Math.min(Math.max(level, 1), 6))} ${title}`);
  }

  /** Newlines within it stay. */
  paragraph(text: string): void {
    const clean = tidyLines(text);
    if (clean !== '') this.#block(escapeMarks(clean));
  }

  /** Ordered items are numbered from 1, anew after anything that is no item. @param depth 0 for the outermost list. */
  item(depth: number, isOrdered: boolean, text: string): void {
    const clean = tidyLines(text);
    if (clean === '') return;
    const level = Math.min(depth, 8);
    const indent = '  '.repeat(level);
    if (!this.#lastWasItem) this.#counts.length = 0;
    this.#counts.length = Math.min(this.#counts.length, level + 1);
    const count = (this.#counts[level] ?? 0) + 1;
    if (isOrdered) this.#counts[level] = count;
    const marker = isOrdered ? `${count}.` : '-';
    const body = clean.replaceAll('\n', `\n${indent}  `);
    this.#block(`${indent}${marker} ${body}`, true);
  }

  /** Fenced, by a fence longer than any within. */
  code(text: string, language = ''): void {
    const clean = cleanCharacters(text).replace(/^\n+|\s+$/g, '');
    if (clean.trim() === '') return;
    let longest = 2;
    for (const [run] of clean.matchAll(/`{3,}/g)) longest = Math.max(longest, run.length);
    const fence = '`'.repeat(longest + 1);
    this.#block(`${fence}${language}\n${clean}\n${fence}`);
  }

  /** The first row is the header. Columns and rows without any text are left out. */
  table(rows: readonly (readonly string[])[]): void {
    const table = new TableLines(rows);
    if (table.columns === 0) return;
    if (table.columns === 1) {
      for (const line of table.rows()) this.paragraph(line[0] ?? '');
      return;
    }
    this.#separate(false);
    let isFirst = true;
    for (const row of table.rows()) {
      if (!isFirst) this.#put('\n');
      this.#put(pipes(row));
      if (isFirst) this.#put(`\n${pipes(Array.from({ length: table.columns }, () => '---'))}`);
      isFirst = false;
    }
  }

  finish(format: DocumentFormat, title: string | null): ExtractedDocument {
    const text = this.#parts.join('').replace(/\n+$/, '');
    const name = oneLine(title ?? '').slice(0, 500);
    return {
      format,
      title: name === '' ? null : name.toWellFormed(),
      text,
      markup: 'markdown',
      pageStarts:
        this.#pageStarts.length === 0 ? null : this.#pageStarts.map((start) => Math.min(start, text.length)),
    };
  }

  #block(text: string, isItem = false): void {
    this.#separate(isItem);
    this.#put(text);
  }

  #separate(isItem: boolean): void {
    const atPageStart = this.#pageStarts.at(-1) === this.#length;
    if (this.#length > 0 && !atPageStart) this.#put(isItem && this.#lastWasItem ? '\n' : '\n\n');
    this.#lastWasItem = isItem;
  }

  #put(text: string): void {
    this.#length += text.length;
    if (this.#length > this.#maxCharacters)
      throw tooLarge(`The document has more than ${this.#maxCharacters} characters`);
    this.#parts.push(text);
  }
}

/** Rows without the columns and rows that are empty throughout. */
class TableLines {
  readonly #cells: string[][];
  readonly #kept: number[];
  constructor(rows: readonly (readonly string[])[]) {
    this.#cells = rows.map((row) => row.map((cell) => oneLine(cell)));
    const used = new Set<number>();
    for (const row of this.#cells) for (const [i, cell] of row.entries()) if (cell !== '') used.add(i);
    this.#kept = [...used].sort((a, b) => a - b);
  }
  get columns(): number {
    return this.#kept.length;
  }
  *rows(): Generator<string[]> {
    for (const row of this.#cells) {
      if (row.every((cell) => cell === '')) continue;
      const cells = this.#kept.map((i) => row[i] ?? '');
      yield cells;
    }
  }
}

/** One line of a table; a pipe within a cell is escaped. */
export const pipes = (cells: readonly string[]): string =>
  `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;

/** Clean, and on one line. */
export const oneLine = (text: string): string => cleanCharacters(text).replace(/\s+/g, ' ').trim();

/** Lines that are not meant as Markdown and would be read as a heading, a fence or a table's row. */
export const escapeMarks = (text: string): string => text.replace(/^(?=#{1,6}\s|```|~~~|\|)/gm, '\\');

const tidyLines = (text: string): string =>
  cleanCharacters(text)
    .split('\n')
    .map((line) => line.replace(/\s+/g, ' ').trim())
    .join('\n')
    .replace(/\n{2,}/g, '\n')
    .replace(/^\n|\n$/g, '');
