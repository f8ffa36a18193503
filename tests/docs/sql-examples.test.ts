import { describe, expect, it } from 'vitest';
import { difference, readExamples } from './sql-examples.ts';

const promised = { columns: ['name', 'took'], rows: [['Nora', '… ms']] };

describe('the reader of examples', () => {
  it('pairs each statement with the output that follows it, under its heading', () => {
    const fence = '```';
    const text = `## One\n${fence}sql\nselect 1;\n${fence}\nwords\n${fence}text\na | b\n1 |\n${fence}\n${fence}sql\nselect 2;\n${fence}`;
    expect(readExamples(text)).toEqual([
      { heading: 'One', line: 2, sql: 'select 1;', output: { columns: ['a', 'b'], rows: [['1', '']] } },
      { heading: 'One', line: 10, sql: 'select 2;', output: null },
    ]);
  });

  it('refuses an output that belongs to no statement', () => {
    expect(() => readExamples('```text\na\n```')).toThrow('Line 1');
  });

  it('finds other columns, rows and cells, and lets an ellipsis stand for something', () => {
    expect(difference(promised, { columns: ['name', 'took'], rows: [['Nora', '12 ms']] })).toBeNull();
    expect(difference(promised, { columns: ['name', 'took'], rows: [['Nora', ' ms']] })).toContain(
      "given ' ms'",
    );
    expect(difference(promised, { columns: ['name', 'took'], rows: [['Ben', '12 ms']] })).toContain('name');
    expect(difference(promised, { columns: ['name', 'took'], rows: [] })).toContain('rows');
    expect(difference(promised, { columns: ['name'], rows: [['Nora']] })).toContain('columns');
  });
});
