import { describe, expect, test } from 'vitest';
import { chunkDocument } from '../../../src/pipelines/ingest/chunk.ts';
import type { DocumentChunk } from '../../../src/pipelines/ingest/document.ts';
import { countTokens } from '../../../src/pipelines/ingest/token-index.ts';
import { cutsOf, documentOf, expectSound } from './chunk-support.ts';

const LIMITS = { maxTokens: 512, overlapTokens: 64 };
const TIMEOUT = 300_000;

/** Pseudo-random whole numbers below a bound, always the same ones. */
function numbers(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return (state >>> 8) % below;
  };
}

/** Prose of so many characters, in paragraphs of a few sentences, no two alike. */
function prose(length: number, seed = 1): string {
  const next = numbers(seed);
  const syllables = 'ka lo mi ten vor sal ing der pra que ost ul na be ri'.split(' ');
  const word = (): string =>
    Array.from({ length: 1 + next(3) }, () => syllables[next(syllables.length)]).join('');
  const parts: string[] = [];
  for (let size = 0; size < length; ) {
    const sentence = Array.from({ length: 5 + next(20) }, word).join(' ');
    const part = `The ${sentence}.${next(5) === 0 ? '\n\n' : ' '}`;
    parts.push(part);
    size += part.length;
  }
  return parts.join('').slice(0, length);
}

/** Processor time of this thread, which does not depend on what else the machine does. */
function seconds(work: () => void): number {
  const before = process.threadCpuUsage();
  work();
  const { user, system } = process.threadCpuUsage(before);
  return (user + system) / 1_000_000;
}

describe('megabytes of one kind', () => {
  const letters = numbers(7);
  const size = 2_000_000;
  const random = Array.from({ length: 200_000 }, () => String.fromCharCode(97 + letters(26))).join('');
  test.each([
    ['20 MB of one letter without a blank', 'a'.repeat(10 * size)],
    ['random letters without a blank', random.repeat(size / random.length)],
    ['blanks', `a${' '.repeat(size)}b`],
    ['line breaks', `a${'\n'.repeat(size)}b`],
    ['the smallest sentences', 'a. '.repeat(size / 3)],
    ['headings', '# a\n'.repeat(size / 4)],
    ['items', '- a\n'.repeat(size / 4)],
    ['fences that never close', '```\n~~~\n'.repeat(size / 8)],
    ['rows of a table', `|a|b|\n|-|-|\n${'|1|2|\n'.repeat(size / 6)}`],
    ['bars and dashes', '|-'.repeat(size / 2)],
    ['brackets after a stop', `a.${')'.repeat(size)}`],
    ['stops', '.'.repeat(size)],
  ])('%s: done in a bounded time, with every promise kept', { timeout: TIMEOUT }, (_name, text) => {
    const document = documentOf(text);
    let chunks: DocumentChunk[] = [];
    // what is quadratic takes hours
    expect(seconds(() => (chunks = chunkDocument(document, LIMITS)))).toBeLessThan(60);
    let covered = 0;
    for (const chunk of chunks) {
      expect(
        chunk.tokens <= LIMITS.maxTokens && text.slice(covered, Math.max(covered, chunk.start)).trim() === '',
      ).toBe(true);
      covered = chunk.end;
    }
    expect(text.slice(covered).trim()).toBe('');
    for (const chunk of chunks.slice(0, 20)) expect(chunk.tokens).toBe(countTokens(chunk.embedText));
  });
});

test('time grows with the length alone, to 10 MB', { timeout: TIMEOUT }, () => {
  const text = prose(10_000_000);
  const time = (length: number): number => {
    const document = documentOf(text.slice(0, length), 'plain');
    return Math.min(...[1, 2, 3].map(() => seconds(() => chunkDocument(document, LIMITS))));
  };
  time(1_000_000);
  const [quarter, whole] = [time(2_500_000), time(10_000_000)];
  // four times the text: 4 if linear, 16 if quadratic; the machine may be busy
  expect(whole / quarter).toBeLessThan(11);
});

describe('a paragraph that is added', () => {
  const text = prose(2_000_000, 3);
  const before = chunkDocument(documentOf(text, 'plain'), LIMITS);
  const known = new Set(before.map((chunk) => chunk.embedText));
  const breaks = [...text.matchAll(/\n\n/g)].map((match) => match.index + 2);

  test('near the beginning changes at most 3 chunks of thousands, at nineteen places of twenty', {
    timeout: TIMEOUT,
  }, () => {
    const changed = Array.from({ length: 40 }, (_, i) => {
      const at = breaks[i * 3] as number;
      const added = `Paragraph ${i} is new. It says that nothing else has changed, and ${prose(100 + 10 * i, 100 + i)}.\n\n`;
      const after = chunkDocument(documentOf(text.slice(0, at) + added + text.slice(at), 'plain'), LIMITS);
      return after.filter((chunk) => !known.has(chunk.embedText)).length;
    });
    expect(before.length).toBeGreaterThan(1000);
    expect(changed.filter((count) => count <= 3).length).toBeGreaterThanOrEqual(38);
    expect(Math.max(...changed)).toBeLessThanOrEqual(8);
  });

  test('changes at most 3 chunks at every place, where the document is cut as it was before', {
    timeout: TIMEOUT,
  }, () => {
    const limits = { ...LIMITS, earlierCuts: cutsOf(before) };
    expect(chunkDocument(documentOf(text, 'plain'), limits)).toEqual(before);
    const changed = Array.from({ length: 60 }, (_, i) => {
      const at = breaks[Math.floor((i * breaks.length) / 60)] as number;
      const added = `Paragraph ${i} is new. It says that nothing else has changed, and ${prose(100 + 3 * i, 100 + i)}.\n\n`;
      const after = chunkDocument(documentOf(text.slice(0, at) + added + text.slice(at), 'plain'), limits);
      return after.filter((chunk) => !known.has(chunk.embedText)).length;
    });
    expect(Math.max(...changed)).toBeLessThanOrEqual(3);
  });

  test('does not touch the chunks before it', () => {
    const at = breaks[breaks.length >> 1] as number;
    const after = chunkDocument(documentOf(`${text.slice(0, at)}New.\n\n${text.slice(at)}`, 'plain'), LIMITS);
    const untouched = before.filter((chunk) => chunk.end < at - 5000);
    expect(after.slice(0, untouched.length)).toEqual(untouched);
  });
});

test('large prose keeps every promise', { timeout: TIMEOUT }, () => {
  const document = documentOf(prose(300_000, 9), 'plain', [0, 1000, 50_000, 200_000]);
  expectSound(document, LIMITS, chunkDocument(document, LIMITS));
});
