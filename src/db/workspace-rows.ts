/** The rows of a workspace as lines of JSON: read by cursors, secrets left out. */
import type { Database, Queryable } from './database.ts';
import { secretColumns } from './migrations/access-rules.ts';
import { SECRET_PLACES } from './secret-columns.ts';
import { quoted } from './workspace-catalog.ts';
import type { PlannedTable } from './workspace-plan.ts';
import { EXPORTED_IF } from './workspace-tables.ts';

/** What stands in the place of a secret. */
export const MASK = '[not exported]';

/** What stands in the place of a value of a row that is too large to be written whole. */
export const CUT = '[not exported: too large]';

/** How a table is exported. */
export type ExportedTable = {
  readonly table: PlannedTable;
  /** Lines of the rows that are read many at once. */
  readonly text: string;
  /** Where the other rows are, and how one of these is read; null: no row of the table can be large. */
  readonly large: { readonly places: string; readonly one: string; readonly cut: string } | null;
  /** Columns, or entries of them as `column.entry`, that hold the mask where they hold anything. */
  readonly masked: readonly string[];
  /** Columns that are not in the lines: made from others by the database, or vectors. */
  readonly omitted: readonly string[];
};

/** Rows that are read at once, where each is no larger than this, about, before it is written as JSON (which may take six times the room). */
const AT_ONCE = 64;
const SMALL_ROW_BYTES = 256 * 1024;
/** The longest line; of a row whose line would be longer the values over so many bytes are left out. */
const LONGEST_LINE_BYTES = 128 * 1024 * 1024;
const SMALL_VALUE_BYTES = 32 * 1024;
/** So many times as large as it is stored any value but a text is taken to be: how well it compressed is not known without reading it. */
const INFLATES = 16;

