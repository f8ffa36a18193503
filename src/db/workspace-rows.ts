/** The rows of a workspace as lines of JSON: read by cursors, secrets left out. */
import type { Database, Queryable } from './database.ts';
import { secretColumns } from './migrations/access-rules.ts';
import { SECRET_PLACES } from './secret-columns.ts';
import { quoted } from './workspace-catalog.ts';
import type { PlannedTable } from './workspace-plan.ts';
import { EXPORTED_IF } from './workspace-tables.ts';

/** What stands in the place of a secret. */
export const MASK = '[not exported]';

/** How a table is exported. */
export type ExportedTable = {
  readonly table: PlannedTable;
  readonly text: string;
  /** Columns, or entries of them as `column.entry`, that hold the mask where they hold anything. */
  readonly masked: readonly string[];
  /** Columns that are not in the lines: made from others by the database, or vectors. */
  readonly omitted: readonly string[];
};

const isVector = (type: string): boolean => /(^|\.)vector(\(|$)/.test(type);

/** The statement that reads a workspace's rows of a table, a JSON object each. Throws for what is no UUID. */
export function exportOf(table: PlannedTable, workspaceId: string, withVectors: boolean): ExportedTable {
  const masked: string[] = [];
  const omitted: string[] = [];
  const whole = secretsOf(table.name).filter((name) => !name.includes('.'));
  const entries = secretsOf(table.name).filter((name) => name.includes('.'));
  const values: string[] = [];
  for (const { name, type } of table.columns) {
    const column = `t.${quoted(name)}`;
    const secretEntries = entries.filter((entry) => entry.startsWith(`${name}.`));
    if (type === 'tsvector' || (isVector(type) && !withVectors)) omitted.push(name);
    else if (whole.includes(name)) {
      masked.push(name);
      values.push(`case when ${column} is not null then '${MASK}' end as ${quoted(name)}`);
    } else if (secretEntries.length > 0) {
      masked.push(...secretEntries);
      const keys = secretEntries.map((entry) => `'${entry.slice(name.length + 1)}'`);
      values.push(
        `case when jsonb_typeof(${column}) = 'object' then ${column} || coalesce((select jsonb_object_agg(k.key, '${MASK}') from unnest(array[${keys}]) k (key) where ${column} ? k.key), '{}') else ${column} end as ${quoted(name)}`,
      );
    } else if (isVector(type)) values.push(`${column}::real[] as ${quoted(name)}`);
    // the text of json may have line ends
    else values.push(type === 'json' ? `${column}::jsonb as ${quoted(name)}` : column);
  }
  const only = EXPORTED_IF[table.name];
  const where = [
    `(${table.own.map(({ sql }) => sql).join(' or ')})`,
    ...(only === undefined ? [] : [only.sql]),
  ].join(' and ');
  return {
    table,
    masked,
    omitted,
    text: `select row_to_json(x)::text as line from (select ${values.join(', ')} from ${table.sql} t where ${where}) x`.replaceAll(
      '$1',
      literal(workspaceId),
    ),
  };
}

/** Columns of a table that may hold secrets; `column.entry` for an entry of a JSON object. */
export function secretsOf(name: string): string[] {
  const [schema, relation] = name.split('.') as [string, string];
  const whole = schema === 'public' ? (secretColumns[relation] ?? []) : [];
  const places = SECRET_PLACES.filter(({ table, column }) => table === name && !whole.includes(column)).map(
    ({ column, entry }) => (entry === null ? column : `${column}.${entry}`),
  );
  return [...new Set([...whole, ...places])];
}

/** A cursor takes no parameters on every server. */
function literal(id: string): string {
  if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(id)) throw new TypeError(`${id} is no UUID`);
  return `'${id}'::uuid`;
}

/** Rows that are read at once; a row has at most a few megabytes. */
const AT_ONCE = 64;

/** Hands over the lines of a table in their turn, the next ones when those before have been taken. Within a transaction. */
export async function eachLine(
  tx: Queryable,
  { text }: ExportedTable,
  take: (lines: readonly string[]) => Promise<void>,
): Promise<void> {
  await tx.query(`declare agentd_export no scroll cursor for ${text}`);
  for (;;) {
    const rows = await tx.query<{ line: string }>(`fetch ${AT_ONCE} from agentd_export`);
    if (rows.length > 0) await take(rows.map(({ line }) => line));
    if (rows.length < AT_ONCE) break;
  }
  await tx.query('close agentd_export');
}

/** Runs `work` in a transaction that only reads and sees the database as of one moment. */
export function readingSnapshot<T>(db: Database, work: (tx: Queryable) => Promise<T>): Promise<T> {
  return db.transaction(async (tx) => {
    await tx.query('set transaction read only');
    return work(tx);
  }, 'repeatable read');
}

/** The newest migration, and the database's time. */
export async function exportFacts(tx: Queryable): Promise<{ schema: string; at: Date; postgres: string }> {
  const [row] = await tx.query<{ schema: string; at: Date; postgres: string }>(
    `select (select max(name) from agentd.migrations) as schema, agentd.now() as at, current_setting('server_version') as postgres`,
  );
  if (row === undefined) throw new Error('The database does not say what it is.');
  return row;
}

/** A workspace as a person knows it; null: there is none. */
export async function workspaceNamed(
  db: Queryable,
  id: string,
): Promise<{ id: string; name: string; slug: string; is_personal: boolean } | null> {
  const [row] = await db.query<{ id: string; name: string; slug: string; is_personal: boolean }>(
    'select id, name, slug, is_personal from public.workspaces where id = $1',
    [id],
  );
  return row ?? null;
}
