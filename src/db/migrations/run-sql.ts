import { type Kysely, type RawBuilder, sql } from 'kysely';

/**
 * Runs a script of one or many statements.
 *
 * A script must hold no parameters: pg then sends it by the simple protocol, which takes many statements in one
 * string. Identifiers found at run time go in by `sql.id`, text that belongs to the migration by `sql.raw`.
 *
 * @throws the database's error, which names the statement's position in the script
 */
export async function runSql(db: Kysely<unknown>, script: RawBuilder<unknown>): Promise<void> {
  await script.execute(db);
}

/** Triggers that keep `updated_at` true on each of the named tables of schema public. */
export function keepUpdatedAt(...tables: readonly string[]): RawBuilder<unknown> {
  const statements = tables.map(
    (table) => `
      create trigger set_updated_at
        before update on public.${table}
        for each row execute function agentd.set_updated_at();`,
  );
  return sql.raw(statements.join('\n'));
}

/** Drops tables of schema public in the given order, which must put children before their parents. */
export function dropTables(...tables: readonly string[]): RawBuilder<unknown> {
  return sql.raw(tables.map((table) => `drop table public.${table};`).join('\n'));
}

/**
 * The schema in which pgvector lives: `extensions` on Supabase, usually `public` elsewhere.
 *
 * @throws when the extension is not installed
 */
export async function vectorSchema(db: Kysely<unknown>): Promise<string> {
  const found = await sql<{ schema: string }>`
    select n.nspname as schema
      from pg_catalog.pg_extension e
      join pg_catalog.pg_namespace n on n.oid = e.extnamespace
     where e.extname = 'vector'`.execute(db);
  const schema = found.rows[0]?.schema;
  if (schema === undefined)
    throw new Error('The extension "vector" (pgvector) is not installed in this database.');
  return schema;
}

/**
 * The text of an earlier migration with one part of it changed: what a migration that replaces a function says of it.
 *
 * @throws when the part is not in the text
 */
export function changed(text: string, part: string | RegExp, replacement: string): string {
  const result = text.replace(part, () => replacement);
  if (result === text) throw new Error(`The text has no part ${part}.`);
  return result;
}

/**
 * The statement that makes a function of schema agentd, out of a migration's text: what a later migration puts back when it is taken back.
 *
 * @throws when the text makes no such function
 */
export function functionOf(text: string, name: string): string {
  const from = text.indexOf(`create function agentd.${name}(`);
  const end = text.indexOf('$$;', text.indexOf('$$', from) + 2);
  if (from < 0 || end < 0) throw new Error(`The text makes no function ${name}.`);
  return text.slice(from, end + 3);
}
