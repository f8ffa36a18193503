/** The five public documents, read as they are, against the schemas that serve them. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { mapped } from '../../src/db/compatibility/document.ts';
import { documents } from '../../src/db/compatibility/documents.ts';
import { type DocumentedColumn, readDocument } from '../documents/read.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db?.dispose());

/** Documented types that are one type in PostgreSQL's words, or that a wider one takes the place of. */
const fitting: Readonly<Record<string, string>> = {
  varchar: 'text',
  timestamp: 'timestamp with time zone',
  timestamptz: 'timestamp with time zone',
  decimal: 'numeric',
  float4: 'real',
  vector: 'vector',
};
/** Widths are not kept: a text that fits is stored, a longer one too. */
const plain = (type: string): string => {
  const name = type.replace(/\(\d+(,\d+)?\)/, '').replace(/^(public|extensions)\./, '');
  return fitting[name] ?? name;
};

describe.each(documents.map((document) => [document.title, document] as const))('%s', (_, document) => {
  const { schema, tables, exceptions } = document;
  const documented = readDocument(schema, document.file);
  const missing = (name: string): boolean => name in exceptions;

  /** Where a documented table's rows are: `schema.table`. */
  const home = (table: string): string => {
    if (table === 'auth.users' || table === 'users') return 'auth.users';
    const from = tables[table]?.from;
    return from?.includes('.') ? from : `public.${from}`;
  };
  /** The public column of a documented one. */
  const column = (table: string, name: string): string =>
    mapped(name, tables[table]?.columns[name] ?? '').from;

  test('its tables and columns are there, and no others', async () => {
    const rows = await db.query<{ table: string; columns: string[] }>(
      `select c.relname as table, array_agg(a.attname::text order by a.attnum) as columns
         from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        where c.relnamespace = $1::regnamespace and c.relkind in ('v', 'r')
        group by c.relname`,
      [schema],
    );
    const named = [...documented.tables].filter(([table]) => !missing(table));
    expect(named.length).toBeGreaterThan(4);
    expect(Object.fromEntries(rows.map((row) => [row.table, row.columns]))).toEqual(
      Object.fromEntries(named.map(([table, columns]) => [table, columns.map((c) => c.name)])),
    );
  });

  test('every column has the documented type', async () => {
    const rows = await db.query<{ name: string; type: string }>(
      `select c.relname || '.' || a.attname as name, format_type(a.atttypid, a.atttypmod) as type
         from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        where c.relnamespace = $1::regnamespace and c.relkind = 'v'`,
      [schema],
    );
    const actual = Object.fromEntries(rows.map((row) => [row.name, plain(row.type)]));
    const wanted = Object.fromEntries(
      everyColumn(documented.tables)
        .filter(([table]) => !missing(table))
        .map(([table, c]) => [`${table}.${c.name}`, plain(c.type)]),
    );
    expect(actual).toEqual(wanted);
  });

  test('its enums and their words exist', async () => {
    const words = new Map<string, readonly string[]>(documented.enums);
    for (const [, c] of everyColumn(documented.tables)) {
      if (c.words.length > 0 && document.enums.includes(c.type)) words.set(c.type, c.words);
    }
    const rows = await db.query<{ name: string; labels: string[] }>(
      `select t.typname as name, array_agg(e.enumlabel::text) as labels
         from pg_type t join pg_enum e on e.enumtypid = t.oid
        where t.typnamespace = 'public'::regnamespace and t.typname = any ($1) group by t.typname`,
      [[...document.enums]],
    );
    const labels = new Map(rows.map((row) => [row.name, row.labels]));
    expect([...labels.keys()].sort()).toEqual([...document.enums].sort());
    for (const [name, some] of words)
      expect(labels.get(name), name).toEqual(expect.arrayContaining([...some]));
    // AgentCenter lists its enums in full
    for (const [name, all] of documented.enums)
      expect([...(labels.get(name) ?? [])].sort()).toEqual([...all].sort());
  });

  test('what an insert leaves out has the documented default', async () => {
    const rows = await db.query<{ name: string; view: string | null; public: string | null }>(
      `select c.relname || '.' || a.attname as name, pg_get_expr(d.adbin, d.adrelid) as view, null as public
         from pg_class c join pg_attribute a on a.attrelid = c.oid join pg_attrdef d on (d.adrelid, d.adnum) = (c.oid, a.attnum)
        where c.relnamespace = $1::regnamespace
       union all
       select c.relname || '.' || a.attname, null, pg_get_expr(d.adbin, d.adrelid)
         from pg_class c join pg_attribute a on a.attrelid = c.oid join pg_attrdef d on (d.adrelid, d.adnum) = (c.oid, a.attnum)
        where c.relnamespace = 'public'::regnamespace`,
      [schema],
    );
    const ofView = new Map(rows.filter((row) => row.view !== null).map((row) => [row.name, row.view]));
    const ofTable = new Map(rows.filter((row) => row.public !== null).map((row) => [row.name, row.public]));
    for (const [table, c] of everyColumn(documented.tables)) {
      if (c.default === null || missing(c.default)) continue;
      const from = `${tables[table]?.from}.${column(table, c.name)}`;
      const given = ofView.get(`${table}.${c.name}`) ?? ofTable.get(from);
      expect(given, `${table}.${c.name} has no default`).toBeDefined();
      const [same] = await db.query<{ same: boolean }>(
        `select (${given})::text is not distinct from (${c.default})::text as same`,
      );
      expect(same?.same, `${table}.${c.name}: ${given} is not ${c.default}`).toBe(true);
    }
  });

  test('its functions have the documented names, arguments and results', async () => {
    const rows = await db.query<{ name: string; names: string[] | null; types: string[]; result: string }>(
      `select p.proname as name, p.proargnames[1:p.pronargs]::text[] as names, pg_get_function_result(p.oid) as result,
              array(select format_type(t, null) from unnest(p.proargtypes) with ordinality as a (t, n) order by n) as types
         from pg_proc p where p.pronamespace = $1::regnamespace`,
      [schema],
    );
    const actual = rows.map((row) => ({
      name: row.name,
      arguments: row.types.map((type, i) => ({ name: row.names?.[i] ?? '', type: plain(type) })),
    }));
    const byName = (a: { name: string }, b: { name: string }): number => (a.name < b.name ? -1 : 1);
    expect(actual.sort(byName)).toEqual(
      documented.functions.map(({ name, arguments: args }) => ({ name, arguments: [...args] })).sort(byName),
    );
    for (const { name, result } of documented.functions) {
      const found = rows.find((row) => row.name === name)?.result ?? '';
      if (result === 'table') expect(found).toMatch(/^TABLE\(/);
      else if (result !== null) expect(found.replace(/^\w+\./, '')).toBe(result);
    }
  });

  test('its indexes exist, by name where it gives one, and by what they find', async () => {
    const rows = await db.query<{ name: string; table: string; columns: string[] }>(
      `select x.relname as name, i.indrelid::regclass::text as table,
              array(select pg_get_indexdef(i.indexrelid, n, true) from generate_series(1, i.indnkeyatts) n) as columns
         from pg_index i join pg_class x on x.oid = i.indexrelid join pg_class c on c.oid = i.indrelid
        where c.relnamespace in ('public'::regnamespace, 'auth'::regnamespace)`,
    );
    for (const index of documented.indexes) {
      if (index.name !== null && missing(index.name)) continue;
      const table = home(index.table).replace(/^public\./, '');
      const columns = index.columns.map((name) => column(index.table, name) || name);
      const found = rows.filter(
        (row) =>
          row.table.replace(/^public\./, '') === table &&
          (index.name === null || row.name === index.name) &&
          columns.every((name, i) =>
            [name, `lower(${name})`].includes(
              row.columns[i]?.replace(/"/g, '').replace(/ DESC.*| NULLS.*/, '') ?? '',
            ),
          ),
      );
      expect(found.length, `${index.name ?? ''} on ${index.table} (${index.columns})`).toBeGreaterThan(0);
    }
  });

  test('what refers to another table is a foreign key to it', async () => {
    const rows = await db.query<{ child: string; column: string; parent: string }>(
      `select k.conrelid::regclass::text as child, a.attname as column, k.confrelid::regclass::text as parent
         from pg_constraint k join pg_attribute a on a.attrelid = k.conrelid and a.attnum = any (k.conkey)
        where k.contype = 'f' and k.connamespace = 'public'::regnamespace`,
    );
    const keys = new Set(
      rows.map(
        (row) => `${row.child.replace(/^public\./, '')}.${row.column} ${row.parent.replace(/^public\./, '')}`,
      ),
    );
    let references = 0;
    for (const [table, c] of everyColumn(documented.tables)) {
      if (c.refersTo === null || missing(table)) continue;
      const child = home(table).replace(/^public\./, '');
      const parent = home(c.refersTo).replace(/^public\./, '');
      expect(keys, `${table}.${c.name} → ${c.refersTo}`).toContain(
        `${child}.${column(table, c.name)} ${parent}`,
      );
      references++;
    }
    expect(references).toBeGreaterThan(0);
  });

  test('every exception is about something that the document has, and has a reason', () => {
    const names = new Set<string>([
      ...documented.tables.keys(),
      ...documented.indexes.map((index) => index.name ?? ''),
    ]);
    for (const [table, c] of everyColumn(documented.tables)) {
      names.add(`${table}.${c.name}`);
      if (c.default !== null) names.add(c.default);
      if (c.refersTo !== null) names.add(c.refersTo);
    }
    for (const [name, reason] of Object.entries(exceptions)) {
      expect(names, name).toContain(name);
      expect(reason.length).toBeGreaterThan(20);
    }
  });
});

function everyColumn(
  tables: ReadonlyMap<string, readonly DocumentedColumn[]>,
): (readonly [string, DocumentedColumn])[] {
  return [...tables].flatMap(([table, columns]) => columns.map((c) => [table, c] as const));
}
