/** A file's text: decides the format by its bytes, reads it within limits, and fails with a reason that its owner understands. */
import {
  DocumentError,
  type DocumentFormat,
  type DocumentHints,
  type DocumentLimits,
  type ExtractedDocument,
} from '../document.ts';
import { openArchive } from './archive.ts';
import { extractCsv } from './csv.ts';
import { extractDocx } from './docx.ts';
import { extractEpub } from './epub.ts';
import { corrupt, empty, tooLarge } from './failures.ts';
import { extractHtml } from './html.ts';
import { extractJson } from './json.ts';
import { extractOdt } from './odt.ts';
import { extractPdf } from './pdf.ts';
import type { PdfEngineName } from './pdf-engine.ts';
import { extractMarkdown, extractText } from './plain.ts';
import { extractPptx } from './pptx.ts';
import { sniff, sniffArchive } from './sniff.ts';
import { extractXlsx } from './xlsx.ts';

/**
 * Runs on the thread that calls it, for as long as the file asks for: daemons call it through `workers.ts`, where a deadline and a
 * memory limit end it. `signal` is looked at between steps.
 *
 * @throws DocumentError unsupported, empty, needs_ocr, password, corrupt, too_large; the signal's reason
 */
export async function extractDocument(
  bytes: Uint8Array,
  hints: DocumentHints,
  limits: DocumentLimits,
  signal?: AbortSignal,
  pdfEngine: PdfEngineName = 'pdfium',
): Promise<ExtractedDocument> {
  signal?.throwIfAborted();
  if (bytes.byteLength > limits.maxBytes) throw tooLarge(`The file has more than ${limits.maxBytes} bytes`);
  if (bytes.byteLength === 0) throw empty();
  const document = await read(bytes, hints, limits, signal, pdfEngine).catch((error: unknown) => {
    if (error instanceof DocumentError || signal?.aborted) throw error;
    // whatever else a library throws is about the file: this code holds no connection and no state
    throw corrupt('The file', error);
  });
  if (document.text.length > limits.maxCharacters)
    throw tooLarge(`The document has more than ${limits.maxCharacters} characters`);
  if (!/[\p{L}\p{N}\p{S}]/u.test(document.text)) throw empty();
  return document;
}

async function read(
  bytes: Uint8Array,
  hints: DocumentHints,
  limits: DocumentLimits,
  signal: AbortSignal | undefined,
  pdfEngine: PdfEngineName,
): Promise<ExtractedDocument> {
  const sniffed = sniff(bytes, hints);
  if (sniffed === 'pdf') return extractPdf(bytes, limits, pdfEngine, signal);
  if (sniffed === 'html') return extractHtml(bytes, hints, limits);
  if (sniffed === 'markdown') return extractMarkdown(bytes, hints);
  if (sniffed === 'csv') return extractCsv(bytes, hints, limits);
  // what begins like JSON and is not may still be text; only what is called JSON is damaged JSON
  if (sniffed === 'json')
    return isCalledJson(hints) ? extractJson(bytes, hints, limits) : jsonOrText(bytes, hints, limits);
  if (sniffed === 'text') return extractText(bytes, hints);
  const archive = await openArchive(bytes, limits, signal);
  const format: DocumentFormat = await sniffArchive(archive);
  if (format === 'docx') return extractDocx(archive, limits);
  if (format === 'pptx') return extractPptx(archive, limits, signal);
  if (format === 'xlsx') return extractXlsx(archive, limits, signal);
  if (format === 'odt') return extractOdt(archive, limits);
  return extractEpub(archive, limits, signal);
}

const isCalledJson = ({ fileName, contentType }: DocumentHints): boolean =>
  /\.(json|jsonl|ndjson|geojson)$/i.test(fileName ?? '') || /json/i.test(contentType ?? '');

function jsonOrText(bytes: Uint8Array, hints: DocumentHints, limits: DocumentLimits): ExtractedDocument {
  try {
    return extractJson(bytes, hints, limits);
  } catch (error) {
    if (error instanceof DocumentError && error.code === 'corrupt') return extractText(bytes, hints);
    throw error;
  }
}
