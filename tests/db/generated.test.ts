import { readFile } from 'node:fs/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type GeneratedFiles, generateFiles } from '../../bin/generate-schema.ts';
import { documentsOf, tablesOf } from '../../bin/schema-document.ts';
import { domains } from '../../bin/schema-notes.ts';
import { readCatalog } from '../../src/db/catalog.ts';
import { documents } from '../../src/db/compatibility/documents.ts';
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
test.skipIf(onServer)('src/db/schema.txt and what doctor expects are what the migrations make', async () => {
  expect(generated['schema.txt'], advice('schema.txt')).toBe(await checkedIn('schema.txt'));
  const expected = await checkedIn('drift/expected.json');
  expect(generated['drift/expected.json'], advice('drift/expected.json')).toBe(expected);
});

test('docs/schema.md is what the migrations and the notes make, on the embedded database and on a server', async () => {
  const page = await checkedIn('../../docs/schema.md');
  expect(generated['../../docs/schema.md'], advice('../../docs/schema.md')).toBe(page);
});

test('the tables of docs/platforms.md are what src/db/compatibility says', async () => {
  const page = await checkedIn('../../docs/platforms.md');
  expect(generated['../../docs/platforms.md'], advice('../../docs/platforms.md')).toBe(page);
  for (const { schema, tables } of documents) {
    const part = page.slice(page.indexOf(`schema \`${schema}\`\n`)).split('\n### ')[0] ?? '';
    expect([...part.matchAll(/^\| `(\w+)` \|/gm)].map((row) => row[1])).toEqual(Object.keys(tables));
  }
});

test('every table is on docs/schema.md once, with a note in words, and no note is of a table that is gone', async () => {
  const tables = tablesOf(await readCatalog(db)).filter((table) => !table.startsWith('agentd.migration'));
  const notes = domains.flatMap((domain) => Object.entries(domain.tables));
  expect(notes.map(([table]) => table).sort()).toEqual(tables.sort());
  const rows =
    generated['../../docs/schema.md'].match(/^\| `[^`]+` \| [^|]{5,} \| .* \| .+ \| .+ \|$/gm) ?? [];
  expect(rows.map((row) => /`([^`]+)`/.exec(row)?.[1]).sort()).toEqual(tables.sort());
  expect(documentsOf('profiles')).toBe(
    'Agentopia, Agentopia diagram (`user_profiles`), AgentCenter, AgentExpress (`users`)',
  );
  expect(documentsOf('task_runs')).toBe('');
});

test('every table, view and column of the schemas is in the types, and no partition or foreign schema', async () => {
  const rows = await db.query<{ table: string; columns: string[] }>(
    `select case n.nspname when 'public' then '' else n.nspname || '.' end || c.relname as table,
            array_agg(a.attname::text order by a.attname::text collate "C") as columns
       from pg_class c
       join pg_namespace n on n.oid = c.relnamespace
       join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
      where n.nspname in ('public', 'agentd', 'auth') and c.relkind in ('r', 'p', 'v', 'm') and c.relname !~ '^(p_|migration)'
      group by n.nspname, c.relname`,
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
