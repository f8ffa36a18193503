/**
 * JSON as lines of `path: value`, so that each passage says where its values stand; an empty line parts objects and lists. Also JSON of
 * one value a line (NDJSON).
 *
 * Read by its own reader, in one pass and without building objects: a hundred megabytes of `[{},{},…` would be two gigabytes of them,
 * allocated within one call that nothing can interrupt, and numbers would lose the digits that a double does not hold.
 */
import type { DocumentHints, DocumentLimits, ExtractedDocument } from '../document.ts';
import { charsetOf, decodeText } from './charset.ts';
import { cleanCharacters, cleanText } from './clean.ts';
import { corrupt, tooLarge } from './failures.ts';

/** Of a longer path its end is shown: with each value repeating it, the text would grow with the square of the depth. */
const MAX_PATH = 200;

export function extractJson(
  bytes: Uint8Array,
  hints: DocumentHints,
  limits: DocumentLimits,
): ExtractedDocument {
  const source = decodeText(bytes, charsetOf(hints.contentType)).replace(/^\ufeff/, '');
  const text = cleanText(new JsonLines(source, limits.maxCharacters).read());
  return { format: 'json', title: null, text, markup: 'plain', pageStarts: null };
}

/** An open object or list. */
type Level = { readonly path: string; readonly isList: boolean; count: number };

const SPACE = /[ \t\r\n]*/y;
const LITERAL = /-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null/y;

class JsonLines {
  readonly #source: string;
  readonly #maxCharacters: number;
  readonly #lines: string[] = [];
  readonly #levels: Level[] = [];
  #at = 0;
  #length = 0;

  constructor(source: string, maxCharacters: number) {
    this.#source = source;
    this.#maxCharacters = maxCharacters;
  }

  /** Values one after the other: one, or one a line. */
  read(): string {
    this.#skipSpace();
    for (let values = 0; this.#at < this.#source.length; values++) {
      // a further value begins on a further line
      if (values > 0 && this.#source[this.#at - 1] !== '\n') this.#fail();
      this.#readValue();
      this.#skipSpace();
    }
    return this.#lines.join('\n');
  }

  #readValue(): void {
    const start = this.#levels.length;
    do {
      const level = this.#levels.at(-1);
      if (!level) this.#readOne('');
      else if (this.#closes(level)) this.#close();
      else {
        if (level.count > 0) this.#expect(',');
        this.#readOne(this.#nextPath(level));
      }
    } while (this.#levels.length > start);
  }

  #closes(level: Level): boolean {
    this.#skipSpace();
    return this.#source[this.#at] === (level.isList ? ']' : '}');
  }

  #close(): void {
    this.#at++;
    this.#levels.pop();
    this.#part();
  }

  #nextPath(level: Level): string {
    this.#skipSpace();
    const index = level.count++;
    if (level.isList) return shorten(`${level.path}[${index}]`);
    const key = this.#readString();
    this.#skipSpace();
    this.#expect(':');
    return shorten(level.path === '' ? key : `${level.path}.${key}`);
  }

  /** A value that is written as a line, or the beginning of an object or list. */
  #readOne(path: string): void {
    this.#skipSpace();
    const char = this.#source[this.#at];
    if (char === '{' || char === '[') {
      this.#at++;
      this.#part();
      this.#levels.push({ path, isList: char === '[', count: 0 });
      return;
    }
    const value = char === '"' ? this.#readString() : this.#match(LITERAL);
    if (value !== '' && value !== 'null') this.#put(path === '' ? shown(value) : `${path}: ${shown(value)}`);
  }

  #part(): void {
    if (this.#lines.length > 0 && this.#lines.at(-1) !== '') this.#put('');
  }

  #put(line: string): void {
    this.#length += line.length + 1;
    if (this.#length > this.#maxCharacters)
      throw tooLarge(`The file has more than ${this.#maxCharacters} characters`);
    this.#lines.push(line);
  }

  #skipSpace(): void {
    SPACE.lastIndex = this.#at;
    SPACE.exec(this.#source);
    this.#at = SPACE.lastIndex;
  }

  #match(pattern: RegExp): string {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#source)?.[0];
    if (found === undefined) this.#fail();
    this.#at += found.length;
    return found;
  }

  #expect(char: string): void {
    this.#skipSpace();
    if (this.#source[this.#at] !== char) this.#fail();
    this.#at++;
  }

  /** By looking for its end: a pattern would keep a step for each character of a text of megabytes. */
  #readString(): string {
    const start = this.#at;
    if (this.#source[start] !== '"') this.#fail();
    for (let from = start + 1; ; ) {
      const quote = this.#source.indexOf('"', from);
      if (quote === -1) this.#fail();
      let backslashes = 0;
      while (this.#source[quote - 1 - backslashes] === '\\') backslashes++;
      from = quote + 1;
      if (backslashes % 2 === 1) continue;
      this.#at = from;
      return this.#unquote(this.#source.slice(start, from));
    }
  }

  #unquote(quoted: string): string {
    if (!quoted.includes('\\')) return quoted.slice(1, -1);
    try {
      // a string within a file may hold line ends and tabs as they are
      return JSON.parse(quoted.replace(/[\n\r\t]/g, ' ')) as string;
    } catch {
      return this.#fail();
    }
  }

  #fail(): never {
    throw corrupt('The JSON file', new Error(`at character ${this.#at}`));
  }
}

const shorten = (path: string): string => (path.length <= MAX_PATH ? path : `…${path.slice(1 - MAX_PATH)}`);

/** A text's own line ends stay, indented. */
const shown = (value: string): string => cleanCharacters(value).trimEnd().replaceAll('\n', '\n  ');
