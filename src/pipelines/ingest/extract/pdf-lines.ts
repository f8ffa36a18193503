/** Lines of PDF pages: cleaned, and without what stands at the head or foot of many pages. */
import { cleanCharacters } from './clean.ts';

/** The dots between an entry of a table of contents and its page: hundreds of tokens that say nothing. */
const LEADERS = / ?(?:\. ?){5,}/g;

// biome-ignore lint/suspicious/noControlCharactersInRegex: U+0002 is what some libraries put there
const HYPHEN_MARKS = /[\x02\xad](?=\r?\n)/g;

/** Blanks that are not one by themselves. */
const UNEVEN = /[^\S \n]| {2}/;

/** A page as the library gives it, as lines. PDFium puts U+FFFE where a line ended in a hyphen, and goes on without a line end. */
export function pageLines(page: string): string[] {
  const text = cleanCharacters(page.replace(/\ufffe(\r?\n)?/g, '-\n').replace(HYPHEN_MARKS, '-'));
  // most pages have neither: their lines need not be looked at one by one
  const isUneven = UNEVEN.test(text);
  const hasLeaders = isUneven || text.search(LEADERS) >= 0;
  const lines: string[] = [];
  for (const line of text.split('\n')) {
    const even = isUneven ? line.replace(/\s+/g, ' ') : line;
    const clean = (hasLeaders ? even.replace(LEADERS, ' … ') : even).trim();
    if (clean !== '') lines.push(clean);
  }
  return lines;
}

/** Lines at either end of a page that can be its furniture. */
const EDGE = 3;
/** Pages to either side that are compared: a chapter's title in the header stands on that chapter's pages only. */
const WINDOW = 6;
/** As many pages within the window must have the line, this one included. */
const OFTEN = 3;
/** As many must have a line whose number counts with the pages, whatever else it says: headers that name a section of one page. */
const OFTEN_NUMBERED = 6;
const MAX_NUMBERED = 80;

type Edge = {
  /** Without Roman page numbers. */
  readonly line: string;
  /** Without any numbers. */
  readonly form: string;
  readonly numbers: readonly number[];
};

/**
 * Removes headers, footers and page numbers: lines that stand at the same end of at least three pages nearby and are the same, or
 * differ in a number that counts with the pages.
 */
export function removeRunningLines(pages: string[][]): void {
  if (pages.length < OFTEN) return;
  for (const end of ['top', 'bottom'] as const) {
    const edges = pages.map((lines) => edgeOf(lines, end));
    const forms = edges.map((edge) => new Map(edge.map((line) => [line.form, line])));
    const offsets = edges.map((edge, i) => new Set(edge.flatMap(({ line }) => offsetsOf(line, i))));
    for (const [i, lines] of pages.entries()) {
      const edge = edges[i] ?? [];
      let furniture = 0;
      for (const line of edge) {
        if (!isRunning(line, i, forms) && !isNumbered(line, i, offsets)) break;
        furniture++;
      }
      // a page of nothing else keeps its lines: they may be its text
      if (furniture === 0 || furniture === lines.length) continue;
      if (end === 'top') lines.splice(0, furniture);
      else lines.splice(lines.length - furniture, furniture);
    }
  }
}

function edgeOf(lines: readonly string[], end: 'top' | 'bottom'): Edge[] {
  const edge = end === 'top' ? lines.slice(0, EDGE) : lines.slice(-EDGE).reverse();
  return edge.map((whole) => {
    const line = whole.length > 120 ? whole : whole.toLowerCase().replace(/^[ivxlc]+$|\b[ivxlc]+$/, '#');
    const digits = line.length > 120 ? [] : (line.match(/\d{1,9}/g) ?? []);
    return { line, form: line.replace(/\d+/g, '#'), numbers: digits.map(Number) };
  });
}

function isRunning(edge: Edge, page: number, forms: readonly ReadonlyMap<string, Edge>[]): boolean {
  let count = 0;
  for (let i = Math.max(page - WINDOW, 0); i <= Math.min(page + WINDOW, forms.length - 1); i++) {
    const other = forms[i]?.get(edge.form);
    if (!other) continue;
    const countsAlong = edge.numbers.some((number, at) => other.numbers[at] === number + i - page);
    // a bare number that is the same on many pages is a value, not a page's number
    if (countsAlong || (other.line === edge.line && /\p{L}/u.test(edge.form))) count++;
  }
  return count >= OFTEN;
}

/** By how much the numbers at a line's ends are ahead of the page. */
function offsetsOf(line: string, page: number): number[] {
  if (line.length > MAX_NUMBERED) return [];
  const numbers = [/^\d{1,5}(?=\s|$)/.exec(line)?.[0], /(?:^|\s)(\d{1,5})$/.exec(line)?.[1]];
  return numbers.flatMap((number) => (number === undefined ? [] : [Number(number) - page]));
}

const isNumbered = ({ line }: Edge, page: number, offsets: readonly ReadonlySet<number>[]): boolean =>
  offsetsOf(line, page).some((offset) => {
    let count = 0;
    for (let i = Math.max(page - WINDOW, 0); i <= Math.min(page + WINDOW, offsets.length - 1); i++)
      if (offsets[i]?.has(offset)) count++;
    return count >= OFTEN_NUMBERED;
  });
