/** How usage is printed: a table of periods, and one period with a bar for each of its days. */
import type { UsageDay, UsagePart, UsagePeriod } from '../db/usage-reports.ts';
import { cost, count, cut, time } from './format.ts';
import type { Output } from './output.ts';

export type PeriodDetails = UsagePeriod & {
  readonly days: readonly UsageDay[];
  readonly models: readonly UsagePart[];
  readonly agents: readonly UsagePart[];
};

/** Eighths of a character. */
const EIGHTHS = ' ▏▎▍▌▋▊▉';

/** A bar of up to `width` characters; anything above nothing is seen. */
export function bar(value: number, most: number, width: number): string {
  if (!(value > 0) || !(most > 0)) return '';
  const eighths = Math.max(1, Math.round((Math.min(value, most) / most) * width * 8));
  const rest = eighths % 8;
  return '█'.repeat(Math.floor(eighths / 8)) + (rest === 0 ? '' : (EIGHTHS[rest] as string));
}

export function printPeriods(output: Output, periods: readonly UsagePeriod[]): void {
  output.table(
    periods,
    [
      { title: 'workspace', value: (row) => cut(row.workspace, 32) },
      { title: 'period', value: labelOf },
      { title: 'conversations', value: (row) => count(row.conversations), align: 'right' },
      { title: 'messages', value: (row) => count(row.messages), align: 'right' },
      { title: 'tokens', value: (row) => count(row.tokens_used), align: 'right' },
      { title: 'runs', value: (row) => count(row.task_runs), align: 'right' },
      { title: 'tool calls', value: (row) => count(row.tool_calls), align: 'right' },
      { title: 'cost', value: (row) => cost(row.cost_micros), align: 'right' },
    ],
    'Nothing was used.',
  );
}

export function printPeriod(output: Output, period: PeriodDetails): void {
  output.line(output.paint('bold', `${cut(period.workspace, 60)}, ${labelOf(period)}`));
  output.line(
    `${time(period.period_start)} to ${time(period.period_end)} (${period.zone})${period.closed_at ? ', closed' : ''}; ` +
      `summed up ${time(period.rolled_up_at)}`,
  );
  printPeriods(output, [period]);
  const byCost = period.days.some((day) => day.cost_micros > 0);
  const value = (day: UsageDay): number => (byCost ? day.cost_micros : day.tokens);
  const most = Math.max(...period.days.map(value), 0);
  if (most > 0) {
    output.line();
    output.line(output.paint('bold', byCost ? 'Cost by day' : 'Tokens by day'));
    const width = Math.max(10, Math.min(50, output.width - 40));
    for (const day of period.days) {
      const figure = byCost ? cost(day.cost_micros) : count(day.tokens);
      output.line(
        `${day.day}  ${figure.padStart(12)}  ${output.paint('cyan', bar(value(day), most, width))}`,
      );
    }
  }
  for (const [title, parts] of [
    ['Models', period.models],
    ['Agents', period.agents],
  ] as const) {
    if (parts.length === 0) continue;
    output.line();
    output.table(
      parts,
      [
        { title, value: (row) => cut(row.name, 40) },
        { title: 'events', value: (row) => count(row.events), align: 'right' },
        { title: 'tokens', value: (row) => count(row.tokens), align: 'right' },
        { title: 'cost', value: (row) => cost(row.cost_micros), align: 'right' },
      ],
      '',
    );
  }
  output.line();
}

function labelOf(period: UsagePeriod): string {
  return period.kind === 'month' ? period.month.slice(0, 7) : `from ${period.month}`;
}
