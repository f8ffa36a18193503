/**
 * HTML to Markdown blocks in one pass, without a tree. Left out: scripts, styles, navigation, forms' controls, what is hidden, and
 * everything around `<main>` where that holds most of the page. Links keep their text, pictures their description.
 */
import { Parser } from 'htmlparser2';
import { corrupt } from './failures.ts';
import type { MarkdownWriter } from './markdown-writer.ts';

const DROPPED = new Set(
  (
    'script style nav noscript template svg iframe object button select datalist textarea canvas ' +
    'audio video dialog menu rp rt'
  ).split(' '),
);
const BLOCKS = new Set(
  (
    'p div section article header footer aside main body html blockquote figure figcaption address ' +
    'dl dt dd fieldset form details summary hr center ul ol li table caption'
  ).split(' '),
);
const VOID = new Set('area base br col embed hr img input link meta source track wbr'.split(' '));

/** Deeper than any page that a browser shows; each level costs memory and time on every closing tag. */
const MAX_DEPTH = 5000;

type Block =
  | { kind: 'heading'; level: number; text: string }
  | { kind: 'paragraph'; text: string }
  | { kind: 'item'; depth: number; isOrdered: boolean; text: string }
  | { kind: 'code'; text: string; language: string }
  | { kind: 'table'; rows: string[][] };

type Table = { rows: string[][]; inCell: boolean; isLayout: boolean };

export type HtmlTitles = { readonly title: string | null; readonly heading: string | null };

/** Appends a page's blocks. @throws DocumentError corrupt (nested beyond reason), too_large */
export function convertHtml(html: string, writer: MarkdownWriter): HtmlTitles {
  const reader = new HtmlReader();
  const parser = new Parser(reader.handler(), { decodeEntities: true });
  // in pieces: one text node of the whole page is handed over bit by bit
  for (let at = 0; at < html.length; at += 65_536) parser.write(html.slice(at, at + 65_536));
  parser.end();
  const blocks = reader.finish();
  for (const block of blocks) {
    if (block.kind === 'heading') writer.heading(block.level, block.text);
    else if (block.kind === 'paragraph') writer.paragraph(block.text);
    else if (block.kind === 'item') writer.item(block.depth, block.isOrdered, block.text);
    else if (block.kind === 'code') writer.code(block.text, block.language);
    else writer.table(block.rows);
  }
  const heading = blocks.find((block) => block.kind === 'heading');
  return { title: reader.title.trim() || null, heading: heading?.kind === 'heading' ? heading.text : null };
}

class HtmlReader {
  title = '';
  readonly #blocks: Block[] = [];
  /** First and last block of the page's main part. */
  #main: { from: number; to: number | null } | null = null;
  #text: string[] = [];
  #depth = 0;
  /** Depth at which something left out began; null: nothing is. */
  #dropFrom: number | null = null;
  #mainDepth: number | null = null;
  #heading: number | null = null;
  #item: { depth: number; isOrdered: boolean } | null = null;
  /** Whether each open list is ordered. */
  readonly #lists: boolean[] = [];
  readonly #tables: Table[] = [];
  #pre: { text: string[]; depth: number; language: string } | null = null;
  #link: { isPermalink: boolean; from: number } | null = null;
  #inTitle = false;

  handler() {
    return {
      onopentag: (name: string, attributes: Record<string, string>) => this.#open(name, attributes),
      onclosetag: (name: string) => this.#close(name),
      ontext: (text: string) => this.#add(text),
    };
  }

