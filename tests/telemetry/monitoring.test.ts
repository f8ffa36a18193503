import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { createMetrics } from '../../src/telemetry/metrics.ts';

const docs = fileURLToPath(new URL('../../docs', import.meta.url));
const read = (file: string): string => readFileSync(join(docs, file), 'utf8');

/** Labels of every series that an expression may name; those of a histogram under the names of its series. */
async function exportedSeries(): Promise<Map<string, readonly string[]>> {
  const { registry } = createMetrics();
  const series = new Map<string, readonly string[]>();
  for (const { name, type } of await registry.getMetricsAsJSON()) {
    const metric = registry.getSingleMetric(name) as unknown as { labelNames: readonly string[] };
    if (String(type) !== 'histogram') series.set(name, metric.labelNames);
    else {
      for (const part of ['bucket', 'sum', 'count'])
        series.set(`${name}_${part}`, part === 'bucket' ? [...metric.labelNames, 'le'] : metric.labelNames);
    }
  }
  return series;
}

const WORDS = new Set([
  'and',
  'or',
  'unless',
  'on',
  'ignoring',
  'by',
  'without',
  'bool',
  'offset',
  'group_left',
]);
/** Labels that Prometheus adds when it scrapes. */
const SCRAPED = ['instance', 'job'];

type Use = { readonly metric: string; readonly labels: readonly string[] };

/**
 * The series that a PromQL expression names, each with the labels that are asked of it: its own selector's, and those that the whole
 * expression groups by.
 */
