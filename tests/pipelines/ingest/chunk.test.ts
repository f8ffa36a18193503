import { describe, expect, test } from 'vitest';
import { chunkDocument } from '../../../src/pipelines/ingest/chunk.ts';
import { sentenceEnd } from '../../../src/pipelines/ingest/sentences.ts';
import { documentOf, expectSound, oracle } from './chunk-support.ts';

const words = (count: number, from = 0): string =>
  Array.from({ length: count }, (_, i) => `word${(from + i) % 97}`).join(' ');
const sentences = (count: number, from = 0): string =>
  Array.from({ length: count }, (_, i) => `Sentence ${from + i} says ${words(8, from + i)}.`).join(' ');

function sentencesIn(text: string): string[] {
  const found: string[] = [];
  for (let at = 0; at < text.length; ) {
    const end = sentenceEnd(text, at, text.length);
    found.push(text.slice(at, end).trim());
    at = end;
  }
  return found;
}

describe('sentences', () => {
  test.each([
    ['One ends. Another begins! A third? Yes.', 4],
    ['It costs 3.14 euros, i.e. more than 1,000.50 cents. So be it.', 2],
    ['Dr. Smith met Mr. J. R. Brown of the U.S. Senate, e.g. on Monday. See Fig. 3 and No. 5 there.', 2],
    ['The answer is no. Then she left.', 2],
    ['“Really?” he said. She said: “No.” He left.', 3],
    ['Well… perhaps. He waited... and waited. Then he left.', 3],
    ['これは文です。二番目の文です！本当？はい。', 4],
    ['彼は「はい。」と言った。次の文。', 2],
    ['यह एक वाक्य है। यह दूसरा है।', 2],
    ['هل هذا سؤال؟ نعم.', 2],
    ['1. The first point. The second.', 2],
    ['agentd.ts and v1.2.3 are no ends', 1],
  ])('%s', (text, count) => {
    expect(sentencesIn(text)).toHaveLength(count);
  });
});

test('a blank document has no chunks, a short one has one', () => {
  expect(chunkDocument(documentOf(' \n\n\t\n'), { maxTokens: 512, overlapTokens: 64 })).toEqual([]);
  expect(chunkDocument(documentOf('\n Hello there. \n'), { maxTokens: 512, overlapTokens: 64 })).toEqual([
    {
      index: 0,
      start: 2,
      end: 14,
      content: 'Hello there.',
      page: null,
      headingPath: [],
      embedText: 'Hello there.',
      tokens: 3,
    },
  ]);
});

test('limits that cannot be kept are refused', () => {
  expect(() => chunkDocument(documentOf('x'), { maxTokens: 15, overlapTokens: 0 })).toThrow(RangeError);
  expect(() => chunkDocument(documentOf('x'), { maxTokens: Number.NaN, overlapTokens: 0 })).toThrow(
    RangeError,
  );
  expect(() => chunkDocument(documentOf('x'), { maxTokens: 512, overlapTokens: -1 })).toThrow(RangeError);
});

test('a chunk knows the headings above it, and is embedded with those that it does not contain', () => {
  const text = [
    '# Guide',
    '## Install *it*',
    sentences(40),
    'Setup',
    '-----',
    '### Deep ###',
    sentences(40, 100),
  ]
    .join('\n\n')
    .replace('Setup\n\n-', 'Setup\n-');
  const options = { maxTokens: 256, overlapTokens: 32 };
  const chunks = chunkDocument(documentOf(text), options);
  expectSound(documentOf(text), options, chunks);
  expect(chunks[0]?.headingPath).toEqual(['Guide', 'Install it']);
  expect(chunks[0]?.embedText).toBe(chunks[0]?.content);
  expect(chunks[1]?.embedText).toBe(`Guide > Install it\n\n${chunks[1]?.content}`);
  const deep = chunks.filter((chunk) => chunk.headingPath.includes('Deep'));
  expect(deep.length).toBeGreaterThan(1);
  expect(deep.every((chunk) => chunk.headingPath.join('/') === 'Guide/Setup/Deep')).toBe(true);
  // no chunk holds the end of one section and the beginning of the next
  expect(
    chunks.filter((chunk) => chunk.content.includes('Setup')).map((chunk) => chunk.content.indexOf('Setup')),
  ).toEqual([0]);
});

test('short sections share a chunk, under the heading that they have in common', () => {
  const text = '# FAQ\n\n## Why?\n\nBecause.\n\n## How?\n\nLike this.';
  const [chunk, ...others] = chunkDocument(documentOf(text), { maxTokens: 512, overlapTokens: 64 });
  expect(others).toEqual([]);
  expect(chunk).toMatchObject({ content: text, headingPath: ['FAQ'], embedText: text });
});

