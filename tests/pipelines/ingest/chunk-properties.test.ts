import fc from 'fast-check';
import { expect, test } from 'vitest';
import { chunkDocument } from '../../../src/pipelines/ingest/chunk.ts';
import { countTokens, TokenIndex } from '../../../src/pipelines/ingest/token-index.ts';
import { code, markdownText, options, pagesOf, plainText, table } from './chunk-documents.ts';
import { cutsOf, documentOf, expectSound, oracle } from './chunk-support.ts';

const RUNS = Number(process.env.PROPERTY_RUNS ?? 60);
const TIMEOUT = 300_000;

test('a text that was cut in two once, for what followed it, counts as one where it is one', () => {
  // the last blank before a digit is a piece of its own; the blanks and all of them but the last share a place among the recent pieces
  const blanks = '\t\t \t \t\t\t \t  ';
  const text = `x\n${blanks}5\n${`${blanks} 5\n`.repeat(100)}`;
  expect(new TokenIndex(text).count(0, text.length - 1)).toBe(countTokens(text.slice(0, -1)));
});

test('tokens are counted as the provider counts them, in every script', { timeout: TIMEOUT }, () => {
  const text = fc.oneof(markdownText, plainText, fc.string({ unit: 'grapheme', maxLength: 200 }));
  fc.assert(
    fc.property(text, (any) => {
      const wellFormed = any.toWellFormed();
      expect(countTokens(wellFormed)).toBe(oracle(wellFormed));
    }),
    { numRuns: RUNS * 3 },
  );
});

test('every slice of an indexed text has the tokens that it has alone', { timeout: TIMEOUT }, () => {
  const slices = fc.array(fc.tuple(fc.nat(), fc.nat()), { minLength: 20, maxLength: 20 });
  fc.assert(
    fc.property(fc.oneof(markdownText, plainText), slices, (text, pairs) => {
      fc.pre(text.length > 0);
      const index = new TokenIndex(text);
      for (const [a, b] of pairs) {
        const [start, end] = [a % text.length, b % (text.length + 1)].sort((x, y) => x - y) as [
          number,
          number,
        ];
        const slice = text.slice(start, end);
        // the promise is for slices that do not end in a blank, and have whole characters
        if (!slice.isWellFormed() || slice !== slice.trimEnd() || slice === '') continue;
        expect(index.count(start, end)).toBe(oracle(slice));
      }
    }),
    { numRuns: RUNS },
  );
});

for (const [markup, arbitrary] of [
  ['markdown', markdownText],
  ['plain', plainText],
] as const)
  test(`of generated ${markup}, nothing is lost, over the limit or cut within a word`, {
    timeout: TIMEOUT,
  }, () => {
    const input = arbitrary.chain((text) => fc.tuple(fc.constant(text), pagesOf(text), options));
    fc.assert(
      fc.property(input, ([text, pages, limits]) => {
        const document = documentOf(text, markup, pages);
        const chunks = chunkDocument(document, limits);
        expectSound(document, limits, chunks);
        expect(chunkDocument(document, limits)).toEqual(chunks);
      }),
      { numRuns: RUNS },
    );
  });

for (const [markup, text] of [
  ['markdown', markdownText],
  ['plain', plainText],
] as const)
  test(`a changed ${markup} text keeps the cuts of before, and every promise`, { timeout: TIMEOUT }, () => {
    fc.assert(
      fc.property(text, text, text, text, options, (first, old, fresh, last, limits) => {
        const document = documentOf([first, old, last].join('\n\n'), markup);
        const before = chunkDocument(document, limits);
        const kept = { ...limits, earlierCuts: cutsOf(before) };
        // of headings the best cut depends on what fits on its two sides: some sections are joined that were not
        if (markup === 'plain') expect(chunkDocument(document, kept)).toEqual(before);
        const changed = documentOf([first, fresh, last].join('\n\n'), markup);
        expectSound(changed, kept, chunkDocument(changed, kept));
      }),
      { numRuns: RUNS },
    );
  });

test('cuts that anybody may have written are harmless', { timeout: TIMEOUT }, () => {
  const cut = fc.record({
    end: fc.oneof(fc.integer(), fc.nat({ max: 3_000 })),
    mark: fc.string({ maxLength: 48 }),
  });
  fc.assert(
    fc.property(markdownText, fc.array(cut, { maxLength: 40 }), options, (text, cuts, limits) => {
      const marks = cuts.map(({ end, mark }) => ({
        end,
        mark: text.slice(Math.max(0, end - 48), end) || mark,
      }));
      const document = documentOf(text);
      for (const earlierCuts of [cuts, marks])
        expectSound(document, limits, chunkDocument(document, { ...limits, earlierCuts }));
    }),
    { numRuns: RUNS },
  );
});

test('a table or a block of code that fits is never cut', { timeout: TIMEOUT }, () => {
  const block = fc.oneof(table, code);
  const prose = fc.constantFrom('Some words stand between. They are two sentences.', 'One more.');
  const input = fc.tuple(fc.array(fc.tuple(prose, block), { minLength: 1, maxLength: 6 }), options);
  fc.assert(
    fc.property(input, ([parts, limits]) => {
      const text = parts.flat().join('\n\n');
      const chunks = chunkDocument(documentOf(text), limits);
      for (const [, whole] of parts)
        if (oracle(whole) <= limits.maxTokens)
          expect(chunks.some((chunk) => chunk.content.includes(whole.trim()))).toBe(true);
    }),
    { numRuns: RUNS },
  );
});
