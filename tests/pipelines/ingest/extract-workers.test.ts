import { monitorEventLoopDelay } from 'node:perf_hooks';
import { afterEach, expect, test } from 'vitest';
import { DOCUMENT_LIMITS, type ProcessedDocument } from '../../../src/pipelines/ingest/document.ts';
import { DocumentWorkers, type DocumentWorkersOptions } from '../../../src/pipelines/ingest/workers.ts';
import { handClock } from '../../support/hand-clock.ts';
import { codeOf, extract, fixture, NO_HINTS, pdfOfPages, pdfThatInflates } from './documents.ts';

const CHUNKING = { maxTokens: 128, overlapTokens: 16 };
const started: DocumentWorkers[] = [];
const workers = (options: DocumentWorkersOptions = {}): DocumentWorkers => {
  const pool = new DocumentWorkers(options);
  started.push(pool);
  return pool;
};
afterEach(async () => {
  await Promise.all(started.splice(0).map((pool) => pool.stop()));
});

const process = (
  pool: DocumentWorkers,
  bytes: Uint8Array,
  signal?: AbortSignal,
): Promise<ProcessedDocument> => pool.process(bytes, NO_HINTS, DOCUMENT_LIMITS, CHUNKING, signal);

/** Keeps a thread busy for longer than any test: a document of nothing but one word repeated, at the limit of size. */
const endless = (): Uint8Array => new TextEncoder().encode('coffee is a plant, and '.repeat(800_000));

/** Lines of so many pages that differ. */
const sheets = (count: number): string[][] =>
  Array.from({ length: count }, (_, i) =>
    Array.from(
      { length: 30 },
      (_, n) => `Sheet ${i} and line ${n * 13} of it speak of coffee, of its growers and of ports.`,
    ),
  );

test('a document comes back with its passages, which are slices of its text', async () => {
  const pool = workers();
  const { text, pageStarts } = await extract(fixture('handbook.pdf'));
  const document = await process(pool, fixture('handbook.pdf'));
  expect(document).toMatchObject({
    format: 'pdf',
    title: 'Handbook of the coffee importer',
    pages: 2,
    characters: text.length,
  });
  expect(document.chunks.length).toBeGreaterThan(1);
  for (const [i, chunk] of document.chunks.entries()) {
    expect(chunk.index).toBe(i);
    expect(text.slice(chunk.start, chunk.end)).toBe(chunk.content);
    expect(chunk.page).toBe(chunk.start < (pageStarts?.[1] ?? 0) ? 1 : 2);
    expect(chunk.tokens).toBeLessThanOrEqual(CHUNKING.maxTokens);
  }
  expect(document.chunks.at(-1)?.headingPath.at(-1)).toContain('Insurance');
});

test('bytes that fill their buffer are handed over; of a slice the caller keeps its own', async () => {
  const pool = workers();
  const whole = fixture('handbook.html');
  await process(pool, whole);
  expect(whole.byteLength).toBe(0);
  const large = new Uint8Array(100_000);
  large.set(fixture('handbook.html'), 10);
  const slice = large.subarray(10, 10 + fixture('handbook.html').byteLength);
  await process(pool, slice);
  expect(slice.byteLength).toBeGreaterThan(0);
  const pooled = Buffer.from('a few words from Node’s shared pool');
  expect((await process(pool, pooled)).characters).toBe(35);
  expect(pooled.toString()).toBe('a few words from Node’s shared pool');
});

test('a document’s failure is its reason, and the thread goes on', async () => {
  const pool = workers();
  expect(await codeOf(process(pool, fixture('encrypted.pdf')))).toBe('password');
  expect(await codeOf(process(pool, fixture('scan.pdf')))).toBe('needs_ocr');
  expect((await process(pool, fixture('handbook.odt'))).format).toBe('odt');
  expect(pool.threads).toBe(1);
});

test('a deadline ends the thread in the middle of its work; the document that waits gets a new one', async () => {
  const clock = handClock();
  const killed: string[] = [];
  const pool = workers({ clock, onKilled: (reason) => killed.push(reason) });
  const slow = process(pool, endless());
  const code = codeOf(slow);
  const next = process(pool, fixture('handbook.html'));
  await clock.advance(DOCUMENT_LIMITS.timeoutMs);
  expect(await code).toBe('timeout');
  expect((await next).format).toBe('html');
  expect(pool.threads).toBe(1);
  expect(killed).toEqual(['timeout']);
});

