/**
 * Reads one PDF and says what it took: `node extract-child.ts WAY FILE [again]`, the second time if asked so. WAY is `pool` (the daemon's
 * threads, chunking included), `pdfium` or `pdf-parse` (our extraction by that engine, on this thread), or `alone` (pdf-parse as its
 * documentation shows it).
 */
import { readFile } from 'node:fs/promises';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { PDFParse } from 'pdf-parse';
import { DOCUMENT_LIMITS } from '../../src/pipelines/ingest/document.ts';
import { extractDocument } from '../../src/pipelines/ingest/extract/extract.ts';
import { DocumentWorkers } from '../../src/pipelines/ingest/workers.ts';

const [way, file, again] = process.argv.slice(2);
const content = await readFile(file ?? '');
/** Of each reading its own: who reads may take them for itself. */
let bytes = new Uint8Array(content);
const hints = { fileName: null, contentType: null };

async function read(): Promise<number> {
  if (way === 'alone') {
    const parser = new PDFParse({ data: bytes });
    const { pages } = await parser.getText();
    await parser.destroy();
    return pages.length;
  }
  if (way === 'pool') {
    const pool = new DocumentWorkers();
    const document = await pool.process(bytes, hints, DOCUMENT_LIMITS, { maxTokens: 512, overlapTokens: 64 });
    await pool.stop();
    return document.pages ?? 0;
  }
  const engine = way === 'pdf-parse' ? 'pdf-parse' : 'pdfium';
  const document = await extractDocument(bytes, hints, DOCUMENT_LIMITS, undefined, engine);
  return document.pageStarts?.length ?? 0;
}

if (again === 'again') {
  await read();
  bytes = new Uint8Array(content);
}

const delay = monitorEventLoopDelay({ resolution: 1 });
// it measures from one turn of the loop to the next: one must have been before the work
delay.enable();
await new Promise((resolve) => setTimeout(resolve, 20));
const before = process.cpuUsage();
const start = performance.now();
const pages = await read();
const seconds = (performance.now() - start) / 1000;
const cpu = process.cpuUsage(before);
await new Promise((resolve) => setTimeout(resolve, 5));
delay.disable();
console.log(
  JSON.stringify({
    pages,
    seconds,
    cpuSeconds: (cpu.user + cpu.system) / 1e6,
    stallMs: delay.max / 1e6,
    peakMb: process.resourceUsage().maxRSS / 1024,
  }),
);
