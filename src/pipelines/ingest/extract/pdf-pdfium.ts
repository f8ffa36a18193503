/**
 * PDF by PDFium, compiled to WebAssembly. Its functions are called directly, and pages are closed soon: a manual of 1,158 pages takes 36 MB
 * of its memory so, and 110 where none is.
 */
import { DocumentError } from '../document.ts';
import { corrupt, password, tooLarge } from './failures.ts';
import {
  MAX_BOOKMARK_LEVEL,
  MAX_BOOKMARKS,
  type PdfBookmark,
  type PdfEngine,
  type PdfFile,
} from './pdf-engine.ts';
import {
  giveBack,
  MAX_HEAP_BYTES,
  type Native,
  type PdfiumInstance,
  takeInstance,
} from './pdfium-instance.ts';

const PASSWORD = 4;
const SECURITY = 5;
const TEXT_OBJECT = 1;
/** Pages that stay open behind the one that is read: what they share with it, fonts above all, is not read again. */
const OPEN_PAGES = 2;
/** Where the memory has grown beyond this, pages are large, and none stays open. */
const ROOMY_BYTES = 64 * 1024 * 1024;

export const pdfium: PdfEngine = {
  async open(bytes, maxCharacters) {
    const instance = await takeInstance().catch((error: unknown) => {
      throw new DocumentError('worker_crashed', 'PDFium could not be started. It is tried again.', {
        transient: true,
        cause: error,
      });
    });
    try {
      return guarded(instance, () => new PdfiumFile(instance, bytes, maxCharacters));
    } catch (error) {
      giveBack(instance);
      throw error;
    }
  },
};

/** What the instance throws when it aborts: of memory that it did not get, or of itself. It is not used again then. */
function guarded<T>(instance: PdfiumInstance, call: () => T): T {
  try {
    return call();
  } catch (error) {
    if (error instanceof Error && error.name === 'DocumentError') throw error;
    instance.isBroken = true;
    if (instance.wasRefused() || /memory|OOM|unreachable/i.test(String(error)))
      throw tooLarge('The PDF needs too much memory');
    throw corrupt('The PDF', error instanceof Error ? error : undefined);
  }
}

class PdfiumFile implements PdfFile {
  readonly pageCount: number;
  readonly title: string | null;
  readonly bookmarks: readonly PdfBookmark[];
  readonly #instance: PdfiumInstance;
  readonly #native: Native;
  readonly #document: number;
  readonly #maxCharacters: number;
  #buffer = { address: 0, bytes: 0 };
  #drawsWithoutText = false;
  /** The pages that were read last. */
  readonly #open: number[] = [];

