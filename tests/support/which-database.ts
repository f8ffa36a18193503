/** Which test files run on the database that a run is given. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const tests = fileURLToPath(new URL('..', import.meta.url));
/** The one place where a test gets a database of the run's. */
const DOOR = fileURLToPath(new URL('./database.ts', import.meta.url));

/**
 * Test files, as absolute paths, whose imports do not lead to tests/support/database.ts. Whatever database a run is given, they
 * prove the same (the demo brings its own), so a run on a server leaves them to the run on the embedded one.
 */
export function filesWithoutDatabase(): string[] {
  return readdirSync(tests, { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.test.ts'))
    .map((file) => join(tests, file))
    .filter((file) => !imported(file).has(DOOR));
}

/** The file and everything of the repository that it imports, directly or through others. */
function imported(file: string, seen = new Set<string>()): Set<string> {
  if (seen.has(file) || !existsSync(file)) return seen;
  seen.add(file);
  const source = readFileSync(file, 'utf8');
  for (const [, path] of source.matchAll(
    /(?:\bfrom\s+|\bimport\s+|\bimport\(\s*)['"](\.{1,2}\/[^'"]+)['"]/g,
  )) {
    imported(join(dirname(file), path as string), seen);
  }
  return seen;
}
