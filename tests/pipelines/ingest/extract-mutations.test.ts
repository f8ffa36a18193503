import { afterAll, expect, test } from 'vitest';
import {
  DOCUMENT_LIMITS,
  DocumentError,
  type DocumentErrorCode,
} from '../../../src/pipelines/ingest/document.ts';
import { DocumentWorkers } from '../../../src/pipelines/ingest/workers.ts';
import { fixture } from './documents.ts';

/** How many mutated files; AGENTD_MUTATIONS=20000 for a long look. */
const COUNT = Number(process.env.AGENTD_MUTATIONS ?? 2000);
const SEED = Number(process.env.AGENTD_MUTATION_SEED ?? 20_260_101);

const NAMES = [
  'handbook.pdf',
  'columns-groff.pdf',
  'japanese.pdf',
  'scan.pdf',
  'encrypted.pdf',
  'handbook-libreoffice.docx',
  'handbook-pandoc.docx',
  'handbook.odt',
  'handbook.epub',
  'slides-libreoffice.pptx',
  'slides-pandoc.pptx',
  'deliveries-libreoffice.xlsx',
  'deliveries-openpyxl.xlsx',
  'handbook.html',
  'colorsys-sphinx.html',
  'japanese-shift-jis.html',
  'handbook.md',
  'windows-1252.txt',
  'deliveries.csv',
  'growers.json',
];
const ORIGINALS = NAMES.map((name) => fixture(name));

/** The fates that a damaged file may have; what needs a network, a store or a fault of ours is not among them. */
const FATES: readonly DocumentErrorCode[] = [
  'corrupt',
  'empty',
  'needs_ocr',
  'password',
  'too_large',
  'unsupported',
];

/** mulberry32: the same files on every machine. */
function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

/** Flipped bytes, a cut at either end, a piece gone, a piece twice, a piece of another file in its place. */
function mutate(index: number): Uint8Array {
  const below = random(SEED + index);
  const original = ORIGINALS[index % ORIGINALS.length] as Uint8Array;
  const { length } = original;
  const kind = below(6);
  const at = below(length);
  const piece = 1 + below(Math.min(length, 4000));
  if (kind === 0) {
    const copy = original.slice();
    for (let i = 0; i < 1 + below(60); i++) copy[below(length)] = below(256);
    return copy;
  }
  if (kind === 1) return original.slice(0, at + 1);
  if (kind === 2) return original.slice(Math.min(at, 2000));
  const head = original.subarray(0, at);
  if (kind === 3) return concat(head, original.subarray(at + piece));
  if (kind === 4) return concat(head, original.subarray(at, at + piece), original.subarray(at));
  const other = ORIGINALS[below(ORIGINALS.length)] as Uint8Array;
  const from = below(other.length);
  return concat(head, other.subarray(from, from + piece), original.subarray(at + piece));
}

const concat = (...parts: readonly Uint8Array[]): Uint8Array => new Uint8Array(Buffer.concat(parts));

const pool = new DocumentWorkers({ threads: 2 });
afterAll(() => pool.stop());

test(`each of ${COUNT} damaged files is text or a reason; no thread dies of one and none stalls`, async () => {
  const fates = new Map<string, number>();
  const wrong: string[] = [];
  let next = 0;
  const lane = async (): Promise<void> => {
    for (let index = next++; index < COUNT; index = next++) {
      const bytes = mutate(index);
      // its own name for half of them: that is how most damaged files arrive
      const fileName = index % 2 === 0 ? (NAMES[index % NAMES.length] ?? null) : null;
      let fate = 'text';
      try {
        const limits = { ...DOCUMENT_LIMITS, timeoutMs: 30_000 };
        const document = await pool.process(bytes, { fileName, contentType: null }, limits, {
          maxTokens: 256,
          overlapTokens: 32,
        });
        if (document.chunks.length === 0) fate = 'text without passages';
      } catch (error) {
        fate = error instanceof DocumentError ? error.code : `${error}`;
      }
      fates.set(fate, (fates.get(fate) ?? 0) + 1);
      if (fate !== 'text' && !FATES.some((known) => known === fate))
        wrong.push(`${index} (${NAMES[index % NAMES.length]}): ${fate}`);
    }
  };
  await Promise.all([lane(), lane()]);
  expect(wrong).toEqual([]);
  // the corpus is one: some of it is still text, some is not
  expect(fates.get('text')).toBeGreaterThan(COUNT / 10);
  expect(fates.get('corrupt')).toBeGreaterThan(COUNT / 20);
}, 600_000);
