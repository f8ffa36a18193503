/** Which lines of a PDF are headings: those that its bookmarks name, on the pages that they point at. */
import { BEYOND_ASCII } from './clean.ts';
import type { PdfBookmark } from './pdf-engine.ts';

/** Letters and digits only: bookmarks and pages differ in blanks, dashes and quotes. */
const keyOf = (text: string): string =>
  BEYOND_ASCII.test(text)
    ? text
        .normalize('NFKC')
        .toLowerCase()
        .replace(/[^\p{L}\p{N}]+/gu, '')
    : text.toLowerCase().replace(/[^a-z0-9]+/g, '');

/** Without a number in front: `3.1 Modes`, `Chapter 3: Modes`, `Appendix A Modes`. Bookmarks have it or not. */
const withoutNumber = (text: string): string =>
  text.replace(/^((chapter|appendix|section|part)\s+)?([A-Z]|\d{1,3})([.-]\d{1,3}){0,5}[.:)]?\s+/i, '');

/** @returns for each page the levels of its heading lines. A bookmark whose line is not found is left out. */
export function findHeadings(
  pages: readonly (readonly string[])[],
  bookmarks: readonly PdfBookmark[],
): ReadonlyMap<number, number>[] {
  const found = pages.map(() => new Map<number, number>());
  const keys = new Map<number, readonly { whole: string; bare: string }[]>();
  for (const { title, level, page } of bookmarks) {
    const lines = pages[page];
    const levels = found[page];
    const [whole, bare] = [keyOf(title), keyOf(withoutNumber(title))];
    if (!lines || !levels || whole === '') continue;
    let known = keys.get(page);
    if (!known) {
      known = lines.map((line) => {
        const [key, rest] = [keyOf(line), withoutNumber(line)];
        return { whole: key, bare: rest === line ? key : keyOf(rest) };
      });
      keys.set(page, known);
    }
    const at = known.findIndex(
      (line, i) => !levels.has(i) && (line.whole === whole || (bare !== '' && line.bare === bare)),
    );
    if (at >= 0) levels.set(at, level);
  }
  return found;
}
