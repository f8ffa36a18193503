/** Leases of rows that workers hold: a table, its word for being worked on, and one statement that renews many. */
import type { Queryable, Statement } from './database.ts';

/** A row that a worker holds, and the claim under which it does. */
export type HeldRow = { readonly run: string; readonly epoch: number };

/** Rows whose leases were not renewed. */
export type NotRenewed = {
  /** No longer the worker's: cancelled, ended, taken over or deleted. */
  readonly lost: ReadonlySet<string>;
  /** Held by another transaction: a checkpoint, which renews them itself, or somebody who does not. */
  readonly locked: ReadonlySet<string>;
};

/** The statement for a table whose rows have lease_epoch and lease_expires_at. `held` is true of `r` while it is worked on. */
export function renewStatement(name: string, table: string, held: string): Statement {
  return {
    name,
    text: `
with held as (
  select x.run, x.epoch from jsonb_to_recordset($1::jsonb) as x (run uuid, epoch integer)
),
locked as (
  select r.id from ${table} r join held on held.run = r.id
   where r.lease_epoch = held.epoch and ${held}
   order by r.id
     for no key update of r skip locked
),
renewed as (
  update ${table} r set lease_expires_at = agentd.now() + make_interval(secs => $2)
    from locked where r.id = locked.id
  returning r.id
)
select held.run, r.id is null or r.lease_epoch <> held.epoch or not (${held}) as is_lost
  from held
  left join ${table} r on r.id = held.run
 where held.run not in (select id from renewed)`,
  };
}

/** Renews the leases of a worker's rows. Returns those that were not: whoever holds one of these must not count on it. */
export async function renew(
  db: Queryable,
  statement: Statement,
  held: readonly HeldRow[],
  leaseSeconds: number,
): Promise<NotRenewed> {
  const rows = await db.query<{ run: string; is_lost: boolean }>(statement, [
    JSON.stringify(held),
    leaseSeconds,
  ]);
  return {
    lost: new Set(rows.filter((row) => row.is_lost).map((row) => row.run)),
    locked: new Set(rows.filter((row) => !row.is_lost).map((row) => row.run)),
  };
}
