import { expect, test } from 'vitest';
import { cost, duration } from '../../src/commands/format.ts';
import { createOutput, oneLine } from '../../src/commands/output.ts';

const ESC = '\u001b';

function printed(options: { isTTY?: boolean; env?: Record<string, string>; json?: boolean }): string {
  let text = '';
  const output = createOutput(
    {
      ...(options.isTTY === undefined ? {} : { isTTY: options.isTTY }),
      write: (part) => {
        text += part;
      },
    },
    options.env ?? {},
    options.json ?? false,
  );
  output.clear();
  output.line(output.paint('red', 'word'));
  output.table(
    [{ name: `a${ESC}[31m\nb` }],
    [{ title: 'NAME', value: (row) => row.name, style: () => 'green' }],
    'none',
  );
  output.table([], [{ title: 'NAME', value: () => '' }], 'nothing here');
  return text;
}

test('colours and clearing are for terminals: not in a pipe, not with --json; NO_COLOR and dumb terminals get no colours', () => {
  expect(printed({ isTTY: true })).toContain(`${ESC}[31mword`);
  expect(printed({ isTTY: false })).not.toContain(ESC);
  expect(printed({})).not.toContain(ESC);
  for (const env of [{ NO_COLOR: '1' }, { TERM: 'dumb' }])
    expect(printed({ isTTY: true, env })).not.toContain(`${ESC}[31m`);
});

test('control characters of a value reach neither terminal nor pipe, and a table without rows says so', () => {
  for (const isTTY of [true, false]) {
    const text = printed({ isTTY, env: { NO_COLOR: '1' } });
    expect(text).toContain('a [31m b');
    expect(text).toContain('nothing here');
  }
});

test('nor do those in a line, or in JSON, whoever forgot to take them out; marks of direction are no part of a value', () => {
  for (const isTTY of [true, false]) {
    let text = '';
    const write = (part: string): void => {
      text += part;
    };
    const output = createOutput({ isTTY, write }, {}, false);
    output.line(`name${ESC}]0;title\u0007${ESC}[2J\u009b2J\r${output.paint('red', 'word')}`);
    output.data({ name: `${ESC}[2J\u009b2J` });
    expect(text.replaceAll(`${ESC}[31m`, '').replaceAll(`${ESC}[39m`, '')).toMatch(/^[\n\x20-\x7e]*$/);
    expect(text).toContain('"\\u001b[2J\\u009b2J"');
    expect(text.includes(`${ESC}[31mword`)).toBe(isTTY);
  }
  expect(oneLine('a\u202eb\u2066c\nd')).toBe('a b c d');
});

test('durations and costs are readable at every size', () => {
  expect([0, 999, 1000, 59_994, 59_996, 3_599_400, 3_600_000, 90_000_000, -5, null].map(duration)).toEqual([
    '0 ms',
    '999 ms',
    '1.00 s',
    '59.99 s',
    '1 min 00 s',
    '59 min 59 s',
    '1 h 00 min',
    '1 d 1 h',
    '0 ms',
    '–',
  ]);
  expect([0, 1, 12_345, 2_500_000].map(cost)).toEqual(['$0', '$0.000001', '$0.0123', '$2.50']);
});
