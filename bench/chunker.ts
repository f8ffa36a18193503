/**
 * The chunker at 512 tokens with 64 of overlap: MB a second beside LangChain's recursive splitter by tokens and beside tokenizing alone,
 * how many chunks end within a sentence, and how many a new paragraph changes.
 *
 * The text is what pdftotext makes of the manuals of the Debian packages r-doc-pdf and octave-doc, installed or unpacked below
 * BENCH_MANUALS. LangChain counts with gpt-tokenizer, the fastest one there is; with js-tiktoken, which it comes with, it is slower.
 */
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { RecursiveCharacterTextSplitter } from '@langchain/textsplitters';
import { countTokens } from 'gpt-tokenizer/encoding/cl100k_base';
import { getEncoding } from 'js-tiktoken';
import { chunkDocument } from '../src/pipelines/ingest/chunk.ts';
import type { ExtractedDocument } from '../src/pipelines/ingest/document.ts';
import { cutAfter } from '../src/pipelines/ingest/segments.ts';
import type { Result } from './support/result.ts';
import { median } from './support/stats.ts';

const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 3);
const BYTES = 10_000_000;
const PARAGRAPHS = 100;
const LIMITS = { maxTokens: 512, overlapTokens: 64 };
const MANUALS = [
  'usr/share/doc/octave/octave.pdf',
  ...['fullrefman', 'R-exts', 'R-intro', 'R-ints', 'R-admin', 'R-lang', 'R-data', 'R-FAQ'].map(
    (name) => `usr/share/R/doc/manual/${name}.pdf`,
  ),
];

const gpt = (text: string): number =>
  countTokens(text, { allowedSpecial: new Set(), disallowedSpecial: new Set() });

export async function bench(): Promise<Result> {
  const root = process.env.BENCH_MANUALS ?? '/';
  const manuals = MANUALS.map((path) =>
    execFileSync('pdftotext', [join(root, path), '-'], { encoding: 'utf8', maxBuffer: 2 ** 28 }),
  );
  const text = manuals.join('\n');
  const large = text.repeat(Math.ceil(BYTES / Buffer.byteLength(text))).slice(0, BYTES);
  const megabytes = Buffer.byteLength(large) / 1e6;
  const encoding = getEncoding('cl100k_base');
  const langChain = splitter(gpt);
  const slowChain = splitter((part) => encoding.encode(part, [], []).length);

  const rates: Record<'ours' | 'langChain' | 'raw', number[]> = { ours: [], langChain: [], raw: [] };
  const measured = async (into: number[] | null, work: () => unknown): Promise<number> => {
    const started = performance.now();
    await work();
    const rate = megabytes / ((performance.now() - started) / 1000);
    into?.push(rate);
    return rate;
  };
  for (let round = -1; round < ROUNDS; round++) {
    // the first round warms the caches of all three
    await measured(round < 0 ? null : rates.ours, () => chunkDocument(documentOf(large), LIMITS));
    await measured(round < 0 ? null : rates.langChain, () => langChain.splitText(large));
    await measured(round < 0 ? null : rates.raw, () => gpt(large));
  }
  const js = await measured(null, () => slowChain.splitText(large));

  const ours = chunkDocument(documentOf(text), LIMITS);
  const theirs = placesOf(text, await langChain.splitText(text));
  const [oursWithin, theirsWithin] = [shareWithin(text, ours), shareWithin(text, theirs)];
  const changed = changedBy(manuals[0] as string);
  const [a, b, c] = [median(rates.ours), median(rates.langChain), median(rates.raw)];
  const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
  return {
    bench: 'chunker',
    lines: [
      {
        measured: `${megabytes.toFixed(1)} MB into chunks of 512 tokens, 64 of overlap`,
        agentd: `${a.toFixed(1)} MB/s`,
        beside: `LangChain, recursive by tokens (gpt-tokenizer): ${b.toFixed(1)} MB/s`,
        goal: '≥ 1.6 ×',
        met: a / b >= 1.6,
        note: `${(a / b).toFixed(2)} ×; median of ${ROUNDS}; LangChain with js-tiktoken: ${js.toFixed(1)} MB/s`,
      },
      {
        measured: 'the same',
        agentd: `${a.toFixed(1)} MB/s`,
        beside: `gpt-tokenizer counting the text: ${c.toFixed(1)} MB/s`,
        goal: '≥ 0.65 ×',
        met: a / c >= 0.65,
        note: `${(a / c).toFixed(2)} ×; its table of ranks, but a counter of agentd's own`,
      },
      {
        measured: 'chunks that end within a sentence, R and Octave manuals',
        agentd: `${percent(oursWithin)} of ${ours.length}`,
        beside: `LangChain: ${percent(theirsWithin)} of ${theirs.length}`,
        goal: '≤ 12 %',
        met: oursWithin <= 0.12,
        note: 'no sentence end and no blank line at the cut',
      },
      {
        measured: 'chunks that a new paragraph changes, Octave manual',
        agentd: `mean ${(changed.reduce((sum, n) => sum + n, 0) / changed.length).toFixed(2)}, most ${Math.max(...changed)}`,
        beside: null,
        goal: '≤ 3',
        met: Math.max(...changed) <= 3,
        note: `${PARAGRAPHS} places, one at a time; more than 3: ${changed.filter((n) => n > 3).length}`,
      },
    ],
  };
}

function splitter(lengthFunction: (text: string) => number): RecursiveCharacterTextSplitter {
  return new RecursiveCharacterTextSplitter({ chunkSize: 512, chunkOverlap: 64, lengthFunction });
}

function documentOf(text: string): ExtractedDocument {
  return { format: 'pdf', title: null, text, markup: 'plain', pageStarts: null };
}

/** Where chunks lie that are given as their text alone. */
function placesOf(text: string, chunks: readonly string[]): { end: number }[] {
  let from = 0;
  return chunks.map((chunk) => {
    const start = text.indexOf(chunk, from);
    if (start < 0) throw new Error('A chunk is not a part of the text.');
    from = start + 1;
    return { end: start + chunk.length };
  });
}

/** The share of chunks with neither a sentence's end before the cut nor a blank line or the end of the text after it. */
function shareWithin(text: string, chunks: readonly { end: number }[]): number {
  const within = chunks.filter(
    ({ end }) =>
      !/[.!?…][)\]}"'’”»]*$/.test(text.slice(Math.max(0, end - 20), end)) &&
      !/^[ \t\f]*(?:\n[ \t\f]*\n|\n?$)/.test(text.slice(end, end + 200)),
  );
  return within.length / chunks.length;
}

/** Chunks that are not among the earlier ones after a paragraph was added, for places all over the text. */
function changedBy(text: string): number[] {
  const before = chunkDocument(documentOf(text), LIMITS);
  const known = new Set(before.map((chunk) => chunk.embedText));
  // as the pipeline does: where the document was cut is in the database
  const limits = {
    ...LIMITS,
    earlierCuts: before.map(({ end, content }) => cutAfter(end, content)),
  };
  const breaks = [...text.matchAll(/\n\n/g)].map((match) => match.index + 2);
  return Array.from({ length: PARAGRAPHS }, (_, i) => {
    const at = breaks[Math.floor(((i + 0.5) * breaks.length) / PARAGRAPHS)] as number;
    const added = `Paragraph ${i} is new. It says that nothing else has changed, and gives ${i} reasons. Nobody reads them twice.\n\n`;
    const after = chunkDocument(documentOf(text.slice(0, at) + added + text.slice(at)), limits);
    return after.filter((chunk) => !known.has(chunk.embedText)).length;
  });
}
