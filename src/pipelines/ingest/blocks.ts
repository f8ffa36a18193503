/** The blocks of a text, line by line: headings, paragraphs, items of lists, tables, code. */
import { graphemeStart } from './graphemes.ts';

export type Block =
  | { readonly kind: 'heading'; readonly start: number; readonly end: number; level: number; title: string }
  | { readonly kind: 'paragraph'; readonly start: number; readonly end: number }
  /** An item of a list; `first`: the list's first. */
  | { readonly kind: 'item'; readonly start: number; readonly end: number; readonly first: boolean }
  /** A table; its header row ends at `headerEnd`, the line below it at `rowsFrom`. */
  | { kind: 'table'; start: number; end: number; readonly headerEnd: number; readonly rowsFrom: number }
  | { readonly kind: 'code'; readonly start: number; readonly end: number };

const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/s;
const FENCE = /^ {0,3}(`{3,}(?=[^`]*$)|~{3,})/;
const UNDERLINE = /^ {0,3}(=+|-{2,})[ \t]*$/;
const ITEM = /^[ \t]*(?:[-*+•‣◦▪]|\d{1,9}[.)]|\(?[a-zA-Z0-9]{1,3}\))[ \t]+\S/;
/** A longer line is not looked at for what it is: it is text. UTF-16 units. */
const MAX_MARKUP_LINE = 20_000;
/** A longer title is cut, as a title; the heading's line is text like any other. */
const MAX_TITLE = 200;
/** Headings beyond these are paragraphs: nobody reads so many, and each costs memory. */
const MAX_HEADINGS = 50_000;

const blank = /\S/;

/** The blocks in their order. What lies between them is blank. Offsets are those of the text; no block is empty. */
export function* blocksOf(text: string, markup: 'markdown' | 'plain'): Generator<Block> {
  const markdown = markup === 'markdown';
  let headings = 0;
  let inList = false;
  /** Where the paragraph or item begins that the lines before belong to; -1: none. */
  let open = -1;
  let openIsItem = false;
  let openIsFirst = false;
  let openEnd = 0;
  let at = 0;

  const closed = (): Block[] => {
    if (open < 0) return [];
    const [start, end] = [open, openEnd];
    open = -1;
    return [
      openIsItem ? { kind: 'item', start, end, first: openIsFirst } : { kind: 'paragraph', start, end },
    ];
  };

  if (markdown && /^---[ \t]*\n/.test(text)) {
    const close = text.indexOf('\n---', 3);
    const end = close < 0 ? -1 : lineEnd(text, close + 1);
    if (end > 0 && end < MAX_MARKUP_LINE) {
      yield { kind: 'code', start: 0, end };
      at = end;
    }
  }

  while (at < text.length) {
    const end = lineEnd(text, at);
    const line = text.slice(at, Math.min(end, at + MAX_MARKUP_LINE));
    const start = at;
    at = end + 1;
    if (!blank.test(line) && (end - start <= MAX_MARKUP_LINE || !blank.test(text.slice(start, end)))) {
      yield* closed();
      continue;
    }
    if (end - start > MAX_MARKUP_LINE) {
      if (open < 0) {
        open = start;
        openIsItem = false;
      }
      openEnd = end;
      continue;
    }
    if (markdown) {
      const heading = HEADING.exec(line);
      if (heading && headings < MAX_HEADINGS) {
        yield* closed();
        inList = false;
        headings++;
        const title = cleanTitle(withoutClosingMarks(heading[2] ?? ''));
        yield { kind: 'heading', start, end, level: heading[1]?.length ?? 1, title };
        continue;
      }
      const fence = FENCE.exec(line)?.[1];
      if (fence) {
        yield* closed();
        const codeEnd = fenceEnd(text, at, fence);
        yield { kind: 'code', start, end: codeEnd };
        at = codeEnd + 1;
        continue;
      }
      const underline = open >= 0 && !openIsItem && headings < MAX_HEADINGS ? UNDERLINE.exec(line) : null;
      if (underline && openEnd - open <= 2 * MAX_TITLE) {
        const title = cleanTitle(text.slice(open, openEnd).replaceAll('\n', ' '));
        inList = false;
        headings++;
        yield { kind: 'heading', start: open, end, level: underline[1]?.startsWith('=') ? 1 : 2, title };
        open = -1;
        continue;
      }
      const below = line.includes('|') ? lineEnd(text, at) : 0;
      if (below - at > 0 && below - at <= MAX_MARKUP_LINE) {
        if (isDelimiter(text.slice(at, below))) {
          yield* closed();
          const tableEnd = rowsEnd(text, below);
          yield { kind: 'table', start, end: tableEnd, headerEnd: end, rowsFrom: below };
          at = tableEnd + 1;
          continue;
        }
      }
    }
    const item = ITEM.test(line);
    if (item) {
      yield* closed();
      open = start;
      openIsItem = true;
      openIsFirst = !inList;
      inList = true;
    } else if (open < 0) {
      // what is indented below an item belongs to the list
      inList &&= /^[ \t]/.test(line);
      open = start;
      openIsItem = inList;
      openIsFirst = false;
    }
    openEnd = end;
  }
  yield* closed();
}

function lineEnd(text: string, at: number): number {
  const end = text.indexOf('\n', at);
  return end < 0 ? text.length : end;
}

/** Whether a line is the one between a table's header and its rows. */
function isDelimiter(line: string): boolean {
  if (!/^[|:\- \t]+$/.test(line)) return false;
  const cells = line
    .trim()
    .replace(/^\||\|$/g, '')
    .split('|');
  return cells.every((cell) => /^:?-+:?$/.test(cell.trim()));
}

/** `Title ##` is the title alone. */
function withoutClosingMarks(title: string): string {
  const trimmed = title.trimEnd();
  let end = trimmed.length;
  while (end > 0 && trimmed[end - 1] === '#') end--;
  return end === 0 || /\s/.test(trimmed[end - 1] as string) ? trimmed.slice(0, end) : trimmed;
}

/** The end of the line that closes a fence, or of the text. */
function fenceEnd(text: string, from: number, fence: string): number {
  for (let at = from; at < text.length; ) {
    const end = lineEnd(text, at);
    if (end - at < 1000) {
      const mark = text.slice(at, end).trim();
      if (mark.length >= fence.length && mark === (fence[0] as string).repeat(mark.length)) return end;
    }
    at = end + 1;
  }
  return text.length;
}

/** The end of the last row of a table whose delimiter ends at `from`. */
function rowsEnd(text: string, from: number): number {
  let last = from;
  while (last < text.length) {
    const end = lineEnd(text, last + 1);
    const bar = text.indexOf('|', last + 1);
    if (bar < 0 || bar >= end) break;
    last = end;
  }
  return last;
}

/** A heading's words on one line, without marks of emphasis, at most MAX_TITLE units of them. */
function cleanTitle(raw: string): string {
  const title = raw
    .slice(0, 4 * MAX_TITLE)
    .replace(/[*`]+/g, '')
    .replace(/\s+/g, ' ')
    .trim();
  if (title.length <= MAX_TITLE) return title;
  const cut = title.lastIndexOf(' ', MAX_TITLE);
  return title.slice(0, cut > MAX_TITLE / 2 ? cut : graphemeStart(title, 0, MAX_TITLE)).trim();
}
