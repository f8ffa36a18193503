import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';

const src = fileURLToPath(new URL('../src', import.meta.url));

/** For each part of the house, the parts that it may import beside itself. What is not listed here is nobody's yet. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  cli: ['commands', 'version'],
  commands: ['daemon', 'config', 'db', 'providers', 'schedule', 'telemetry', 'secrets', 'clock', 'version'],
  daemon: [
    'jobs',
    'services',
    'queue',
    'pipelines',
    'providers',
    'db',
    'schedule',
    'telemetry',
    'secrets',
    'config',
    'clock',
    'version',
  ],
  jobs: ['secrets', 'pipelines', 'queue', 'providers', 'db', 'schedule', 'telemetry', 'config', 'clock'],
  services: ['secrets', 'queue', 'pipelines', 'providers', 'db', 'schedule', 'telemetry', 'config', 'clock'],
  pipelines: ['secrets', 'providers', 'db', 'schedule', 'telemetry', 'config', 'clock', 'queue'],
  queue: ['db', 'telemetry', 'config', 'clock'],
  telemetry: ['db', 'config'],
  providers: ['secrets', 'config', 'clock'],
  schedule: [],
  db: ['secrets', 'config', 'clock'],
  config: [],
  secrets: [],
  clock: [],
  version: [],
};

/** Folders that belong to another part: the demo is one command, too long for one file. */
const BELONGS_TO: Readonly<Record<string, string>> = { demo: 'commands' };

/** The first folder below src, or the name of a file that stands there alone. */
const partOf = (file: string): string => {
  const first = (relative(src, file).split(sep)[0] ?? '').replace(/\.ts$/, '');
  return BELONGS_TO[first] ?? first;
};

type Edge = { readonly from: string; readonly to: string; readonly file: string; readonly imported: string };

const files = readdirSync(src, { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.ts'))
  .map((file) => join(src, file));

const edges: Edge[] = files.flatMap((file) => {
  const source = readFileSync(file, 'utf8')
    .replace(/\/\*[\s\S]*?\*\//g, '')
    .replace(/^\s*\/\/.*$/gm, '');
  return [...source.matchAll(/(?:\bfrom\s+|\bimport\s+|\bimport\(\s*)'(\.{1,2}\/[^']+)'/g)].map((match) => {
    const imported = join(dirname(file), match[1] ?? '');
    return {
      from: partOf(file),
      to: partOf(imported),
      file: relative(src, file),
      imported: relative(src, imported),
    };
  });
});

test('dependencies between the parts of the house point one way', () => {
  expect(edges.length).toBeGreaterThan(50);
  const wrong = edges
    .filter((edge) => edge.from !== edge.to && !MAY_IMPORT[edge.from]?.includes(edge.to))
    .map((edge) => `${edge.file} imports ${edge.imported}`);
  expect(wrong).toEqual([]);
});

test('the rule itself has no cycle', () => {
  const visit = (part: string, path: readonly string[]): void => {
    expect(path, `${[...path, part].join(' → ')} is a cycle`).not.toContain(part);
    for (const next of MAY_IMPORT[part] ?? []) visit(next, [...path, part]);
  };
  for (const part of Object.keys(MAY_IMPORT)) visit(part, []);
});

test('every part of the house is in the rule', () => {
  expect([...new Set(files.map(partOf))].filter((part) => !(part in MAY_IMPORT))).toEqual([]);
});

test('only the configuration and the command line read the environment', () => {
  const readers = files
    .filter((file) => /\bprocess\.env\b/.test(readFileSync(file, 'utf8').replace(/\/\*[\s\S]*?\*\//g, '')))
    .map((file) => relative(src, file));
  expect(readers.toSorted()).toEqual(['cli.ts', 'config.ts']);
});
