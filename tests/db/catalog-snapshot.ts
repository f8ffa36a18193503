import { factLine, readCatalog } from '../../src/db/catalog.ts';
import type { Runner } from './schema-support.ts';

/** Everything that makes up the schema, one line a fact, in a stable order, without oids. */
export async function catalogSnapshot(db: Runner): Promise<string[]> {
  const facts = await readCatalog({
    query: async <R>(statement: unknown, values: readonly unknown[] = []) =>
      (await db.query(statement as string, values as unknown[])).rows as R[],
  });
  return facts.map(factLine);
}
