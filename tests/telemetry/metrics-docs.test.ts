import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { createMetrics } from '../../src/telemetry/metrics.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
const page = readFileSync(join(root, 'docs/metrics.md'), 'utf8');
/** The names in the first columns of the page's tables. */
const documented = [...page.matchAll(/^\| `([a-z0-9_]+)`/gm)].map((match) => match[1] ?? '');

test('docs/metrics.md lists exactly the metrics that are registered, once each', async () => {
  const registered = (await createMetrics().registry.getMetricsAsJSON()).map((metric) => metric.name);
  expect(documented.filter((name) => name.startsWith('agentd_')).toSorted()).toEqual(registered.toSorted());
});

/** A call of the logger in the sources: where, at which level, and the text between its parentheses. */
type LogCall = { readonly file: string; readonly level: string; readonly text: string };

/** Without comments: an example in one is no event. */
const sources = readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.ts'))
  .map((file) => ({
    file,
    source: readFileSync(join(root, 'src', file), 'utf8').replace(/\/\*[\s\S]*?\*\//g, ''),
  }));

const calls: readonly LogCall[] = sources.flatMap(({ file, source }) =>
  [...source.matchAll(/\blog(?:ger)?\??\.(trace|debug|info|warn|error|fatal)\(/g)].map((match) => ({
    file,
    level: match[1] ?? '',
    text: upToClosing(source, match.index + match[0].length),
  })),
);

/** The text up to the bracket that closes what was opened before `from`; within strings they come in pairs. */
function upToClosing(source: string, from: number, [open, close]: string = '()'): string {
  let depth = 1;
  let end = from;
  for (; depth > 0 && end < source.length; end++) {
    if (source[end] === open) depth++;
    if (source[end] === close) depth--;
  }
  return source.slice(from, end - 1).trim();
}

/** What follows the fields of a call: a comma and its message. */
function afterFields(call: LogCall): string {
  const fields = upToClosing(call.text, 1, '{}');
  return call.text.slice(call.text.indexOf(fields) + fields.length);
}

const eventOf = (call: LogCall): string => /^\{\s*event: '([a-z0-9_]+)'/.exec(call.text)?.[1] ?? '';

test('every log call begins with its event, in snake case and as a literal, and has a message for people', () => {
  expect(calls.length).toBeGreaterThan(20);
  const odd = calls.filter((call) => eventOf(call) === '' || !/^\s*\},\s*[^\s,]/.test(afterFields(call)));
  expect(odd.map((call) => `${call.file}: ${call.level}(${call.text})`)).toEqual([]);
});

test('docs/metrics.md lists exactly the log events that the sources write, once each and at their level', () => {
  const written = [...new Set(calls.map((call) => `${eventOf(call)} ${call.level}`))];
  const rows = [...page.matchAll(/^\| `([a-z0-9_]+)` \| (trace|debug|info|warn|error|fatal) \|/gm)];
  expect(rows.map((row) => `${row[1]} ${row[2]}`).toSorted()).toEqual(written.toSorted());
});

test('no event is written but in a log call, where the list above would miss it', () => {
  const literals = sources.flatMap(({ file, source }) =>
    [...source.matchAll(/\bevent: '[a-z0-9_]+'/g)].map((match) => `${file}: ${match[0]}`),
  );
  expect(literals.toSorted()).toEqual(
    calls.map((call) => `${call.file}: event: '${eventOf(call)}'`).toSorted(),
  );
});