  constructor(instance: PdfiumInstance, bytes: Uint8Array, maxCharacters: number) {
    const { native } = instance;
    this.#instance = instance;
    this.#native = native;
    this.#maxCharacters = maxCharacters;
    if (bytes.byteLength > MAX_HEAP_BYTES / 2) throw tooLarge('The PDF needs too much memory');
    const address = this.#allocate(bytes.byteLength);
    native.HEAPU8.set(bytes, address);
    this.#document = native._FPDF_LoadMemDocument(address, bytes.byteLength, 0);
    if (this.#document === 0) {
      const code = native._FPDF_GetLastError();
      throw code === PASSWORD || code === SECURITY ? password('The PDF') : corrupt('The PDF');
    }
    this.pageCount = native._FPDF_GetPageCount(this.#document);
    this.title = this.#metaText('Title').trim() || null;
    this.bookmarks = [...this.#readBookmarks()];
  }

  async readPages(from: number, to: number): Promise<string[]> {
    return guarded(this.#instance, () => {
      const pages: string[] = [];
      for (let i = from; i < Math.min(to, this.pageCount); i++) pages.push(this.#readPage(i));
      return pages;
    });
  }

  drawsWithoutText(): boolean {
    return this.#drawsWithoutText;
  }

  async close(): Promise<void> {
    giveBack(this.#instance);
  }

  #readPage(index: number): string {
    const native = this.#native;
    const page = native._FPDF_LoadPage(this.#document, index);
    if (page === 0) return '';
    const text = native._FPDFText_LoadPage(page);
    let content = '';
    if (text !== 0) {
      const count = Math.min(native._FPDFText_CountChars(text), this.#maxCharacters);
      if (count > 0) {
        const address = this.#room(2 * (count + 1));
        const written = native._FPDFText_GetText(text, 0, count, address);
        content = this.#utf16(address, 2 * Math.max(written - 1, 0));
      }
      native._FPDFText_ClosePage(text);
    }
    if (content.trim() === '' && !this.#drawsWithoutText) this.#drawsWithoutText = this.#draws(page);
    this.#open.push(page);
    const most = native.HEAPU8.length > ROOMY_BYTES ? 0 : OPEN_PAGES;
    while (this.#open.length > most) native._FPDF_ClosePage(this.#open.shift() as number);
    return content;
  }

  #draws(page: number): boolean {
    const native = this.#native;
    const count = Math.min(native._FPDFPage_CountObjects(page), 1000);
    for (let i = 0; i < count; i++)
      if (native._FPDFPageObj_GetType(native._FPDFPage_GetObject(page, i)) !== TEXT_OBJECT) return true;
    return false;
  }

  #metaText(tag: string): string {
    const native = this.#native;
    const name = this.#allocate(tag.length + 1);
    native.HEAPU8.set(Buffer.from(`${tag}\0`, 'latin1'), name);
    const size = native._FPDF_GetMetaText(this.#document, name, 0, 0);
    const text = this.#readInto(size, (address, bytes) =>
      native._FPDF_GetMetaText(this.#document, name, address, bytes),
    );
    native.wasmExports.free(name);
    return text;
  }

  /** In reading order. Visited ones are noted: bookmarks can point at each other in a circle. */
  *#readBookmarks(): Generator<PdfBookmark> {
    const native = this.#native;
    const seen = new Set<number>();
    const first = native._FPDFBookmark_GetFirstChild(this.#document, 0);
    const stack = [{ bookmark: first, level: 1 }];
    for (let next = stack.pop(); next !== undefined && seen.size < MAX_BOOKMARKS; next = stack.pop()) {
      const { bookmark, level } = next;
      if (bookmark === 0 || seen.has(bookmark)) continue;
      seen.add(bookmark);
      const size = native._FPDFBookmark_GetTitle(bookmark, 0, 0);
      const title = this.#readInto(size, (at, bytes) => native._FPDFBookmark_GetTitle(bookmark, at, bytes));
      const page = this.#pageOf(bookmark);
      if (page >= 0 && page < this.pageCount) yield { title, level, page };
      stack.push({ bookmark: native._FPDFBookmark_GetNextSibling(this.#document, bookmark), level });
      if (level < MAX_BOOKMARK_LEVEL)
        stack.push({
          bookmark: native._FPDFBookmark_GetFirstChild(this.#document, bookmark),
          level: level + 1,
        });
    }
  }

  #pageOf(bookmark: number): number {
    const native = this.#native;
    let destination = native._FPDFBookmark_GetDest(this.#document, bookmark);
    if (destination === 0) {
      const action = native._FPDFBookmark_GetAction(bookmark);
      if (action !== 0) destination = native._FPDFAction_GetDest(this.#document, action);
    }
    return destination === 0 ? -1 : native._FPDFDest_GetDestPageIndex(this.#document, destination);
  }

  /** A title of a thousand characters is enough. */
  #readInto(size: number, read: (address: number, bytes: number) => number): string {
    if (size <= 2 || size > 4096) return '';
    const address = this.#room(size);
    read(address, size);
    return this.#utf16(address, size - 2);
  }

  #utf16(address: number, bytes: number): string {
    return new TextDecoder('utf-16le').decode(this.#native.HEAPU8.subarray(address, address + bytes));
  }

  /** The one buffer that texts are read into, as large as the largest. */
  #room(bytes: number): number {
    if (bytes > this.#buffer.bytes) {
      if (this.#buffer.address !== 0) this.#native.wasmExports.free(this.#buffer.address);
      this.#buffer = { address: 0, bytes: 0 };
      this.#buffer = { address: this.#allocate(bytes), bytes };
    }
    return this.#buffer.address;
  }

  #allocate(bytes: number): number {
    const address = this.#native.wasmExports.malloc(Math.max(bytes, 1));
    if (address === 0) throw tooLarge('The PDF needs too much memory');
    return address;
  }
}
