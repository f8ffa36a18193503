/**
 * Runs benchmarks one after the other and prints their table.
 *
 *     node bench/run.ts [name…] [--write]
 *
 * --write puts the table into bench/README.md; lines of benchmarks that were not run stay as they are.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { describeMachine } from './support/machine.ts';
import { markdown, plain, type Result } from './support/result.ts';

const names = [
  'pickup',
  'runs',
  'slots',
  'insert',
  'schedule',
  'fairness',
  'deep-queue',
  'takeover',
  'rate-limit',
  'embed-rate',
  'extract',
  'memory',
  'rls',
  'chunker',
  'pipeline',
  'retrieval',
  'conversion',
  'retention',
  'mcp-refresh',
  'usage',
  'usage-open',
  'limits',
  'oauth',
  'soak',
];
/** Only when named: it takes an hour. */
const slow = new Set(['soak']);
const args = process.argv.slice(2);
const write = args.includes('--write');
const chosen = args.filter((arg) => arg !== '--write');
const unknown = chosen.filter((name) => !names.includes(name));
if (unknown.length > 0) {
  console.error(`Unknown: ${unknown.join(', ')}. Known: ${names.join(', ')}.`);
  process.exit(2);
}

const machine = await describeMachine();
console.log(`${machine}\n`);
const results: Result[] = [];
for (const name of names.filter((n) => (chosen.length === 0 ? !slow.has(n) : chosen.includes(n)))) {
  const module = (await import(`./${name}.ts`)) as { bench: () => Promise<Result> };
  const result = await module.bench();
  results.push(result);
  console.log(`${plain(result)}\n`);
}
if (write) await updateReadme(results);

async function updateReadme(fresh: readonly Result[]): Promise<void> {
  const path = new URL('README.md', import.meta.url);
  const text = await readFile(path, 'utf8');
  const [begin, end] = ['<!-- table -->', '<!-- /table -->'];
  const [before = '', rest = ''] = text.split(begin);
  const [old = '', after = ''] = rest.split(end);
  const kept = new Map<string, string[]>();
  for (const row of old.split('\n')) {
    const bench = /^\| ([\w-]+) \|/.exec(row)?.[1];
    if (bench && names.includes(bench)) kept.set(bench, [...(kept.get(bench) ?? []), row]);
  }
  const [head = '', rule = ''] = markdown([]).split('\n');
  for (const result of fresh) kept.set(result.bench, markdown([result]).split('\n').slice(2));
  const rows = names.flatMap((name) => kept.get(name) ?? []);
  const table = [machine, '', head, rule, ...rows].join('\n');
  await writeFile(path, `${before}${begin}\n${table}\n${end}${after}`);
}
