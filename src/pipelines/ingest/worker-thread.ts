/** A thread that reads documents, one at a time. It knows no database and no network, and dies with the document that kills it. */
import { parentPort } from 'node:worker_threads';
import { type DocumentChunk, DocumentError, type ProcessedDocument } from './document.ts';
import { extractDocument } from './extract/extract.ts';
import {
  CHUNKS_PER_MESSAGE,
  type ProcessRequest,
  type ThreadAnswer,
  type ThreadRequest,
} from './worker-protocol.ts';

const port = parentPort;
if (!port) throw new Error('worker-thread.ts is a worker thread; the daemon starts it.');
const answer = (message: ThreadAnswer): void => port.postMessage(message);

// a parser may leave a promise of a broken file to itself; the document's own settles, or its deadline comes
process.on('unhandledRejection', () => {});

/** Passages of the last document that have not been asked for yet. */
let waiting: readonly DocumentChunk[] = [];
let sent = 0;

port.on('message', (request: ThreadRequest) => {
  if (request.kind === 'more') sendChunks();
  else
    void processDocument(request).then(
      ({ chunks, ...facts }) => {
        waiting = chunks;
        sent = 0;
        answer({ kind: 'done', facts, chunkCount: chunks.length });
      },
      (error: unknown) => answer(failure(error)),
    );
});

function sendChunks(): void {
  const chunks = waiting.slice(sent, sent + CHUNKS_PER_MESSAGE);
  sent += chunks.length;
  if (sent >= waiting.length) waiting = [];
  answer({ kind: 'chunks', chunks });
}

async function processDocument(request: ProcessRequest): Promise<ProcessedDocument> {
  const start = performance.now();
  const document = await extractDocument(
    request.bytes,
    request.hints,
    request.limits,
    undefined,
    request.pdfEngine,
  );
  const extracted = performance.now();
  const { chunkDocument } = await import('./chunk.ts');
  const chunks = chunkDocument(document, request.chunking);
  return {
    format: document.format,
    title: document.title,
    pages: document.pageStarts?.length ?? null,
    characters: document.text.length,
    chunks,
    extractMs: Math.round(extracted - start),
    chunkMs: Math.round(performance.now() - extracted),
  };
}

function failure(error: unknown): ThreadAnswer {
  if (error instanceof DocumentError)
    return { kind: 'failed', code: error.code, message: error.message, isTransient: error.isTransient };
  // extraction answers with a DocumentError for whatever a file does: this is a fault of ours, the same on each attempt
  const message = error instanceof Error ? error.message : String(error);
  return {
    kind: 'failed',
    code: 'worker_crashed',
    message: `Reading the document failed by a fault of agentd (${message.slice(0, 200)}). Report it, with the document if you can.`,
    isTransient: false,
  };
}
