/** What is asked of a library that reads PDF, so that either can. */

export type PdfEngineName = 'pdfium' | 'pdf-parse';

/** An entry of the bookmarks that a reader shows beside the pages. */
export type PdfBookmark = {
  readonly title: string;
  /** 1 for the outermost. */
  readonly level: number;
  /** From 0. */
  readonly page: number;
};

export interface PdfFile {
  readonly pageCount: number;
  readonly title: string | null;
  readonly bookmarks: readonly PdfBookmark[];
  /** Text of pages, the first being 0 and `to` not among them. A page that cannot be read is empty. */
  readPages(from: number, to: number): Promise<string[]>;
  /** Whether a page without text draws anything, as a scan does; among those that were read. */
  drawsWithoutText(): boolean;
  close(): Promise<void>;
}

export interface PdfEngine {
  /**
   * @param bytes are not changed, and may be needed until `close`.
   * @param maxCharacters of a page; what is beyond is not read.
   * @throws DocumentError password, corrupt, too_large
   */
  open(bytes: Uint8Array, maxCharacters: number): Promise<PdfFile>;
}

/** Bookmarks beyond these are not read: a file may chain them without end. */
export const MAX_BOOKMARKS = 20_000;
export const MAX_BOOKMARK_LEVEL = 6;
