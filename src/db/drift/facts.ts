/** What the newest migration makes of a database, as checked-in facts, and the same facts read from a database. */
import { type Fact, type FactKind, readCatalog } from '../catalog.ts';
import type { Database, Queryable } from '../database.ts';

/** Facts by their key: what it is about → what is so. */
export type Facts = ReadonlyMap<string, Fact>;

/**
 * Kinds that say nothing about whether the schema works, or that belong to somebody else: schema auth is a Supabase project's own, and of
 * extensions the check of pgvector says more.
 */
const isLeftOut = (fact: Fact): boolean =>
  fact.kind === 'comment' || fact.kind === 'extension' || fact.schema === 'auth';

const SEPARATOR = ' | ';

/** What a fact is about. Rights on a table and on its columns are two facts. */
export function factKey(fact: Fact): string {
  const kind = fact.kind === 'grant' && fact.position === 1 ? 'column grant' : fact.kind;
  // a function's owner stands where others have their name
  return [kind, fact.schema, fact.relation, fact.kind === 'function' ? '' : fact.name].join(SEPARATOR);
}

/** The text of the checked-in file: each fact on a line of its own. */
export function expectedText(facts: readonly Fact[]): string {
  const entries = facts
    .filter((fact) => !isLeftOut(fact))
    .map((fact) => [
      factKey(fact),
      fact.kind === 'function' ? `owner ${fact.name}\n${fact.text}` : fact.text,
    ]);
  return `${JSON.stringify(Object.fromEntries(entries), null, 2)}\n`;
}

/** Gives the facts back from the parsed text. */
export function parseExpected(entries: Readonly<Record<string, string>>): Facts {
  return new Map(
    Object.entries(entries).map(([key, value]) => {
      const [kind = '', schema = '', relation = '', name = ''] = key.split(SEPARATOR);
      const isFunction = kind === 'function';
      const [, owner = '', body = ''] = (isFunction && /^owner (.*)\n([\s\S]*)$/.exec(value)) || [];
      const fact: Fact = {
        kind: (kind === 'column grant' ? 'grant' : kind) as FactKind,
        schema,
        relation,
        name: isFunction ? owner : name,
        position: kind === 'column grant' ? 1 : 0,
        text: isFunction ? body : value,
      };
      return [key, fact];
    }),
  );
}

/** The facts that this version of agentd expects of a migrated database. */
export async function expectedFacts(): Promise<Facts> {
  // half a megabyte that only this command needs; as an import, so that the compiler takes it along
  const { default: entries } = await import('./expected.json', { with: { type: 'json' } });
  return parseExpected(entries as Record<string, string>);
}

/** What else must hold, and stands in no definition. */
export type States = {
  /** `schema.table.trigger` → does not fire. */
  readonly offTriggers: ReadonlySet<string>;
  /** `schema.index` → not usable. */
  readonly invalidIndexes: ReadonlySet<string>;
  /** The schema of pgvector, which is in no fact. */
  readonly vectorHome: string;
};

/** The facts of a database, read in one transaction with the search_path that the checked-in ones were read with. */
export async function actualFacts(db: Database): Promise<{ readonly facts: Facts; readonly states: States }> {
  return db.transaction(async (tx) => {
    await tx.query('set local search_path to public');
    const facts = (await readCatalog(tx))
      .filter((fact) => !isLeftOut(fact))
      // a function that takes a vector takes it from wherever pgvector is
      .map((fact) => ({
        ...fact,
        relation: fact.relation.replaceAll(/(?:"[^"]+"|\b\w+)\.vector\b/g, 'vector'),
      }));
    return { facts: new Map(facts.map((fact) => [factKey(fact), fact])), states: await readStates(tx) };
  });
}

async function readStates(db: Queryable): Promise<States> {
  const triggers = await db.query<{ name: string }>(
    `select n.nspname || '.' || c.relname || '.' || t.tgname as name
       from pg_catalog.pg_trigger t
       join pg_catalog.pg_class c on c.oid = t.tgrelid
       join pg_catalog.pg_namespace n on n.oid = c.relnamespace
      where not t.tgisinternal and t.tgenabled in ('D', 'R')`,
  );
  const indexes = await db.query<{ name: string }>(
    `select n.nspname || '.' || c.relname as name
       from pg_catalog.pg_index i
       join pg_catalog.pg_class c on c.oid = i.indexrelid
       join pg_catalog.pg_namespace n on n.oid = c.relnamespace
      where not (i.indisvalid and i.indisready)`,
  );
  const [vector] = await db.query<{ home: string }>(
    `select n.nspname as home from pg_catalog.pg_extension e
       join pg_catalog.pg_namespace n on n.oid = e.extnamespace where e.extname = 'vector'`,
  );
  return {
    offTriggers: new Set(triggers.map((row) => row.name)),
    invalidIndexes: new Set(indexes.map((row) => row.name)),
    vectorHome: vector?.home ?? 'public',
  };
}
