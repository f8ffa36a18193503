/**
 * Instances of PDFium. Each document finds the memory of a new one, whatever the one before it did: what it left behind is
 * overwritten with what was there at first. A new instance would cost each document some milliseconds, and a collection of the whole heap,
 * which its memory of 16 MB brings about.
 */
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { init } from '@embedpdf/pdfium';

/** Memory of one instance. The largest of our manuals takes 39 MB; a file that wants more than this is hostile or a book of maps. */
export const MAX_HEAP_BYTES = 512 * 1024 * 1024;
/** An instance that has grown beyond this is not kept: memory of WebAssembly never shrinks. */
const MOST_KEPT_BYTES = 64 * 1024 * 1024;
/** What the file system says of each file that is to be opened: there is none. */
const ENOENT = -44;

/** Those of PDFium's functions that are used; the package declares a part of them. */
export type Native = {
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
  readonly wasmExports: {
    malloc(size: number): number;
    free(address: number): void;
    emscripten_stack_get_current(): number;
    _emscripten_stack_alloc(size: number): number;
  };
  /** Another array each time that the memory grows. */
  readonly HEAPU8: Uint8Array;
};

/** An instance with the memory that it had at first. */
export type PdfiumInstance = {
  readonly native: Native;
  /** Set by whoever saw it abort. */
  isBroken: boolean;
  /** Whether it was refused more memory. */
  readonly wasRefused: () => boolean;
  /** Its memory before the first document, up to the last byte that is not 0. */
  readonly image: Uint8Array;
  readonly stack: number;
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
  compiled ??= readFile(createRequire(import.meta.url).resolve('@embedpdf/pdfium/pdfium.wasm')).then((wasm) =>
    WebAssembly.compile(wasm),
  );
  // the next document tries again
  compiled.catch(() => {
    compiled = null;
  });
  return compiled;
};

/** The instance that no document has. */
let spare: PdfiumInstance | null = null;

/** An instance for one document, until it is given back. */
export async function takeInstance(): Promise<PdfiumInstance> {
  const kept = spare;
  spare = null;
  if (kept) return kept;
  let isRefused = false;
  const native = await instantiate(() => {
    isRefused = true;
  });
  return {
    native,
    isBroken: false,
    wasRefused: () => isRefused,
    image: withoutZeros(native.HEAPU8),
    stack: native.wasmExports.emscripten_stack_get_current(),
  };
}

/** Makes an instance what it was before its document, for the next one; or drops it. Its document's addresses mean nothing then. */
export function giveBack(instance: PdfiumInstance): void {
  const { native, image, stack } = instance;
  const memory = native.HEAPU8;
  // beside its memory it has the place of the stack, which is where it was unless a call did not end
  const isWhole = !instance.isBroken && native.wasmExports.emscripten_stack_get_current() === stack;
  if (spare || !isWhole || instance.wasRefused() || memory.length > MOST_KEPT_BYTES) return;
  memory.set(image);
  memory.fill(0, image.length);
  spare = instance;
}

/** A copy up to the last byte that is not 0. */
function withoutZeros(bytes: Uint8Array): Uint8Array {
  let end = bytes.length;
  while (end > 0 && bytes[end - 1] === 0) end--;
  return bytes.slice(0, end);
}

/** @param onRefused told when it wanted more memory than it may have */
async function instantiate(onRefused: () => void): Promise<Native> {
  const module = await compile();
  const options = {
    // a file's oddities are not for the log
    print: () => {},
    printErr: () => {},
    instantiateWasm(imports: Imports, done: (instance: Instance) => void) {
      const grow = imports.env?.emscripten_resize_heap as (size: number) => boolean;
      // the module itself may ask for 2 GB; refused, it gives up the document
      const bounded = (size: number): boolean => {
        if (size >>> 0 <= MAX_HEAP_BYTES) return grow(size);
        onRefused();
        return false;
      };
      const instance = new WebAssembly.Instance(module, {
        ...imports,
        // it needs no files; what one document wrote into one the next might read
        env: { ...imports.env, emscripten_resize_heap: bounded, __syscall_openat: () => ENOENT },
      });
      done(instance);
      return instance.exports;
    },
  };
  const native = (await init(options as never)).pdfium as unknown as Native;
  native._FPDF_InitLibraryWithConfig({});
  return native;
}
