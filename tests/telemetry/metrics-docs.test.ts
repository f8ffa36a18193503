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

test('docs/metrics.md lists exactly the log events that the sources write, once each', () => {
  const files = readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' }).filter((file) =>
    file.endsWith('.ts'),
  );
  const written = new Set<string>();
  for (const file of files) {
    // without comments: an example in one is no event
    const source = readFileSync(join(root, 'src', file), 'utf8').replace(/\/\*[\s\S]*?\*\//g, '');
    for (const match of source.matchAll(/\bevent: '([a-z0-9_]+)'/g)) written.add(match[1] ?? '');
  }
  expect(written.size).toBeGreaterThan(0);
  expect(documented.filter((name) => !name.startsWith('agentd_')).toSorted()).toEqual(
    [...written].toSorted(),
  );
});
