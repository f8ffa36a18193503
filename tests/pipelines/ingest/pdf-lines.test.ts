import { expect, test } from 'vitest';
import { pageLines } from '../../../src/pipelines/ingest/extract/pdf-lines.ts';

test.each([
  ['Modes . . . . . . . . . . 5', 'Modes … 5'],
  ['Modes .......... 5', 'Modes … 5'],
  ['Modes .  .  .  .  .  .  . 5', 'Modes … 5'],
  ['Modes .\t.\t.\t.\t.\t. 5', 'Modes … 5'],
  ['Modes .\u3000.\u3000.\u3000.\u3000.\u3000. 5', 'Modes … 5'],
  ['Wait . . . and see', 'Wait . . . and see'],
  ['  two  blanks\tand a tab ', 'two blanks and a tab'],
  ['a\u00a0hard blank', 'a hard blank'],
])('%j is the line %j', (page, line) => {
  expect(pageLines(page)).toEqual([line]);
  // beside a line of another kind
  expect(pageLines(`plain\n${page}\n\n more . . . . . . . 7`)).toEqual(['plain', line, 'more … 7']);
});
