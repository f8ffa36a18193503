import { readFile } from 'node:fs/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type GeneratedFiles, generateFiles } from '../../bin/generate-schema.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';

let db: TestDatabase;
let generated: GeneratedFiles;
beforeAll(async () => {
  db = await testDatabase();
  generated = await generateFiles(db);
});
afterAll(() => db?.dispose());

const checkedIn = (name: keyof GeneratedFiles): Promise<string> =>
  readFile(new URL(`../../src/db/${name}`, import.meta.url), 'utf8');

const advice = (name: string): string =>
  `src/db/${name} is not what the migrations make. Run: npm run db:generate`;

test('src/db/types.ts is what the migrations make, on the embedded database and on a server', async () => {
  expect(generated['types.ts'], advice('types.ts')).toBe(await checkedIn('types.ts'));
});

// Servers of other versions print some definitions differently.
test.skipIf(onServer)('src/db/schema.txt is what the migrations make', async () => {
  expect(generated['schema.txt'], advice('schema.txt')).toBe(await checkedIn('schema.txt'));
});

test('every table, view and column of the schemas is in the types, and no partition or foreign schema', async () => {
  const rows = await db.query<{ table: string; columns: string[] }>(
    `select case table_schema when 'public' then '' else table_schema || '.' end || table_name as table,
            array_agg(column_name::text order by column_name::text collate "C") as columns
       from information_schema.columns
      where table_schema in ('public', 'agentd', 'auth') and table_name !~ '^(p_|migration)'
      group by table_schema, table_name`,
  );
  expect(columnsOf(await checkedIn('types.ts'))).toEqual(
    Object.fromEntries(rows.map((row) => [row.table, row.columns])),
  );
});

test('schema.txt tells of every kind of thing, and of none twice', () => {
  const text = generated['schema.txt'];
  for (const title of [
    'enums',
    'columns',
    'constraints',
    'indexes',
    'triggers',
    'policies',
    'grants',
    'definition',
  ]) {
    expect(text).toContain(`\n  ${title}\n`);
  }
  const heads = text.match(/^## .*$/gm) ?? [];
  expect(heads.length).toBeGreaterThan(100);
  expect(new Set(heads).size).toBe(heads.length);
  expect(text).not.toMatch(/\bp_\d|_20\d\d/);
});

/** Table → sorted columns, read from the text of types.ts. */
function columnsOf(types: string): Record<string, string[]> {
  const bodies = new Map(
    [...types.matchAll(/^export interface (\w+) \{\n([\s\S]*?)^\}/gm)].map((match) => [
      match[1],
      match[2] ?? '',
    ]),
  );
  const members = (body: string): [string, string][] =>
    [...body.matchAll(/^ {2}"?([\w.]+)"?: (.*);$/gm)].map((match) => [match[1] ?? '', match[2] ?? '']);
  return Object.fromEntries(
    members(bodies.get('DB') ?? '').map(([table, type]) => [
      table,
      members(bodies.get(type) ?? '')
        .map(([column]) => column)
        .sort(),
    ]),
  );
}