function usesOf(expression: string): Use[] {
  const bare = expression.replace(/\[[^\]]*\]/g, ' ');
  const grouped = [...bare.matchAll(/\b(?:by|without|on|ignoring)\s*\(([^)]*)\)/g)].flatMap((match) =>
    (match[1] ?? '').split(',').map((label) => label.trim()),
  );
  const rest = bare.replace(/\b(?:by|without|on|ignoring)\s*\([^)]*\)/g, ' ');
  const names = rest.matchAll(/([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(\{[^}]*\}|\()?/g);
  return [...names].flatMap((match) => {
    const [, name = '', follows = ''] = match;
    const before = rest[match.index - 1] ?? ' ';
    if (follows === '(' || WORDS.has(name) || /[0-9.$"]/.test(before)) return [];
    const own = [...follows.matchAll(/([a-zA-Z_]+)\s*(?:=~|!~|!=|=)/g)].map((label) => label[1] ?? '');
    return [{ metric: name, labels: [...own, ...grouped].filter((label) => label !== '') }];
  });
}

/** What an expression names and agentd does not export. */
async function unknownIn(expressions: readonly string[]): Promise<string[]> {
  const series = await exportedSeries();
  return expressions.flatMap((expression) => {
    const uses = usesOf(expression);
    if (uses.length === 0) return [`${expression}: names nothing`];
    return uses.flatMap(({ metric, labels }) => {
      const known = series.get(metric);
      if (!known) return [`${metric} in ${expression}`];
      return labels
        .filter((label) => ![...known, ...SCRAPED].includes(label))
        .map((label) => `${metric} has no label ${label}: ${expression}`);
    });
  });
}

type Rule = Readonly<
  Record<'alert' | 'expr' | 'for' | 'severity' | 'summary' | 'next_step' | 'runbook', string>
>;

/** Reads the part of YAML that the file is written in; any other line is an error. */
function readRules(text: string): Rule[] {
  const rules: Record<string, string>[] = [];
  for (const line of text.split('\n')) {
    if (/^\s*(#.*)?$/.test(line) || /^(groups:| {2}- name: agentd| {4}rules:)$/.test(line)) continue;
    if (/^ {8}(labels|annotations):$/.test(line)) continue;
    const match = /^(?: {6}- | {8}| {10})([a-z_]+): (.+)$/.exec(line);
    if (!match) throw new Error(`This line is not understood: ${line}`);
    const [, key = '', value = ''] = match;
    const quoted = /^'((?:[^']|'')*)'$/.exec(value);
    // Plain, a value must not hold what YAML would take for something else.
    if (!quoted && /^[[\]{}&*!|>'"%@`]|: | #/.test(value))
      throw new Error(`This value needs quotes: ${line}`);
    if (key === 'alert') rules.push({});
    (rules.at(-1) as Record<string, string>)[key] = quoted ? (quoted[1] ?? '').replaceAll("''", "'") : value;
  }
  return rules as Rule[];
}

type Panel = {
  readonly id: number;
  readonly title: string;
  readonly type: string;
  readonly gridPos: { readonly x: number; readonly y: number; readonly w: number; readonly h: number };
  readonly targets?: readonly { readonly expr: string; readonly datasource: { readonly uid: string } }[];
};
const dashboard = JSON.parse(read('monitoring/grafana-dashboard.json')) as {
  readonly panels: readonly Panel[];
  readonly templating: {
    readonly list: readonly { readonly name: string; readonly type: string; readonly definition?: string }[];
  };
};
const rules = readRules(read('monitoring/alerts.yml'));

test('the reader of expressions finds what is there', () => {
  expect(usesOf('max by (queue) (a_x{state="de ad", q=~"$queue"}) > 60 unless on (queue) b == 1e9')).toEqual([
    { metric: 'a_x', labels: ['state', 'q', 'queue', 'queue'] },
    { metric: 'b', labels: ['queue', 'queue'] },
  ]);
  expect(usesOf('sum(rate(c_total[$__rate_interval])) / 1e6').map((use) => use.metric)).toEqual(['c_total']);
});

test('every alert asks for series and labels that agentd exports', async () => {
  expect(rules.length).toBeGreaterThan(10);
  expect(await unknownIn(rules.map((rule) => rule.expr))).toEqual([]);
});

test('every panel asks for series and labels that agentd exports', async () => {
  const targets = dashboard.panels.flatMap((panel) => panel.targets ?? []);
  expect(targets.length).toBeGreaterThan(30);
  expect(await unknownIn(targets.map((target) => target.expr))).toEqual([]);
});

test('every metric is on the dashboard, but for those that only say how the worker works', async () => {
  const shown = dashboard.panels
    .flatMap((panel) => panel.targets ?? [])
    .flatMap((target) => usesOf(target.expr));
  const names = new Set(shown.map((use) => use.metric.replace(/_(bucket|sum|count)$/, '')));
  const metrics = (await createMetrics().registry.getMetricsAsJSON()).map((metric) => metric.name);
  expect(metrics.filter((name) => !names.has(name))).toEqual([
    'agentd_jobs_started_total',
    'agentd_consumer_settles_total',
    'agentd_consumer_settled_jobs_total',
    'agentd_consumer_buffered_jobs',
    'agentd_consumer_wakes_total',
    'agentd_dashboard_refreshes_total',
    'agentd_dashboard_refresh_seconds',
    'agentd_build_info',
  ]);
});

test('the dashboard can be imported anywhere: the data source is a variable, ids are unique, no panel covers another', () => {
  const { list } = dashboard.templating;
  expect(list[0]).toMatchObject({ name: 'datasource', type: 'datasource', query: 'prometheus' });
  const variables = new Set([...list.map((variable) => variable.name), '__rate_interval']);
  const text = JSON.stringify(dashboard);
  for (const [, name = ''] of text.matchAll(/\$\{?([a-zA-Z_]+)/g)) {
    if (name !== '__all') expect(variables).toContain(name);
  }
  for (const target of dashboard.panels.flatMap((panel) => panel.targets ?? []))
    expect(target.datasource.uid).toMatch(/^\$\{datasource\}$/);
  expect(new Set(dashboard.panels.map((panel) => panel.id)).size).toBe(dashboard.panels.length);
  for (const [i, a] of dashboard.panels.entries()) {
    expect(a.gridPos.x + a.gridPos.w).toBeLessThanOrEqual(24);
    for (const b of dashboard.panels.slice(i + 1)) {
      const [p, q] = [a.gridPos, b.gridPos];
      const apart = p.x + p.w <= q.x || q.x + q.w <= p.x || p.y + p.h <= q.y || q.y + q.h <= p.y;
      expect([a.title, b.title, apart]).toEqual([a.title, b.title, true]);
    }
  }
});

test('every alert waits a minute at least, has a severity, a summary, and a next step that leads somewhere', () => {
  const anchors = [...read('operating.md').matchAll(/^## (.+)$/gm)].map((match) =>
    (match[1] ?? '')
      .toLowerCase()
      .replace(/[^a-z0-9 -]/g, '')
      .replaceAll(' ', '-'),
  );
  expect(new Set(rules.map((rule) => rule.alert)).size).toBe(rules.length);
  for (const rule of rules) {
    expect(rule.for).toMatch(/^[1-9]\d*[mh]$/);
    expect(['critical', 'warning', 'info']).toContain(rule.severity);
    expect(rule.summary).toMatch(/\.$/);
    expect(rule.next_step).toMatch(/\w/);
    const [file, anchor = ''] = rule.runbook.split('#');
    expect([rule.alert, file]).toEqual([rule.alert, 'docs/operating.md']);
    expect(anchors).toContain(anchor);
  }
});

test('docs/monitoring.md explains every alert, with its severity', () => {
  const rows = [...read('monitoring.md').matchAll(/^\| (Agentd\w+) \| (\w+) \|/gm)];
  expect(rows.map((row) => `${row[1]} ${row[2]}`)).toEqual(
    rules.map((rule) => `${rule.alert} ${rule.severity}`),
  );
});