const isVector = (type: string): boolean => /(^|\.)vector(\(|$)/.test(type);
const isText = (type: string): boolean => /^(text|character varying)(\(|$)/.test(type);
const isFixed = (type: string): boolean =>
  /^(uuid|boolean|smallint|integer|bigint|real|double precision|date|time|timestamp|interval)\b(?!.*\[\])/.test(
    type,
  );

/** A column's value in a line, and how large it is, about; null: small in any case. */
type Value = { readonly name: string; readonly sql: string; readonly size: string | null };

/** The statements that read a workspace's rows of a table, a JSON object each. Throws for what is no UUID. */
export function exportOf(table: PlannedTable, workspaceId: string, withVectors: boolean): ExportedTable {
  const masked: string[] = [];
  const omitted: string[] = [];
  const whole = secretsOf(table.name).filter((name) => !name.includes('.'));
  const entries = secretsOf(table.name).filter((name) => name.includes('.'));
  const values: Value[] = [];
  for (const { name, type } of table.columns) {
    const column = `t.${quoted(name)}`;
    const size = sizeOf(column, type);
    const secretEntries = entries.filter((entry) => entry.startsWith(`${name}.`));
    if (type === 'tsvector' || (isVector(type) && !withVectors)) omitted.push(name);
    else if (whole.includes(name)) {
      masked.push(name);
      values.push({ name, size: null, sql: `case when ${column} is not null then '${MASK}' end` });
    } else if (secretEntries.length > 0) {
      masked.push(...secretEntries);
      const keys = secretEntries.map((entry) => `'${entry.slice(name.length + 1)}'`);
      values.push({
        name,
        size,
        sql: `case when jsonb_typeof(${column}) = 'object' then ${column} || coalesce((select jsonb_object_agg(k.key, '${MASK}') from unnest(array[${keys}]) k (key) where ${column} ? k.key), '{}') else ${column} end`,
      });
    } else if (isVector(type)) values.push({ name, size: null, sql: `${column}::real[]` });
    // the text of json may have line ends
    else values.push({ name, size, sql: type === 'json' ? `${column}::jsonb` : column });
  }
  const only = EXPORTED_IF[table.name];
  const where = [
    `(${table.own.map(({ sql }) => sql).join(' or ')})`,
    ...(only === undefined ? [] : [only.sql]),
  ]
    .join(' and ')
    .replaceAll('$1', literal(workspaceId));
  const sizes = values.flatMap(({ size }) => (size === null ? [] : [size]));
  const isLarge = sizes.length === 0 ? null : `${sizes.join(' + ')} > ${SMALL_ROW_BYTES}`;
  const whatIs = values.map(({ name, sql }) => `${sql} as ${quoted(name)}`);
  const whatIsSmall = values.map(({ name, sql, size }) =>
    size === null
      ? `${sql} as ${quoted(name)}`
      : `case when ${size} > ${SMALL_VALUE_BYTES} then to_jsonb('${CUT}'::text) else to_jsonb(${sql}) end as ${quoted(name)}`,
  );
  const lines = (what: readonly string[], condition: string): string =>
    `select row_to_json(x)::text as line from (select ${what.join(', ')} from ${table.sql} t where ${condition}) x`;
  const here = 't.tableoid = $1::oid and t.ctid = $2::tid';
  return {
    table,
    masked,
    omitted,
    text: lines(whatIs, isLarge === null ? where : `(${where}) and not (${isLarge})`),
    large:
      isLarge === null
        ? null
        : {
            places: `select t.tableoid::text as part, t.ctid::text as place from ${table.sql} t where (${where}) and ${isLarge}`,
            // written once: without `offset` it would be for its length and for itself
            one: `select l.line from (${lines(whatIs, here)} offset 0) l where octet_length(l.line) <= ${LONGEST_LINE_BYTES}`,
            cut: lines(whatIsSmall, here),
          },
  };
}

function sizeOf(column: string, type: string): string | null {
  if (isFixed(type)) return null;
  if (isText(type)) return `coalesce(octet_length(${column}), 0)::bigint`;
  return `${INFLATES} * coalesce(pg_column_size(${column}), 0)::bigint`;
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

/**
 * Hands over the lines of a table in their turn, the next ones when those before have been taken; large ones one by one, at the end. Returns of how
 * many rows values were left out. Within a transaction of one snapshot.
 */
export async function eachLine(
  tx: Queryable,
  { text, large }: ExportedTable,
  take: (lines: readonly string[]) => Promise<void>,
): Promise<number> {
  await eachPage<{ line: string }>(tx, text, (rows) => take(rows.map(({ line }) => line)));
  let cut = 0;
  if (large === null) return cut;
  await eachPage<{ part: string; place: string }>(tx, large.places, async (rows) => {
    for (const { part, place } of rows) {
      const whole = await wholeLine(tx, large.one, [part, place]);
      if (whole !== null) await take([whole]);
      else {
        cut++;
        const short = await tx.query<{ line: string }>(large.cut, [part, place]);
        await take(short.map(({ line }) => line));
      }
    }
  });
  return cut;
}

async function eachPage<Row>(
  tx: Queryable,
  text: string,
  take: (rows: readonly Row[]) => Promise<void>,
): Promise<void> {
  await tx.query(`declare agentd_export no scroll cursor for ${text}`);
  for (;;) {
    const rows = await tx.query<Row>(`fetch ${AT_ONCE} from agentd_export`);
    if (rows.length > 0) await take(rows);
    if (rows.length < AT_ONCE) break;
  }
  await tx.query('close agentd_export');
}

/** Over what the server can hold in one value: 1 GB, or its memory. */
const TOO_LARGE = new Set(['54000', '53200', 'XX000']);

/** A row's line; null: it is too long, for us or for the server. */
async function wholeLine(tx: Queryable, text: string, place: readonly string[]): Promise<string | null> {
  await tx.query('savepoint agentd_line');
  try {
    const [row] = await tx.query<{ line: string }>(text, place);
    await tx.query('release savepoint agentd_line');
    return row?.line ?? null;
  } catch (error) {
    if (!TOO_LARGE.has((error as { code?: string }).code ?? '')) throw error;
    await tx.query('rollback to savepoint agentd_line');
    return null;
  }
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
