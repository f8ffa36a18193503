/** The headings that a passage lies under, and what stands before it when it is embedded. */
import { graphemeStart } from './graphemes.ts';
import type { TableHeader } from './segments.ts';
import { countTokens } from './token-index.ts';

/** The text before the first heading, or what follows a heading until the next one. */
export type Section = {
  readonly level: number;
  /** Place of the heading's line in the text. */
  readonly start: number;
  readonly title: string;
  readonly parent: Section | null;
  /** How many headings it lies under, itself included. */
  readonly depth: number;
};

/** What is not under a heading. */
export const ROOT: Section = { level: 0, start: -1, title: '', parent: null, depth: 0 };

/** The section that a heading opens within or after another. */
export function openSection(current: Section, heading: Omit<Section, 'parent' | 'depth'>): Section {
  let parent = current;
  while (parent.parent && parent.level >= heading.level) parent = parent.parent;
  return { ...heading, parent, depth: parent.depth + 1 };
}

/** The section that holds two others. What stands between them in the text lies in it too. */
export function commonSection(a: Section, b: Section): Section {
  let [left, right] = [a, b];
  while (left !== right) {
    if (left.depth > right.depth) left = left.parent ?? ROOT;
    else if (right.depth > left.depth) right = right.parent ?? ROOT;
    else [left, right] = [left.parent ?? ROOT, right.parent ?? ROOT];
  }
  return left;
}

/** Titles from the outermost inwards. */
export function headingPath(section: Section): string[] {
  const path: string[] = [];
  for (let at: Section | null = section; at?.parent; at = at.parent) if (at.title) path.unshift(at.title);
  return path;
}

export type Prefix = { readonly text: string; readonly tokens: number };
const NOTHING: Prefix = { text: '', tokens: 0 };

/** What is embedded before a passage, made once for each section and each table's header. */
export class Prefixes {
  /** Tokens: a path, and a header row, may each take so many tokens. */
  readonly #share: number;
  readonly #paths = new Map<Section, Prefix>();
  #table: TableHeader | null = null;
  #header: Prefix = NOTHING;

  constructor(maxTokens: number) {
    this.#share = Math.floor(maxTokens / 4);
  }

  /**
   * The path to a section, and a line's end and a blank line. Headings from `bodyStart` on stand in the body and not here. A path that is
   * too long loses its outer titles first.
   */
  path(section: Section, bodyStart: number): Prefix {
    let outer = section;
    while (outer.parent && outer.start >= bodyStart) outer = outer.parent;
    if (!outer.parent) return NOTHING;
    let prefix = this.#paths.get(outer);
    if (!prefix) {
      prefix = this.#shortened(headingPath(outer));
      if (this.#paths.size >= 1000) this.#paths.clear();
      this.#paths.set(outer, prefix);
    }
    return prefix;
  }

  /** A table's header row; nothing if it is longer than its share. */
  header(text: string, table: TableHeader): Prefix {
    if (this.#table === table) return this.#header;
    // a token has at most 128 bytes
    const fits = table.end - table.start <= this.#share * 128;
    const row = fits ? `${text.slice(table.start, table.end).trim()}\n` : '';
    const tokens = countTokens(row);
    this.#table = table;
    this.#header = fits && tokens <= this.#share ? { text: row, tokens } : NOTHING;
    return this.#header;
  }

  #shortened(path: readonly string[]): Prefix {
    for (let from = 0; from < path.length; from++) {
      const prefix = this.#rendered(path.slice(from).join(' > '));
      if (prefix.tokens <= this.#share) return prefix;
    }
    // the innermost alone is too long: as many of its words as fit
    let title = path.at(-1) ?? '';
    while (title.length > 2) {
      const blank = title.lastIndexOf(' ');
      const cut = blank > 0 ? blank : graphemeStart(title, 0, title.length >> 1);
      if (cut >= title.length) break;
      title = title.slice(0, cut).trimEnd();
      const prefix = this.#rendered(`${title}…`);
      if (prefix.tokens <= this.#share) return prefix;
    }
    return NOTHING;
  }

  #rendered(path: string): Prefix {
    if (!path) return NOTHING;
    const text = `${path}\n\n`;
    return { text, tokens: countTokens(text) };
  }
}