test('an abort ends the document that is being read, or that waits, with its own reason', async () => {
  const killed: string[] = [];
  const pool = workers({ onKilled: (reason) => killed.push(reason) });
  const [first, second] = [new AbortController(), new AbortController()];
  const reading = process(pool, endless(), first.signal);
  const waiting = process(pool, fixture('handbook.html'), second.signal);
  const last = process(pool, fixture('handbook.md'));
  second.abort(new Error('no longer wanted'));
  await expect(waiting).rejects.toThrow('no longer wanted');
  first.abort(new Error('draining'));
  await expect(reading).rejects.toThrow('draining');
  expect(killed, 'of one that waits there is no thread').toEqual(['aborted']);
  expect((await last).format).toBe('markdown');
  const late = AbortSignal.abort(new Error('too late'));
  await expect(process(pool, fixture('handbook.md'), late)).rejects.toThrow('too late');
});

test('a thread out of memory fails that document alone', async () => {
  const killed: string[] = [];
  const pool = workers({ heapMb: 48, onKilled: (reason) => killed.push(reason) });
  const hog = new TextEncoder().encode('a,b,c,d\n'.repeat(3_000_000));
  expect(await codeOf(process(pool, hog))).toBe('too_large');
  expect((await process(pool, fixture('handbook.html'))).format).toBe('html');
  expect(killed).toEqual(['memory']);
});

test('a thread whose buffers grow, which are no part of its heap, fails that document alone', async () => {
  const killed: string[] = [];
  const pool = workers({ pdfEngine: 'pdf-parse', growthMb: 100, onKilled: (reason) => killed.push(reason) });
  expect(await codeOf(process(pool, pdfThatInflates(300)))).toBe('too_large');
  expect(killed).toEqual(['memory']);
  expect((await process(pool, fixture('handbook.html'))).format).toBe('html');
});

test('of documents that are read at once the one that holds the most memory is ended, and the others are read', async () => {
  const killed: string[] = [];
  const pool = workers({
    threads: 2,
    pdfEngine: 'pdf-parse',
    growthMb: 400,
    onKilled: (reason) => killed.push(reason),
  });
  // made before, for what grows here would count as well
  const [large, bomb] = [pdfOfPages(sheets(1500)), pdfThatInflates(300)];
  const innocent = process(pool, large);
  expect(await codeOf(process(pool, bomb))).toBe('too_large');
  expect((await innocent).pages).toBe(1500);
  expect(killed).toEqual(['memory']);
});

test('threads start on demand, no more than allowed, and end when idle', async () => {
  const clock = handClock();
  const pool = workers({ clock, threads: 2, idleMs: 1000 });
  expect(pool.threads).toBe(0);
  const documents = ['handbook.html', 'handbook.md', 'handbook.epub', 'handbook.odt'].map((name) =>
    process(pool, fixture(name)),
  );
  expect(pool.threads, 'most documents are read before another would be ready').toBe(1);
  await clock.advance(200);
  expect(pool.threads).toBe(2);
  expect((await Promise.all(documents)).map(({ format }) => format)).toEqual([
    'html',
    'markdown',
    'epub',
    'odt',
  ]);
  expect(pool.threads).toBe(2);
  await clock.advance(1000);
  await pool.stop();
  expect(pool.threads).toBe(0);
  await expect(process(pool, fixture('handbook.md'))).rejects.toThrow('stopped');
});

test('stopping rejects what is being read and what waits', async () => {
  const pool = workers();
  const [reading, waiting] = [process(pool, endless()), process(pool, fixture('handbook.md'))];
  const both = Promise.allSettled([reading, waiting]);
  await pool.stop();
  expect((await both).map(({ status }) => status)).toEqual(['rejected', 'rejected']);
});

test('the thread that asks goes on while a document is read', async () => {
  const pool = workers();
  const bytes = pdfOfPages(sheets(1500));
  const start = performance.now();
  const delay = monitorEventLoopDelay({ resolution: 5 });
  delay.enable();
  const document = await process(pool, bytes);
  delay.disable();
  const took = performance.now() - start;
  expect(document.pages).toBe(1500);
  expect(document.chunks.length).toBeGreaterThan(1000);
  // bench/extract.ts measures the 25 ms; here other tests run beside it, and a document read on this thread would stall it throughout
  expect(delay.percentile(99) / 1e6).toBeLessThan(Math.max(200, took / 3));
});
