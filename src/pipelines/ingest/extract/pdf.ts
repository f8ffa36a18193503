/** PDF: pages of text from a library, cleaned of what belongs to the paper, with headings where the file's bookmarks name them. */
import { DocumentError, type DocumentLimits, type ExtractedDocument } from '../document.ts';
import { corrupt, empty, needsOcr, tooLarge } from './failures.ts';
import { oneLine } from './markdown-writer.ts';
import type { PdfEngine, PdfEngineName, PdfFile } from './pdf-engine.ts';
import { findHeadings } from './pdf-headings.ts';
import { pageLines, removeRunningLines } from './pdf-lines.ts';
import { joinPages } from './pdf-paragraphs.ts';

/** Pages that are read between two looks at the signal. */
const STEP = 20;
/** Fewer letters a page than these, on average, are stamps and page numbers of a scan. */
const MIN_LETTERS = 10;

const LETTER = /[\p{L}\p{N}]/u;
/** What fonts say that do not know their letters. */
const UNKNOWN = /[\ufffd\p{Co}\p{Cn}]/u;
/** Where it finds nothing, neither does UNKNOWN, which is slow: below it, and among dashes and quotes, Unicode has no gap. */
const MAY_BE_UNKNOWN = /[^\0-\u036f\u2010-\u2027]/;

/** Either is loaded when it is first needed: PDFium's code takes 4 MB, that of pdf.js more. */
const ENGINES: Readonly<Record<PdfEngineName, () => Promise<PdfEngine>>> = {
  pdfium: async () => (await import('./pdf-pdfium.ts')).pdfium,
  'pdf-parse': async () => (await import('./pdf-pdfjs.ts')).pdfJs,
};

/** What one engine takes for damaged the other may read. */
export async function extractPdf(
  bytes: Uint8Array,
  limits: DocumentLimits,
  engine: PdfEngineName,
  signal?: AbortSignal,
): Promise<ExtractedDocument> {
  try {
    return await extractWith(await ENGINES[engine](), bytes, limits, signal);
  } catch (error) {
    if (!(error instanceof DocumentError) || error.code !== 'corrupt') throw error;
    const other = engine === 'pdfium' ? 'pdf-parse' : 'pdfium';
    return extractWith(await ENGINES[other](), bytes, limits, signal);
  }
}

async function extractWith(
  engine: PdfEngine,
  bytes: Uint8Array,
  limits: DocumentLimits,
  signal: AbortSignal | undefined,
): Promise<ExtractedDocument> {
  const file = await engine.open(bytes, limits.maxCharacters);
  try {
    const pages = await readLines(file, limits, signal);
    requireText(pages, file);
    removeRunningLines(pages);
    const headings = findHeadings(pages, file.bookmarks);
    const markup = headings.some((found) => found.size > 0) ? 'markdown' : 'plain';
    const { text, pageStarts } = joinPages(
      pages.map((lines, i) => ({ lines, headings: headings[i] ?? new Map() })),
      markup,
    );
    const title = oneLine(file.title ?? '')
      .slice(0, 500)
      .toWellFormed();
    return { format: 'pdf', title: title === '' ? null : title, text, markup, pageStarts };
  } finally {
    await file.close();
  }
}

async function readLines(
  file: PdfFile,
  limits: DocumentLimits,
  signal: AbortSignal | undefined,
): Promise<string[][]> {
  if (file.pageCount <= 0) throw corrupt('The PDF', new Error('it has no pages'));
  if (file.pageCount > limits.maxPages) throw tooLarge(`The PDF has more than ${limits.maxPages} pages`);
  const pages: string[][] = [];
  let characters = 0;
  for (let from = 0; from < file.pageCount; from += STEP) {
    signal?.throwIfAborted();
    for (const page of await file.readPages(from, from + STEP)) {
      characters += page.length;
      if (characters > limits.maxCharacters)
        throw tooLarge(`The PDF has more than ${limits.maxCharacters} characters`);
      pages.push(pageLines(page));
    }
  }
  return pages;
}

/** A scan, or fonts that do not say which letters their shapes are: both need text recognition. */
function requireText(pages: readonly (readonly string[])[], file: PdfFile): void {
  let [letters, unknown] = [0, 0];
  for (const lines of pages)
    for (const line of lines)
      if (MAY_BE_UNKNOWN.test(line)) for (const char of line) if (UNKNOWN.test(char)) unknown++;
  // no more than decide
  const most = Math.max(MIN_LETTERS * pages.length, unknown, 1);
  for (const lines of pages) {
    if (letters >= most) break;
    for (const char of lines.join('')) if (LETTER.test(char)) letters++;
  }
  if (unknown > letters) throw needsOcr('The PDF');
  if (letters >= MIN_LETTERS * pages.length || !file.drawsWithoutText()) {
    if (letters === 0) throw empty();
    return;
  }
  throw needsOcr('The PDF');
}
