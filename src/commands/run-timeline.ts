/** A run drawn over time: what happened when, how long it took, and where nothing happened. Pure: rows in, lines out. */
import type { ModelCallRow, StepRunRow, ToolCallRow } from '../db/run-reports.ts';
import { cost, count, cut, duration, offset, statusStyle } from './format.ts';
import { oneLine, type Style } from './output.ts';

/** One thing that happened in a run. Offsets and durations in milliseconds from the run's start. */
export type Moment = {
  readonly step: number;
  readonly kind: 'call' | 'tool' | 'gap';
  readonly at: number;
  /** Null while it has not ended and nobody knows. */
  readonly took: number | null;
  readonly title: string;
  readonly detail: string;
  readonly status: string;
  readonly error: string | null;
};

/** Shorter pauses are the work between calls: context, checkpoints, the queue. */
const GAP_MS = 1_000;
/** And a pause is worth a line only if it is this share of the whole. */
const GAP_SHARE = 0.05;

/** Everything that happened in one step, in the order of time, with the pauses between. */
export function momentsOfStep(
  step: StepRunRow,
  calls: readonly ModelCallRow[],
  tools: readonly ToolCallRow[],
  clock: { readonly start: Date; readonly end: Date },
): Moment[] {
  const from = (at: Date): number => at.getTime() - clock.start.getTime();
  const open = (status: string, at: Date): number | null =>
    status === 'started' || status === 'waiting' ? clock.end.getTime() - at.getTime() : null;
  const moments: Moment[] = [
    ...calls
      .filter((call) => call.step_order === step.step_order)
      .map((call) => ({
        step: step.step_order,
        kind: 'call' as const,
        at: from(call.created_at),
        took: call.latency_ms ?? spent(call) ?? open(call.status, call.created_at),
        title: `turn ${call.turn}  ${call.model ?? 'model'}`,
        detail: [
          `${count(call.prompt_tokens)} + ${count(call.completion_tokens)} tokens`,
          ...(call.cached_tokens > 0 ? [`${count(call.cached_tokens)} cached`] : []),
          cost(call.cost_micros),
          ...(call.finish_reason ? [call.finish_reason] : []),
          ...(call.attempt > 1 ? [`attempt ${call.attempt}`] : []),
        ].join(', '),
        status: call.status,
        error: problem(call.error_code, call.error_message),
      })),
    ...tools
      .filter((tool) => tool.step_order === step.step_order)
      .map((tool) => ({
        step: step.step_order,
        kind: 'tool' as const,
        at: from(tool.created_at),
        took: tool.duration_ms ?? spent(tool) ?? open(tool.status, tool.created_at),
        title: `  tool ${tool.tool_name}`,
        detail: shortArguments(tool.arguments) + (tool.status === 'waiting' ? '  waits for approval' : ''),
        status: tool.status,
        error: problem(tool.error_code, tool.error_message),
      })),
  ].sort((a, b) => a.at - b.at || (a.kind === b.kind ? 0 : a.kind === 'call' ? -1 : 1));
  return withGaps(moments, step, clock.end.getTime() - clock.start.getTime(), from);
}

function withGaps(
  moments: readonly Moment[],
  step: StepRunRow,
  whole: number,
  from: (at: Date) => number,
): Moment[] {
  const result: Moment[] = [];
  let quietSince = step.started_at ? from(step.started_at) : (moments[0]?.at ?? 0);
  const gapUntil = (at: number): void => {
    const length = at - quietSince;
    if (length < GAP_MS || length < whole * GAP_SHARE) return;
    result.push({
      step: step.step_order,
      kind: 'gap',
      at: quietSince,
      took: length,
      title: 'no call',
      detail: 'waiting, retrying or not being worked on',
      status: 'waiting',
      error: null,
    });
  };
  for (const moment of moments) {
    gapUntil(moment.at);
    result.push(moment);
    quietSince = Math.max(quietSince, moment.at + (moment.took ?? 0));
  }
  if (step.finished_at) gapUntil(from(step.finished_at));
  return result;
}

function spent(row: { readonly created_at: Date; readonly finished_at: Date | null }): number | null {
  return row.finished_at === null ? null : row.finished_at.getTime() - row.created_at.getTime();
}

function problem(code: string | null, message: string | null): string | null {
  if (code === null && message === null) return null;
  return [code, message].filter((part) => part !== null).join(': ');
}

/** Arguments in one line, shortened: the whole is in tool_calls. */
export function shortArguments(value: unknown, length = 60): string {
  return cut(oneLine(JSON.stringify(value) ?? ''), length);
}

/** What a step began with: its lists counted, since their content may be pages. */
export function contextSummary(context: unknown): string | null {
  if (typeof context !== 'object' || context === null) return null;
  const parts = Object.entries(context).flatMap(([name, value]) => {
    if (Array.isArray(value))
      return value.length > 0 ? [`${count(value.length)} ${name.replaceAll('_', ' ')}`] : [];
    return typeof value === 'number' ? [`${name.replaceAll('_', ' ')} ${count(value)}`] : [];
  });
  return parts.length > 0 ? parts.join(', ') : null;
}

/** Where in the run a moment lies: a bar as wide as the run. At least one mark, however short. */
export function bar(at: number, took: number | null, whole: number, width: number): string {
  if (whole <= 0) return '█'.padEnd(width, '·');
  const clamp = (value: number, low: number, high: number): number => Math.min(high, Math.max(low, value));
  const start = clamp(Math.floor((at / whole) * width), 0, width - 1);
  const end = clamp(Math.ceil(((at + (took ?? 0)) / whole) * width), start + 1, width);
  return '·'.repeat(start) + '█'.repeat(end - start) + '·'.repeat(width - end);
}

type Paint = (style: Style | null, text: string) => string;

/** The lines of the moments, columns aligned over all steps that are given together. */
export function drawMoments(moments: readonly Moment[], whole: number, paint: Paint): string[] {
  const width = 24;
  const titles = Math.min(36, Math.max(0, ...moments.map((moment) => oneLine(moment.title).length + 2)));
  return moments.flatMap((moment) => {
    const indent = moment.title.startsWith('  ') ? '  ' : '';
    const title = cut(indent + oneLine(moment.title), titles).padEnd(titles);
    const gap = moment.kind === 'gap';
    const marks = bar(moment.at, moment.took, whole, width);
    const line = [
      `  ${offset(moment.at).padStart(10)}`,
      paint(gap ? 'dim' : statusStyle(moment.status), gap ? marks.replaceAll('█', '░') : marks),
      paint(gap ? 'dim' : null, title),
      duration(moment.took).padStart(10),
      paint(statusStyle(moment.status), gap ? '' : moment.status.padEnd(9)),
      paint('dim', moment.detail),
    ].join('  ');
    const error =
      moment.error === null ? [] : [`${' '.repeat(14 + width + 2)}${paint('red', oneLine(moment.error))}`];
    return [line.trimEnd(), ...error];
  });
}
