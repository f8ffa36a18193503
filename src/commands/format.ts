/** Values as people read them. All pure; a missing value is '–'. */
import type { Style } from './output.ts';

const NONE = '–';

/** `2026-03-08 14:05:09Z`: seconds are enough, and the Z says which clock. */
export function time(at: Date | null): string {
  // what an application wrote may be infinite, or beyond what a Date holds
  if (at === null || Number.isNaN(new Date(at).getTime())) return NONE;
  return `${at.toISOString().slice(0, 19).replace('T', ' ')}Z`;
}

/** Milliseconds as `320 ms`, `4.21 s`, `3 min 05 s`, `2 h 10 min` or `5 d 3 h`. */
export function duration(ms: number | null): string {
  if (ms === null || !Number.isFinite(ms)) return NONE;
  const value = Math.max(0, ms);
  if (value < 1000) return `${Math.round(value)} ms`;
  const seconds = value / 1000;
  if (seconds < 59.995) return `${seconds.toFixed(2)} s`;
  const whole = Math.round(seconds);
  const two = (n: number): string => String(n).padStart(2, '0');
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  if (whole < 86_400) return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
  return `${Math.floor(whole / 86_400)} d ${Math.floor((whole % 86_400) / 3600)} h`;
}

/** Seconds as {@link duration}. */
export function seconds(value: number | null): string {
  return duration(value === null ? null : value * 1000);
}

/** An offset from the start of something: `+12.34s`. */
export function offset(ms: number): string {
  return `+${(Math.max(0, ms) / 1000).toFixed(2)}s`;
}

/** `12,345`. */
export function count(value: number): string {
  return value.toLocaleString('en-US');
}

/** Millionths of a dollar as `$0.0012`; more digits where they matter, none where nothing was spent. */
export function cost(micros: number): string {
  if (micros === 0) return '$0';
  const dollars = micros / 1e6;
  return `$${dollars.toFixed(dollars >= 1 ? 2 : dollars >= 0.01 ? 4 : 6)}`;
}

/** The first eight digits: enough for a person, and every command takes them. */
export function shortId(id: string | null): string {
  return id === null ? NONE : id.slice(0, 8);
}

/** At most `length` characters, the last one an ellipsis where something was cut. */
export function cut(text: string, length: number): string {
  return text.length <= length ? text : `${text.slice(0, Math.max(0, length - 1))}…`;
}

/** The text, or a dash. */
export function orDash(text: string | null): string {
  return text === null || text === '' ? NONE : text;
}

/** The colour of a status of a run, step, call, task or worker. */
export function statusStyle(status: string): Style | null {
  if (['completed', 'active', 'running', 'ok', 'live'].includes(status)) return 'green';
  if (['failed', 'fail', 'unknown', 'denied'].includes(status)) return 'red';
  if (['waiting', 'started', 'warn', 'paused', 'draining', 'cancelled'].includes(status)) return 'yellow';
  return status === 'queued' ? 'cyan' : 'dim';
}