test('headings are not guessed in plain text, nor seen in code', () => {
  const code = '```sh\n# not a heading\nls\n```';
  expect(chunkDocument(documentOf(code), { maxTokens: 64, overlapTokens: 0 })[0]?.headingPath).toEqual([]);
  const plain = documentOf('# SHOUTED\n\n1. Introduction\n\nText.', 'plain');
  expect(chunkDocument(plain, { maxTokens: 64, overlapTokens: 0 })[0]?.headingPath).toEqual([]);
});

test('a path that is longer than the limit loses its outer titles, and leaves the body most of the room', () => {
  const text = Array.from({ length: 6 }, (_, i) => `${'#'.repeat(i + 1)} ${words(60, i * 10)}`)
    .concat(sentences(30))
    .join('\n\n');
  for (const maxTokens of [16, 32, 64, 512]) {
    const options = { maxTokens, overlapTokens: 4 };
    const chunks = chunkDocument(documentOf(text), options);
    expectSound(documentOf(text), options, chunks);
    const last = chunks.at(-1);
    expect(last?.headingPath).toHaveLength(6);
    expect(oracle(last?.embedText.slice(0, -(last?.content.length ?? 0)) ?? '')).toBeLessThanOrEqual(
      maxTokens / 4,
    );
  }
});

test('a table that does not fit is cut between rows, and each part is embedded with the header row', () => {
  const rows = Array.from({ length: 200 }, (_, i) => `| ${i} | Name ${i} | ${i * 7} |`);
  const text = ['Before.', '', '| Id | Name | Price |', '|---|:---:|--:|', ...rows, '', 'After.'].join('\n');
  const options = { maxTokens: 128, overlapTokens: 32 };
  const chunks = chunkDocument(documentOf(text), options);
  expectSound(documentOf(text), options, chunks);
  expect(chunks.length).toBeGreaterThan(10);
  for (const chunk of chunks.slice(1)) {
    if (!chunk.content.startsWith('|')) continue;
    expect(chunk.embedText).toBe(`| Id | Name | Price |\n${chunk.content}`);
    for (const line of chunk.content.split('\n')) expect(text.split('\n')).toContain(line);
  }
  // rows are not repeated
  expect(
    chunks
      .map((chunk) => chunk.content)
      .join('\n')
      .match(/\| Name 77 \|/g),
  ).toHaveLength(1);
});

test('code that does not fit is cut between lines, at a blank one if it can be', () => {
  const block = (i: number): string => `function f${i}() {\n  const x = ${i};\n  return x;\n}`;
  const text = `\`\`\`ts\n${Array.from({ length: 40 }, (_, i) => block(i)).join('\n\n')}\n\`\`\``;
  const options = { maxTokens: 200, overlapTokens: 20 };
  const chunks = chunkDocument(documentOf(text), options);
  expectSound(documentOf(text), options, chunks);
  for (const chunk of chunks.slice(1)) expect(chunk.content).toMatch(/^function/);
});

test('the overlap is whole sentences, up to its limit', () => {
  const text = sentences(200);
  const options = { maxTokens: 256, overlapTokens: 60 };
  const chunks = chunkDocument(documentOf(text, 'plain'), options);
  expectSound(documentOf(text, 'plain'), options, chunks);
  const overlaps = chunks.slice(1).map((chunk, i) => text.slice(chunk.start, chunks[i]?.end));
  for (const overlap of overlaps) expect(overlap).toMatch(/^Sentence \d+ says .*\.$/);
});

test('special tokens are plain text, whatever a tokenizer makes of them', () => {
  const text = 'Before <|endoftext|> and <|im_start|> after. '.repeat(50);
  const options = { maxTokens: 64, overlapTokens: 16 };
  expectSound(documentOf(text), options, chunkDocument(documentOf(text), options));
});

test('the page is the one on which the chunk begins', () => {
  const pages = Array.from({ length: 20 }, (_, i) => `Page ${i + 1}. ${sentences(12, i * 20)}\n\n`);
  const starts = pages.map((_, i) => pages.slice(0, i).join('').length);
  const document = documentOf(pages.join(''), 'plain', starts);
  const options = { maxTokens: 128, overlapTokens: 16 };
  const chunks = chunkDocument(document, options);
  expectSound(document, options, chunks);
  expect(new Set(chunks.map((chunk) => chunk.page)).size).toBe(20);
});