  finish(): readonly Block[] {
    this.#flush();
    while (this.#tables.length > 0) this.#endTable();
    const main = this.#main;
    if (!main) return this.#blocks;
    const chosen = this.#blocks.slice(main.from, main.to ?? undefined);
    return weight(chosen) >= weight(this.#blocks) / 2 ? chosen : this.#blocks;
  }

  #add(text: string): void {
    if (this.#inTitle) {
      if (this.title.length < 1000) this.title += text;
    } else if (this.#dropFrom !== null) return;
    else if (this.#pre) this.#pre.text.push(text);
    else this.#text.push(text);
  }

  #open(name: string, attributes: Record<string, string>): void {
    if (++this.#depth > MAX_DEPTH) throw corrupt('The page', new Error('nested too deeply'));
    if (this.#dropFrom !== null) return;
    if (name === 'title' && this.#blocks.length === 0 && this.title === '') {
      this.#inTitle = true;
      return;
    }
    if (isLeftOut(name, attributes)) {
      // one blank, so that the words on both sides stay two
      this.#text.push(' ');
      this.#dropFrom = this.#depth;
      return;
    }
    if (this.#pre) {
      if (name === 'br') this.#pre.text.push('\n');
      return;
    }
    const headingLevel = /^h([1-6])$/.exec(name)?.[1];
    if (headingLevel || BLOCKS.has(name) || name === 'pre') this.#flush();
    if (name === 'main' || attributes.role === 'main') this.#beginMain();
    if (headingLevel) this.#heading = Number(headingLevel);
    else if (name === 'pre') this.#pre = { text: [], depth: this.#depth, language: languageOf(attributes) };
    else if (name === 'br') this.#text.push('\n\v');
    else if (name === 'img' && attributes.alt) this.#text.push(` ${attributes.alt} `);
    else if (name === 'a')
      this.#link = { isPermalink: /headerlink|anchor/.test(attributes.class ?? ''), from: this.#text.length };
    else if (name === 'ul' || name === 'ol') this.#lists.push(name === 'ol');
    else if (name === 'li') this.#beginItem();
    else if (name === 'table')
      this.#tables.push({ rows: [], inCell: false, isLayout: attributes.role === 'presentation' });
    else if (name === 'tr') this.#tables.at(-1)?.rows.push([]);
    else if (name === 'td' || name === 'th') this.#beginCell();
  }

  #close(name: string): void {
    const depth = this.#depth--;
    if (this.#dropFrom !== null) {
      if (depth === this.#dropFrom) this.#dropFrom = null;
      return;
    }
    if (this.#inTitle) {
      if (name === 'title') this.#inTitle = false;
      return;
    }
    if (this.#pre) {
      if (depth === this.#pre.depth) this.#endPre();
      return;
    }
    if (name === 'a') this.#endLink();
    else if (/^h[1-6]$/.test(name)) {
      this.#flush();
      this.#heading = null;
    } else if (name === 'td' || name === 'th') this.#endCell();
    else if (name === 'table') this.#endTable();
    else if (BLOCKS.has(name)) {
      this.#flush();
      if (name === 'li') this.#item = null;
      if (name === 'ul' || name === 'ol') this.#lists.pop();
    }
    if (depth === this.#mainDepth) {
      this.#flush();
      if (this.#main) this.#main.to = this.#blocks.length;
      this.#mainDepth = null;
    }
  }

  #beginMain(): void {
    if (this.#main) return;
    this.#main = { from: this.#blocks.length, to: null };
    this.#mainDepth = this.#depth;
  }

  #beginItem(): void {
    this.#item = { depth: Math.max(this.#lists.length - 1, 0), isOrdered: this.#lists.at(-1) ?? false };
  }

  /** What stands in a heading, an item or a cell becomes one; all else is a paragraph. */
  #flush(): void {
    const text = this.#takeText();
    if (text === '') return;
    const table = this.#tables.at(-1);
    if (table?.inCell) {
      const row = table.rows.at(-1);
      if (row) row.push(join(row.pop() ?? '', text));
      return;
    }
    if (this.#heading !== null) this.#blocks.push({ kind: 'heading', level: this.#heading, text });
    else if (this.#item) {
      this.#blocks.push({ kind: 'item', ...this.#item, text });
      // further paragraphs of an item stand below it, as paragraphs
      this.#item = null;
    } else this.#blocks.push({ kind: 'paragraph', text });
  }

  #takeText(): string {
    const text = this.#text.join('');
    this.#text = [];
    // <br> was set as \n\v, to tell it from the source's own line ends
    return text
      .replace(/[^\S\v]+/g, ' ')
      .replace(/ ?\v ?/g, '\n')
      .trim();
  }

  #endLink(): void {
    const link = this.#link;
    this.#link = null;
    if (!link) return;
    const text = this.#text.slice(link.from).join('').trim();
    if (/^(?:¶|🔗|↩\ufe0e?|\^|)$/u.test(text) || (link.isPermalink && text === '#'))
      this.#text.length = Math.min(link.from, this.#text.length);
  }

  #endPre(): void {
    const pre = this.#pre;
    this.#pre = null;
    if (!pre) return;
    const text = pre.text.join('');
    const table = this.#tables.at(-1);
    if (table?.inCell) this.#text.push(text);
    else this.#blocks.push({ kind: 'code', text, language: pre.language });
  }

  #beginCell(): void {
    const table = this.#tables.at(-1);
    if (!table) return;
    this.#flush();
    if (table.rows.length === 0) table.rows.push([]);
    table.rows.at(-1)?.push('');
    table.inCell = true;
  }

  #endCell(): void {
    this.#flush();
    const table = this.#tables.at(-1);
    if (table) table.inCell = false;
  }

  /** A table within a cell, or for layout alone, is text of its surroundings. */
  #endTable(): void {
    this.#flush();
    const table = this.#tables.pop();
    if (!table) return;
    const outer = this.#tables.at(-1);
    if (outer?.inCell) {
      outer.isLayout = true;
      const row = outer.rows.at(-1);
      const text = table.rows.map((cells) => cells.filter((cell) => cell !== '').join(', ')).join('; ');
      if (row) row.push(join(row.pop() ?? '', text));
    } else if (table.isLayout) {
      for (const cell of table.rows.flat())
        if (cell !== '') this.#blocks.push({ kind: 'paragraph', text: cell });
    } else this.#blocks.push({ kind: 'table', rows: table.rows });
  }
}

const isLeftOut = (name: string, attributes: Record<string, string>): boolean =>
  !VOID.has(name) &&
  (DROPPED.has(name) ||
    attributes.hidden !== undefined ||
    attributes['aria-hidden'] === 'true' ||
    attributes.role === 'navigation' ||
    /display\s*:\s*none/i.test(attributes.style ?? ''));

const languageOf = (attributes: Record<string, string>): string =>
  /(?:language|lang|highlight)-([\w+#-]{1,20})/.exec(attributes.class ?? '')?.[1] ?? '';

const join = (before: string, after: string): string => (before === '' ? after : `${before} ${after}`);

function weight(blocks: readonly Block[]): number {
  let sum = 0;
  for (const block of blocks)
    sum +=
      block.kind === 'table' ? block.rows.flat().reduce((n, cell) => n + cell.length, 0) : block.text.length;
  return sum;
}
