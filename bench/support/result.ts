/** What a benchmark answers: lines of the table, and a way to write them. */

/** One line: what was measured, beside what, and whether the goal is reached. */
export type Line = {
  readonly measured: string;
  readonly agentd: string;
  /** The peer's figure of the same run; null where there is none. */
  readonly beside: string | null;
  readonly goal: string;
  /** Null where the line has no goal and only explains another. */
  readonly met: boolean | null;
  /** Settings, and where the time goes. */
  readonly note?: string;
};

export type Result = { readonly bench: string; readonly lines: readonly Line[] };

/** Lines as a Markdown table. */
export function markdown(results: readonly Result[]): string {
  const rows = results.flatMap(({ bench, lines }) =>
    lines.map((line) => [
      bench,
      line.measured,
      line.agentd,
      line.beside ?? '–',
      line.goal,
      line.met === null ? '' : line.met ? 'yes' : '**no**',
      line.note ?? '',
    ]),
  );
  const head = ['bench', 'measured', 'agentd', 'beside', 'goal', 'reached', 'how'];
  return [head, head.map(() => '---'), ...rows].map((cells) => `| ${cells.join(' | ')} |`).join('\n');
}

/** Lines for a terminal. */
export function plain({ bench, lines }: Result): string {
  return lines
    .map((line) => {
      const mark = line.met === null ? '·' : line.met ? '✓' : '✗';
      const beside = line.beside === null ? '' : `\n    beside  ${line.beside}`;
      const note = line.note ? `\n    how     ${line.note}` : '';
      return `${mark} ${bench}: ${line.measured}\n    agentd  ${line.agentd}${beside}\n    goal    ${line.goal}${note}`;
    })
    .join('\n');
}
