/** What every chunk must hold, asked of a tokenizer that the chunker does not use. */
import { countTokens } from 'gpt-tokenizer/encoding/cl100k_base';
import { expect } from 'vitest';
import type { ChunkOptions } from '../../../src/pipelines/ingest/chunk.ts';
import type { DocumentChunk, ExtractedDocument } from '../../../src/pipelines/ingest/document.ts';
import { cutAfter, type EarlierCut } from '../../../src/pipelines/ingest/segments.ts';
import { MAX_PIECE } from '../../../src/pipelines/ingest/token-index.ts';

/** Tokens as gpt-tokenizer counts them, special tokens as plain text. Quadratic in the longest word. */
export const oracle = (text: string): number =>
  countTokens(text, { allowedSpecial: new Set(), disallowedSpecial: new Set() });

export function documentOf(
  text: string,
  markup: 'markdown' | 'plain' = 'markdown',
  pageStarts: readonly number[] | null = null,
): ExtractedDocument {
  return { format: markup === 'markdown' ? 'markdown' : 'text', title: null, text, markup, pageStarts };
}

/** Where chunks end, as the next version of their document is told. */
export const cutsOf = (chunks: readonly DocumentChunk[]): EarlierCut[] =>
  chunks.map(({ content, end }) => cutAfter(end, content));

const segmenter = new Intl.Segmenter(undefined, { granularity: 'grapheme' });
const isBlank = (character: string | undefined): boolean => character === undefined || /\s/.test(character);

/** Throws unless the chunks keep every promise that can be told from the document and the options. */
export function expectSound(
  document: ExtractedDocument,
  options: ChunkOptions,
  chunks: readonly DocumentChunk[],
  count: (text: string) => number = oracle,
): void {
  const { text, pageStarts } = document;
  let covered = 0;
  for (const [place, chunk] of chunks.entries()) {
    const before = chunks[place - 1];
    expect(chunk.index).toBe(place);
    expect(chunk.content).toBe(text.slice(chunk.start, chunk.end));
    expect(chunk.content).toBe(chunk.content.trim());
    expect(chunk.content).not.toBe('');
    expect(chunk.start).toBeGreaterThan(before?.start ?? -1);
    expect(chunk.end).toBeGreaterThan(before?.end ?? -1);
    // nothing is lost
    expect(text.slice(covered, Math.max(covered, chunk.start)).trim()).toBe('');
    covered = chunk.end;
    // the limit
    expect(chunk.embedText.endsWith(chunk.content)).toBe(true);
    expect(chunk.tokens).toBe(count(chunk.embedText));
    expect(chunk.tokens).toBeLessThanOrEqual(options.maxTokens);
    if (before && chunk.start < before.end)
      expect(count(text.slice(chunk.start, before.end))).toBeLessThanOrEqual(options.overlapTokens);
    // where it is cut
    // headings and a table's header may take half of the room from a word
    const room = document.markup === 'plain' ? options.maxTokens : options.maxTokens / 2;
    expectGentleCut(text, chunk.start, room, count);
    expectGentleCut(text, chunk.end, room, count);
    const pages = pageStarts?.filter((start) => start <= chunk.start).length;
    expect(chunk.page).toBe(pages === undefined ? null : pages);
  }
  expect(text.slice(covered).trim()).toBe('');
}

/** A cut lies at a blank or a sentence's end, or in a word that is longer than what fits or than MAX_PIECE; and never within a character as people see it. */
function expectGentleCut(text: string, at: number, limit: number, count: (text: string) => number): void {
  const [left, right] = [text[at - 1], text[at]];
  if (isBlank(left) || isBlank(right)) return;
  expect(/[\uD800-\uDBFF]/.test(left as string) && /[\uDC00-\uDFFF]/.test(right as string)).toBe(false);
  const window = Math.max(0, at - 100);
  const grapheme = segmenter.segment(text.slice(window, at + 100)).containing(at - window);
  if (grapheme && window + grapheme.index !== at) expect(count(grapheme.segment)).toBeGreaterThan(limit / 4);
  if (/[。！？｡．।॥។][)\]}"'*_`”’»›」』）】》〉〗］]*$/.test(text.slice(Math.max(0, at - 20), at))) return;
  let [start, end] = [at, at];
  while (start > 0 && !isBlank(text[start - 1])) start--;
  while (end < text.length && !isBlank(text[end])) end++;
  // what is longer than any word is cut before it is counted
  if (end - start > MAX_PIECE) return;
  expect(count(text.slice(start, end))).toBeGreaterThan(limit);
}
