/**
 * PDF by PDFium, compiled to WebAssembly. Its functions are called directly: the library's own page objects are never closed, which
 * takes 247 MB for a manual of 2,415 pages where closing each takes 122.
 *
 * Each document gets an instance of its own, so that what one file does to the memory is over when it is.
 */
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { PDFiumModule } from '@hyzyla/pdfium';
import { corrupt, password, tooLarge } from './failures.ts';
import {
  MAX_BOOKMARK_LEVEL,
  MAX_BOOKMARKS,
  type PdfBookmark,
  type PdfEngine,
  type PdfFile,
} from './pdf-engine.ts';

/** Memory of one instance. The largest of our manuals takes 39 MB; a file that wants more than this is hostile or a book of maps. */
const MAX_HEAP_BYTES = 512 * 1024 * 1024;
const PASSWORD = 4;
const SECURITY = 5;
const TEXT_OBJECT = 1;

/** Those of PDFium's functions that are used; the package declares a part of them. */
type Native = {
  _FPDF_InitLibraryWithConfig(config: object): void;
  _FPDF_LoadMemDocument(bytes: number, size: number, password: number): number;
  _FPDF_GetLastError(): number;
  _FPDF_GetPageCount(document: number): number;
  _FPDF_LoadPage(document: number, page: number): number;
  _FPDF_ClosePage(page: number): void;
  _FPDFText_LoadPage(page: number): number;
  _FPDFText_ClosePage(text: number): void;
  _FPDFText_CountChars(text: number): number;
  _FPDFText_GetText(text: number, from: number, count: number, buffer: number): number;
  _FPDFPage_CountObjects(page: number): number;
  _FPDFPage_GetObject(page: number, index: number): number;
  _FPDFPageObj_GetType(object: number): number;
  _FPDF_GetMetaText(document: number, tag: number, buffer: number, size: number): number;
  _FPDFBookmark_GetFirstChild(document: number, bookmark: number): number;
  _FPDFBookmark_GetNextSibling(document: number, bookmark: number): number;
  _FPDFBookmark_GetTitle(bookmark: number, buffer: number, size: number): number;
  _FPDFBookmark_GetDest(document: number, bookmark: number): number;
  _FPDFBookmark_GetAction(bookmark: number): number;
  _FPDFAction_GetDest(document: number, action: number): number;
  _FPDFDest_GetDestPageIndex(document: number, destination: number): number;
  readonly wasmExports: { malloc(size: number): number; free(address: number): void };
  /** Another array each time that the memory grows. */
  readonly HEAPU8: Uint8Array;
};

/** What is used of WebAssembly: the language's own types of it come with those of browsers, which this project has not. */
type Imports = Record<string, Record<string, unknown>>;
type Instance = { readonly exports: object };
const { WebAssembly } = globalThis as unknown as {
  readonly WebAssembly: {
    compile(bytes: Uint8Array): Promise<object>;
    readonly Instance: new (module: object, imports: Imports) => Instance;
  };
};

let compiled: Promise<object> | null = null;
const compile = (): Promise<object> => {
  compiled ??= readFile(createRequire(import.meta.url).resolve('@hyzyla/pdfium/pdfium.wasm')).then((wasm) =>
    WebAssembly.compile(wasm),
  );
  return compiled;
};

async function instantiate(): Promise<Native> {
  const module = await compile();
  const options = {
    // a file's oddities are not for the log
    print: () => {},
    printErr: () => {},
    instantiateWasm(imports: Imports, done: (instance: Instance) => void) {
      const grow = imports.env?.emscripten_resize_heap as (size: number) => boolean;
      // the module itself may ask for 2 GB; refused, it gives up the document
      const bounded = (size: number): boolean => size >>> 0 <= MAX_HEAP_BYTES && grow(size);
      const instance = new WebAssembly.Instance(module, {
        ...imports,
        env: { ...imports.env, emscripten_resize_heap: bounded },
      });
      done(instance);
      return instance.exports;
    },
  };
  const native = (await PDFiumModule(options as never)) as unknown as Native;
  native._FPDF_InitLibraryWithConfig({});
  return native;
}

export const pdfium: PdfEngine = {
  async open(bytes, maxCharacters) {
    const native = await instantiate();
    return guarded(() => new PdfiumFile(native, bytes, maxCharacters));
  },
};

/** What the instance throws when it aborts: of memory that it did not get, or of itself. */
function guarded<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    if (error instanceof Error && error.name === 'DocumentError') throw error;
    if (/memory|OOM|unreachable/i.test(String(error))) throw tooLarge('The PDF needs too much memory');
    throw corrupt('The PDF', error instanceof Error ? error : undefined);
  }
}

class PdfiumFile implements PdfFile {
  readonly pageCount: number;
  readonly title: string | null;
  readonly bookmarks: readonly PdfBookmark[];
  readonly #native: Native;
  readonly #document: number;
  readonly #maxCharacters: number;
  #buffer = { address: 0, bytes: 0 };
  #drawsWithoutText = false;

  constructor(native: Native, bytes: Uint8Array, maxCharacters: number) {
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
    return guarded(() => {
      const pages: string[] = [];
      for (let i = from; i < Math.min(to, this.pageCount); i++) pages.push(this.#readPage(i));
      return pages;
    });
  }

  drawsWithoutText(): boolean {
    return this.#drawsWithoutText;
  }

  /** The instance goes with the last reference to it. */
  async close(): Promise<void> {}

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
    native._FPDF_ClosePage(page);
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
