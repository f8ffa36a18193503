/**
 * How commands speak: tables and colours on a terminal, aligned plain text in a pipe, JSON when asked.
 *
 * Every command prints through this, so that a script never meets a colour code and a person never meets a raw row.
 */
import { styleText } from 'node:util';
import Table from 'cli-table3';

/** The process's streams, as far as commands use them. */
export type Stream = { readonly isTTY?: boolean; readonly columns?: number; write(text: string): unknown };

/** Names of node:util's styles that commands use. */
export type Style = 'bold' | 'dim' | 'red' | 'green' | 'yellow' | 'cyan';

export type Column<Row> = {
  readonly title: string;
  readonly value: (row: Row) => string;
  readonly align?: 'left' | 'right';
  readonly style?: (row: Row) => Style | null;
};

export type Output = {
  /** True when `--json` was given: print with `data`, nothing else. */
  readonly json: boolean;
  /** True on a terminal. */
  readonly terminal: boolean;
  /** Characters in a line; 100 where there is no terminal. */
  readonly width: number;
  line(text?: string): void;
  /** One JSON value; indented, or in one line when it is part of a stream. */
  data(value: unknown, compact?: boolean): void;
  /** Rows under their titles; `empty` instead of a table without rows. */
  table<Row>(rows: readonly Row[], columns: readonly Column<Row>[], empty: string): void;
  /** The text with a style on a terminal, as it is elsewhere. */
  paint(style: Style | null, text: string): string;
  /** Clears the terminal; nothing elsewhere. */
  clear(): void;
};

type Env = Readonly<Record<string, string | undefined>>;

/** Creates the output for one run of the command line. */
export function createOutput(stream: Stream, env: Env, json: boolean): Output {
  const terminal = stream.isTTY === true;
  const colours = terminal && !json && !env.NO_COLOR && env.TERM !== 'dumb';
  const paint = (style: Style | null, text: string): string =>
    colours && style !== null ? styleText(style, text, { validateStream: false }) : text;
  const line = (text = ''): void => {
    stream.write(`${text.replace(colours ? UNSAFE_STYLED : UNSAFE, ' ')}\n`);
  };
  return {
    json,
    terminal,
    width: stream.columns ?? 100,
    line,
    paint,
    data: (value, compact = false) =>
      line((compact ? JSON.stringify(value) : JSON.stringify(value, null, 2)).replace(C1, escaped)),
    table(rows, columns, empty) {
      if (rows.length === 0) return line(paint('dim', empty));
      const cells = rows.map((row) => columns.map((column) => oneLine(column.value(row))));
      if (!terminal) return plainTable(cells, columns, line);
      const table = new Table({
        head: columns.map((column) => paint('bold', column.title)),
        colAligns: columns.map((column) => column.align ?? 'left'),
        style: { head: [], border: [], compact: true, 'padding-left': 0, 'padding-right': 2 },
        chars: NO_BORDERS,
      });
      for (const [index, row] of rows.entries()) {
        table.push(columns.map((column, at) => paint(column.style?.(row) ?? null, cells[index]?.[at] ?? '')));
      }
      line(table.toString());
    },
    clear() {
      if (terminal) stream.write('\u001b[2J\u001b[H');
    },
  };
}

const NO_BORDERS = Object.fromEntries(
  ['top', 'bottom', 'left', 'right', 'mid']
    .flatMap((side) => ['', '-mid', '-left', '-right'].map((part) => [`${side}${part}`, ''] as const))
    .concat([['middle', '']]),
);

function plainTable<Row>(
  cells: readonly string[][],
  columns: readonly Column<Row>[],
  line: (text: string) => void,
): void {
  const all = [columns.map((column) => column.title), ...cells];
  const widths = columns.map((_, at) => Math.max(...all.map((row) => row[at]?.length ?? 0)));
  for (const row of all) {
    const padded = row.map((cell, at) =>
      columns[at]?.align === 'right' ? cell.padStart(widths[at] ?? 0) : cell.padEnd(widths[at] ?? 0),
    );
    line(padded.join('  ').trimEnd());
  }
}

/** What tenants write may hold anything: control characters would move the cursor or forge lines, marks of direction swap words. */
export function oneLine(text: string): string {
  return text.replace(/[\p{Cc}\u2028-\u202e\u2066-\u2069]+/gu, ' ').trim();
}

/** What no line of ours holds: control characters but those of lines and tabs; where there are colours, but those of styles. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is taken out
const UNSAFE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;
// biome-ignore lint/suspicious/noControlCharactersInRegex: as above
const UNSAFE_STYLED = /\u001b(?!\[[\d;]*m)|[\u0000-\u0008\u000b-\u001a\u001c-\u001f\u007f-\u009f]/g;
/** Controls that JSON leaves as they are. */
const C1 = /[\u007f-\u009f]/g;
const escaped = (character: string): string => `\\u00${character.charCodeAt(0).toString(16)}`;
