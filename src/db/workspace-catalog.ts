/** What the catalog says of tables: columns, keys and references, for whoever has to find all rows of a workspace. */

import type { Queryable } from './database.ts';
import { MADE_OBJECTS } from './made-objects.ts';

export type CatalogColumn = { readonly name: string; readonly type: string };

export type CatalogReference = {
  readonly columns: readonly string[];
  /** `schema.table` */
  readonly to: string;
  readonly toColumns: readonly string[];
  readonly onDelete: 'cascade' | 'set null' | 'other';
};

export type CatalogTable = {
  /** `schema.table`, unquoted; a name and nothing to put into SQL. */
  readonly name: string;
  /** The same as SQL. */
  readonly sql: string;
  readonly columns: readonly CatalogColumn[];
  /** Columns of the primary key; empty: it has none. */
  readonly key: readonly string[];
  /** Columns that stand first in an index of all rows. */
  readonly leading: readonly string[];
  readonly references: readonly CatalogReference[];
};

/** A name as SQL. */
export const quoted = (name: string): string => `"${name.replaceAll('"', '""')}"`;

/** Tables of schema public that the migrations make. All of schema agentd are ours as well. */
const MADE: ReadonlySet<string> = new Set(
  MADE_OBJECTS.split('\n')
    .map((line) => line.split(' | '))
    .filter(([, kind, schema]) => kind === 'table' && schema === 'public')
    .map(([, , schema, name]) => `${schema}.${name}`),
);

/** Whether agentd's migrations made a table, and not an application. */
export const isOurs = (table: string): boolean => table.startsWith('agentd.') || MADE.has(table);

/** Every table of the database but the system's, pg-boss's and the record of migrations. Partitions are part of their table. */
export async function readCatalog(db: Queryable): Promise<CatalogTable[]> {
  const rows = await db.query<Omit<CatalogTable, 'sql'> & { schema: string; relation: string }>(`
select n.nspname::text as schema, c.relname::text as relation, n.nspname || '.' || c.relname as name,
       (select coalesce(json_agg(json_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod)) order by a.attnum), '[]')
          from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
       (select coalesce(json_agg(a.attname order by k.place), '[]')
          from pg_index i
         cross join lateral unnest(i.indkey::smallint[]) with ordinality k (attnum, place)
          join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
         where i.indrelid = c.oid and i.indisprimary) as key,
       (select coalesce(json_agg(distinct a.attname), '[]')
          from pg_index i join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
         where i.indrelid = c.oid and i.indpred is null and i.indisvalid) as leading,
       (select coalesce(json_agg(json_build_object(
                 'columns', (select json_agg(a.attname order by k.place) from unnest(f.conkey) with ordinality k (attnum, place)
                               join pg_attribute a on a.attrelid = f.conrelid and a.attnum = k.attnum),
                 'to', rn.nspname || '.' || r.relname,
                 'toColumns', (select json_agg(a.attname order by k.place) from unnest(f.confkey) with ordinality k (attnum, place)
                                 join pg_attribute a on a.attrelid = f.confrelid and a.attnum = k.attnum),
                 'onDelete', case f.confdeltype when 'c' then 'cascade' when 'n' then 'set null' else 'other' end) order by f.conname), '[]')
          from pg_constraint f
          join pg_class r on r.oid = f.confrelid
          join pg_namespace rn on rn.oid = r.relnamespace
         where f.conrelid = c.oid and f.contype = 'f' and f.conparentid = 0) as "references"
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence = 'p'
   and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'pgboss')
   and (n.nspname, c.relname) not in (('agentd', 'migrations'), ('agentd', 'migration_lock'))
 order by 1, 2`);
  return rows.map(({ schema, relation, ...row }) => ({
    ...row,
    sql: `${quoted(schema)}.${quoted(relation)}`,
  }));
}
