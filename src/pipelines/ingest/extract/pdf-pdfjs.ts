/** PDF by pdf-parse, which is pdf.js: slower and larger than PDFium, and reads some damaged files that PDFium does not. */
import { PDFParse } from 'pdf-parse';
import { corrupt, password } from './failures.ts';
import type { PdfEngine, PdfFile } from './pdf-engine.ts';

export const pdfJs: PdfEngine = {
  async open(bytes, maxCharacters) {
    // a copy: pdf.js may detach what it is given
    const parser = new PDFParse({
      data: new Uint8Array(bytes),
      verbosity: 0,
      isEvalSupported: false,
      disableFontFace: true,
      useSystemFonts: false,
      stopAtErrors: false,
    });
    try {
      const info = await parser.getInfo();
      return new PdfJsFile(parser, info.total, titleOf(info.info), bytes.byteLength, maxCharacters);
    } catch (error) {
      await parser.destroy().catch(() => {});
      throw (error as Error | null)?.name === 'PasswordException'
        ? password('The PDF')
        : corrupt('The PDF', error);
    }
  },
};

const titleOf = (info: unknown): string | null => {
  const title = (info as { Title?: unknown } | undefined)?.Title;
  return typeof title === 'string' && title.trim() !== '' ? title.trim() : null;
};

class PdfJsFile implements PdfFile {
  /** Its bookmarks name their pages by references that the library does not resolve. */
  readonly bookmarks = [];
  readonly pageCount: number;
  readonly title: string | null;
  readonly #parser: PDFParse;
  readonly #bytes: number;
  readonly #maxCharacters: number;

  constructor(parser: PDFParse, pages: number, title: string | null, bytes: number, maxCharacters: number) {
    this.#parser = parser;
    this.pageCount = pages;
    this.title = title;
    this.#bytes = bytes;
    this.#maxCharacters = maxCharacters;
  }

  async readPages(from: number, to: number): Promise<string[]> {
    try {
      const { pages } = await this.#parser.getText({ first: from + 1, last: Math.min(to, this.pageCount) });
      return pages.map(({ text }) => text.slice(0, this.#maxCharacters));
    } catch (error) {
      // one page's fault is not the others'
      if (to - from <= 1) return [''];
      const pages: string[] = [];
      for (let i = from; i < to; i++) pages.push(...(await this.readPages(i, i + 1)));
      if (pages.every((page) => page === '')) throw corrupt('The PDF', error);
      return pages;
    }
  }

  /** Whether a page holds a picture is not told; a file of some size without text holds something. */
  drawsWithoutText(): boolean {
    return this.#bytes > 20_000;
  }

  async close(): Promise<void> {
    await this.#parser.destroy();
  }
}
