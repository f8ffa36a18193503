/** Tables by month: months ahead are made, months that have had their time are dropped. */
import type { Queryable } from './database.ts';
import { MONTHLY, type Monthly } from './retention-rules.ts';

/** Makes the months up to `ahead` after this one. Returns how many; throws 55P03 when the table was busy. */
export async function makeMonths(db: Queryable, table: Monthly, ahead: number): Promise<number> {
  const [row] = await db.query<{ made: number }>(
    'select agentd.ensure_partitions($1::text::regclass, $2) as made',
    [MONTHLY[table], ahead],
  );
  return row?.made ?? 0;
}

export type Retired = {
  readonly months: readonly string[];
  readonly bytes: number;
  /** Why the next month was left: `busy` (again later) or `not_summed_up`. */
  readonly leftBecause: 'busy' | 'not_summed_up' | null;
};

/** Drops the oldest month of those that ended more than `keep` months ago, if there is one. */
export async function retireMonth(db: Queryable, table: Monthly, keep: number): Promise<Retired> {
  const [row] = await db.query<{
    retired: string[];
    bytes: number;
    left_because: 'busy' | 'not_summed_up' | null;
  }>('select retired, bytes, left_because from agentd.retire_partitions($1::text::regclass, $2, 1)', [
    MONTHLY[table],
    keep,
  ]);
  return { months: row?.retired ?? [], bytes: row?.bytes ?? 0, leftBecause: row?.left_because ?? null };
}

/** The months that retireMonth would drop, oldest first, with their bytes. */
export function monthsToRetire(
  db: Queryable,
  table: Monthly,
  keep: number,
): Promise<{ name: string; bytes: number }[]> {
  return db.query(
    `select c.relname::text as name, pg_total_relation_size(c.oid) as bytes
       from pg_catalog.pg_inherits i
       join pg_catalog.pg_class c on c.oid = i.inhrelid
      where i.inhparent = $1::text::regclass and c.relname ~ '_[0-9]{4}_[0-9]{2}$'
        and to_date(right(c.relname, 7), 'YYYY_MM')::timestamp + interval '1 month'
            <= date_trunc('month', agentd.now() at time zone 'UTC') - make_interval(months => $2)
      order by right(c.relname, 7)`,
    [MONTHLY[table], keep],
  );
}
