/** The end of a chaos run in words and a table. */
import type { ChaosReport } from './chaos.ts';
import type { Cause } from './history.ts';
import { windows } from './windows.ts';

const CAUSES: readonly Cause[] = [...windows, 'SIGTERM', 'stalled', 'restart', 'slow'];
const HEAD = [
  'end',
  'daemons',
  'calls open',
  'repeated',
  'unknown writes',
  'taken over',
  'handed back',
  'again after',
];

/** Lines to print. */
export function describeReport(report: ChaosReport): string[] {
  const rows = CAUSES.flatMap((cause) => {
    const tally = report.history.tallies.get(cause);
    if (!tally) return [];
    return [
      [
        cause,
        String(tally.ends),
        String(tally.unrecorded),
        String(tally.repeats),
        String(tally.unknownWrites),
        String(tally.takeovers.length),
        String(tally.handedBack),
        spread(tally.takeovers.map((one) => one.noticedMs)),
        spread(tally.takeovers.map((one) => one.claimedMs)),
      ],
    ];
  });
  const drains = report.drains.toSorted((a, b) => a - b);
  return [
    ...table([HEAD, ...rows]),
    '',
    `${report.runs} runs, ${report.occurrences} of them by schedule; ${report.calls} calls at the peers, ${report.history.repeats} of them repeats, ${report.history.lateCalls} late ones of a daemon that had lost the run`,
    `${report.kills} kills, ${report.stalls} stalls, ${report.drains.length} SIGTERMs${drains.length === 0 ? '' : ` (longest ${seconds(drains.at(-1))})`}, ${report.cuts} cut connections, ${report.restarts} restarts of the server, in ${Math.round(report.seconds)} s`,
    `log events from warn up: ${[...report.events].map(([event, count]) => `${event} ${count}`).join(', ') || 'none'}`,
    ...report.errors.map((line) => `  ${line.slice(0, 600)}`),
    ...report.violations.flatMap((one) => [
      `BROKEN: ${one.invariant} (${one.count})`,
      ...one.examples.map(
        (example) => `  ${typeof example === 'string' ? example : JSON.stringify(example)}`,
      ),
    ]),
    report.violations.length === 0
      ? `Every invariant held (${report.checks} queries, and every call at the peers against the journal).`
      : `${report.violations.length} invariants broke.`,
  ];
}

/** The middle one and the longest. */
function spread(times: readonly number[]): string {
  const sorted = times.toSorted((a, b) => a - b);
  return sorted.length === 0
    ? ''
    : `${seconds(sorted[Math.floor(sorted.length / 2)])} (${seconds(sorted.at(-1))})`;
}

function seconds(ms: number | undefined): string {
  return `${((ms ?? 0) / 1000).toFixed(1)} s`;
}

function table(rows: readonly (readonly string[])[]): string[] {
  const widths = HEAD.map((_, i) => Math.max(...rows.map((row) => row[i]?.length ?? 0)));
  return rows.map((row) =>
    row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))).join('  '),
  );
}
