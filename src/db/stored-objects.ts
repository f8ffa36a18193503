/** Objects that agentd itself has stored and that no row names any more: an upload that ended half-way, a file whose row was deleted. */
import type { Queryable } from './database.ts';
import { noteBatch } from './maintenance.ts';
import type { MaintenanceTask } from './maintenance-tasks.ts';

/** What removing them needs of the storage. */
export type ObjectRemover = {
  remove(bucket: string, path: string, options: { readonly signal: AbortSignal }): Promise<void>;
  close(): Promise<void>;
};

type Key = { readonly bucket: string; readonly path: string };

/** Rows that one batch looks at; each may cost a request. */
const AT_ONCE = 50;
/** A pass over them, in milliseconds, and the longest time of one removal. */
const EVERY_MS = 24 * 3_600_000;
const REMOVE_MS = 20_000;

const NAMED = `exists (select 1 from public.media_library m where m.storage_path = o.path and m.bucket = o.bucket)`;

/** The task; the storage is opened for a batch that has something to remove. */
export function storedObjectTask(graceDays: number, open: () => ObjectRemover): MaintenanceTask {
  return {
    name: 'stored_objects',
    does: 'deletes files that agentd stored and no row names',
    everyMs: EVERY_MS,
    keeps: `${graceDays} days`,
    async batch({ db, task, leaseMs, elapsed, signal }, place) {
      const from = elapsed();
      const after = place as Key | null;
      const page = await lookAt(db, after, graceDays);
      const due = page.filter((row) => row.is_due);
      if (due.length > 0) {
        const storage = open();
        try {
          for (const { bucket, path } of due) {
            // no transaction is open while the storage is asked; what is not there counts as removed
            await storage.remove(bucket, path, {
              signal: AbortSignal.any([signal, AbortSignal.timeout(REMOVE_MS)]),
            });
          }
        } finally {
          await storage.close();
        }
      }
      const last = page.at(-1);
      const next: Key | null =
        page.length < AT_ONCE || last === undefined ? null : { bucket: last.bucket, path: last.path };
      await db.transaction(async (tx) => {
        await tx.query(
          `delete from agentd.stored_objects o using unnest($1::text[], $2::text[]) d (bucket, path)
            where o.bucket = d.bucket and o.path = d.path`,
          [due.map((row) => row.bucket), due.map((row) => row.path)],
        );
        await noteBatch(tx, task, { rows: due.length, busyMs: elapsed() - from }, { place: next, leaseMs });
      });
      return { place: next, rows: due.length };
    },
    async preview(db) {
      const [row] = await db.query<{ rows: number; oldest: Date | null }>(
        `select count(*) as rows, min(o.created_at) as oldest from agentd.stored_objects o
          where o.orphaned_at < agentd.now() - make_interval(days => $1) and not ${NAMED}`,
        [graceDays],
      );
      return { rows: row?.rows ?? 0, isMore: false, oldest: row?.oldest ?? null, bytes: null };
    },
  };
}

/** The next objects, with when each lost its row written down; due are those that lost it `graceDays` ago. */
function lookAt(
  db: Queryable,
  after: Key | null,
  graceDays: number,
): Promise<(Key & { readonly is_due: boolean })[]> {
  return db.query(
    `
with page as materialized (
  select o.bucket, o.path, o.orphaned_at, ${NAMED} as is_named
    from agentd.stored_objects o
   where (o.bucket, o.path) > ($1::text, $2::text)
   order by o.bucket, o.path
   limit ${AT_ONCE}
),
noted as (
  update agentd.stored_objects o set orphaned_at = case when p.is_named then null else agentd.now() end
    from page p
   where o.bucket = p.bucket and o.path = p.path and p.is_named = (p.orphaned_at is not null)
)
select p.bucket, p.path, coalesce(not p.is_named and p.orphaned_at < agentd.now() - make_interval(days => $3), false) as is_due
  from page p order by p.bucket, p.path`,
    [after?.bucket ?? '', after?.path ?? '', graceDays],
  );
}
