/** What the stages of ingestion hand to each other, and how they fail. */

/** Formats whose text is read. */
export type DocumentFormat =
  | 'pdf'
  | 'docx'
  | 'pptx'
  | 'xlsx'
  | 'odt'
  | 'epub'
  | 'html'
  | 'markdown'
  | 'text'
  | 'csv'
  | 'json';

/** What is known of a file before its bytes are looked at. Hints: the bytes decide. */
export type DocumentHints = {
  readonly fileName: string | null;
  /** MIME type as declared by whoever stored or served it. */
  readonly contentType: string | null;
};

/**
 * A document's text, and where its structure lies in it. Every offset is one of `text`, in UTF-16 code units.
 *
 * The text is well-formed: no NUL, no lone surrogate, lines end with \n.
 */
export type ExtractedDocument = {
  readonly format: DocumentFormat;
  readonly title: string | null;
  readonly text: string;
  /** How headings, tables and code are written in the text: as Markdown, or not at all. */
  readonly markup: 'markdown' | 'plain';
  /** Where each page (slide, sheet) begins, the first at 0; null where the format has none. Ascending. */
  readonly pageStarts: readonly number[] | null;
};

/** A passage. `text.slice(start, end)` is its body. */
export type DocumentChunk = {
  /** Place among the document's chunks, from 0. */
  readonly index: number;
  readonly start: number;
  readonly end: number;
  readonly content: string;
  /** The page on which it begins, from 1; null where there are no pages. */
  readonly page: number | null;
  /** Titles of the headings that it lies under, outermost first. */
  readonly headingPath: readonly string[];
  /** What is embedded: heading path and, within a table, its header row, before the body. */
  readonly embedText: string;
  /** Tokens of `embedText`; never over the limit. */
  readonly tokens: number;
};

/** A document as the worker thread returns it. */
export type ProcessedDocument = {
  readonly format: DocumentFormat;
  readonly title: string | null;
  readonly pages: number | null;
  readonly characters: number;
  readonly chunks: readonly DocumentChunk[];
  /** Milliseconds in each stage. */
  readonly extractMs: number;
  readonly chunkMs: number;
};

export { DocumentError, type DocumentErrorCode } from '../../providers/document-error.ts';

/** Bounds on one document, whatever it is. */
export type DocumentLimits = {
  readonly maxBytes: number;
  readonly maxPages: number;
  /** Characters of extracted text. */
  readonly maxCharacters: number;
  /** Entries of a zip archive, and bytes that all of them inflate to. */
  readonly maxEntries: number;
  readonly maxInflatedBytes: number;
  /** Wall time of extraction and chunking together, in milliseconds. */
  readonly timeoutMs: number;
};

export const DOCUMENT_LIMITS: DocumentLimits = {
  maxBytes: 100 * 1024 * 1024,
  maxPages: 10_000,
  maxCharacters: 20_000_000,
  maxEntries: 10_000,
  maxInflatedBytes: 500 * 1024 * 1024,
  timeoutMs: 5 * 60_000,
};
