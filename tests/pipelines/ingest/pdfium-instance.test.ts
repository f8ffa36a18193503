import { expect, test } from 'vitest';
import { pdfium } from '../../../src/pipelines/ingest/extract/pdf-pdfium.ts';
import {
  giveBack,
  type PdfiumInstance,
  takeInstance,
} from '../../../src/pipelines/ingest/extract/pdfium-instance.ts';
import { codeOf, fixture, pdfOfPages, pdfOfStrokes } from './documents.ts';

const MB = 1024 * 1024;

/** Two at once: one of them is new. */
async function takeTwo(): Promise<[PdfiumInstance, PdfiumInstance]> {
  return [await takeInstance(), await takeInstance()];
}

test('what a document did to the memory is over when the next one comes', async () => {
  const before = await takeInstance();
  const { native } = before;
  const first = native.HEAPU8.length;
  const room = native.wasmExports.malloc(30 * MB);
  native.HEAPU8.fill(7, room, room + 30 * MB);
  expect(native.HEAPU8.length).toBeGreaterThan(first);
  giveBack(before);
  const refused = fixture('encrypted.pdf');
  const damaged = fixture('handbook.pdf').subarray(0, 20_000);
  const large = pdfOfPages(Array.from({ length: 400 }, (_, i) => [`Sheet ${i}`]));
  let pages = 0;
  for (const bytes of [fixture('columns-groff.pdf'), refused, fixture('japanese.pdf'), damaged, large]) {
    const file = await pdfium.open(bytes, 1_000_000).catch(() => null);
    // the last page is left
    if (file) pages += (await file.readPages(0, Math.max(1, file.pageCount - 1))).length;
    await file?.close();
  }
  expect(pages).toBeGreaterThan(400);
  const [used, fresh] = await takeTwo();
  expect(used, 'the same one has read all of them').toBe(before);
  expect(fresh).not.toBe(before);
  // what it has grown by is empty
  expect(
    Buffer.compare(used.native.HEAPU8.subarray(0, fresh.native.HEAPU8.length), fresh.native.HEAPU8),
  ).toBe(0);
  expect(used.native.HEAPU8.subarray(fresh.native.HEAPU8.length).every((byte) => byte === 0)).toBe(true);
  giveBack(used);
});

test('an instance that grew, aborted, or was left in the middle of a call is not used again', async () => {
  const grown = await takeInstance();
  expect(grown.native.wasmExports.malloc(70 * MB)).not.toBe(0);
  giveBack(grown);
  const broken = await takeInstance();
  expect(broken).not.toBe(grown);
  broken.isBroken = true;
  giveBack(broken);
  const left = await takeInstance();
  expect(left).not.toBe(broken);
  left.native.wasmExports._emscripten_stack_alloc(64);
  giveBack(left);
  const [last] = await takeTwo();
  expect(last).not.toBe(left);
});

test('a page that takes more memory than PDFium may have is too large, and the next document gets another instance', async () => {
  const kept = await takeInstance();
  giveBack(kept);
  const file = await pdfium.open(pdfOfStrokes(4_000_000), 1_000_000);
  expect(await codeOf(file.readPages(0, 1))).toBe('too_large');
  await file.close();
  const next = await pdfium.open(fixture('handbook.pdf'), 1_000_000);
  expect((await next.readPages(0, 1))[0]).toContain('coffee');
  await next.close();
  expect(await takeInstance()).not.toBe(kept);
});
