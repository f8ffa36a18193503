import { readdirSync, readFileSync } from 'node:fs';
import { basename, dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { filesWithoutDatabase } from './support/which-database.ts';

const tests = dirname(fileURLToPath(import.meta.url));
const without = filesWithoutDatabase().map((file) => relative(tests, file));

test('a run on a server leaves out what opens no database of the run, and nothing else', () => {
  expect(without).toContain('demo.test.ts');
  expect(without).toContain('schedule/zone.test.ts');
  // a database of its own, one that a helper opens, and one that a helper of a helper opens
  for (const file of ['db/migrate.test.ts', 'scenarios/keys.test.ts', 'db/supabase.test.ts']) {
    expect(without).not.toContain(file);
  }
});

test('nothing but what every test on a database imports says which database a run is given', () => {
  const knowing = readdirSync(tests, { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.ts') && file !== basename(fileURLToPath(import.meta.url)))
    .filter((file) =>
      /\bTEST_DATABASE_URL\b|\binject\('template'\)/.test(
        readFileSync(join(tests, file), 'utf8').replace(/\/\*[\s\S]*?\*\//g, ''),
      ),
    );
  expect(knowing.filter((file) => without.includes(file))).toEqual([]);
  expect(knowing.filter((file) => !file.endsWith('.test.ts')).sort()).toEqual([
    'chaos/run.ts',
    'support/database.ts',
    'support/global-setup.ts',
  ]);
});
