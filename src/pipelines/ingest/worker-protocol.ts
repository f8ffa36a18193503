/** What the daemon's thread and the threads that read documents say to each other. */
import type { ChunkOptions } from './chunk.ts';
import type {
  DocumentChunk,
  DocumentErrorCode,
  DocumentHints,
  DocumentLimits,
  ProcessedDocument,
} from './document.ts';
import type { PdfEngineName } from './extract/pdf-engine.ts';

/** To the thread: read this. The bytes are handed over, not copied. */
export type ProcessRequest = {
  readonly kind: 'process';
  readonly bytes: Uint8Array;
  readonly hints: DocumentHints;
  readonly limits: DocumentLimits;
  readonly chunking: ChunkOptions;
  readonly pdfEngine: PdfEngineName;
};

/** To the thread: the next passages, please. They are asked for, so that they never arrive faster than the daemon can take them. */
export type MoreRequest = { readonly kind: 'more' };

export type ThreadRequest = ProcessRequest | MoreRequest;

export type ThreadAnswer =
  | { readonly kind: 'done'; readonly facts: Omit<ProcessedDocument, 'chunks'>; readonly chunkCount: number }
  | { readonly kind: 'chunks'; readonly chunks: readonly DocumentChunk[] }
  | {
      readonly kind: 'failed';
      readonly code: DocumentErrorCode;
      readonly message: string;
      readonly isTransient: boolean;
    };

/** Passages in a message: about half a megabyte, which takes the receiving thread a millisecond or two. */
export const CHUNKS_PER_MESSAGE = 100;
