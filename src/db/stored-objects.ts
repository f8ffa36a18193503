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
/** The part of the lease in which a batch begins removals, and that one of them takes at most: what is done is written down long before it ends. */
const SHARE_OF_LEASE = 4;
/** One that can't be removed is left to the next day's pass: one that comes sooner does not begin with it again. */
const RETRY_HOURS = 12;

/** Whether a row of any workspace's names an object of `alias`. */
export const isNamed = (alias: string): string =>
  `exists (select 1 from public.media_library m where m.storage_path = ${alias}.path and m.bucket = ${alias}.bucket)`;

/** The task; the storage is opened for a batch that has something to remove. */
export function storedObjectTask(graceDays: number, open: () => ObjectRemover): MaintenanceTask {
  return {
    name: 'stored_objects',
    does: 'deletes files that agentd stored and no row names',
    everyMs: EVERY_MS,
    keeps: `${graceDays} days`,
    async batch({ db, task, leaseMs, elapsed, signal }, place) {
      const from = elapsed();
      const page = await lookAt(db, place as Key | null, graceDays);
      const due = page.filter((row) => row.is_due);
      const share = leaseMs / SHARE_OF_LEASE;
      const tried = await removeAll(due, open, {
        signal,
        oneMs: Math.min(REMOVE_MS, share),
        isOver: () => signal.aborted || elapsed() - from >= share,
      });
      const isCut = tried.removed.length + tried.failed.length < due.length;
      const next = isCut
        ? (tried.last ?? (place as Key | null) ?? FIRST)
        : page.length < AT_ONCE
          ? null
          : keyOf(page.at(-1));
      await db.transaction(async (tx) => {
        await tx.query(
          `delete from agentd.stored_objects o using unnest($1::text[], $2::text[]) d (bucket, path)
            where o.bucket = d.bucket and o.path = d.path`,
          columnsOf(tried.removed),
        );
        await tx.query(
          `update agentd.stored_objects o set retry_at = agentd.now() + make_interval(hours => ${RETRY_HOURS})
             from unnest($1::text[], $2::text[]) d (bucket, path)
            where o.bucket = d.bucket and o.path = d.path`,
          columnsOf(tried.failed),
        );
        const done = {
          rows: tried.removed.length,
          held: tried.failed.length,
          busyMs: elapsed() - from,
        };
        await noteBatch(tx, task, done, { place: next, leaseMs });
      });
      // not one could be removed: that is the storage, and somebody should hear of it
      if (tried.failed.length > 0 && tried.removed.length === 0) throw tried.error;
      return { place: next, rows: tried.removed.length };
    },
    async preview(db) {
      const [row] = await db.query<{ rows: number; oldest: Date | null }>(
        `select count(*) as rows, min(o.created_at) as oldest from agentd.stored_objects o
          where o.orphaned_at < agentd.now() - make_interval(days => $1) and not ${isNamed('o')}`,
        [graceDays],
      );
      return { rows: row?.rows ?? 0, isMore: false, oldest: row?.oldest ?? null, bytes: null };
    },
  };
}

/** Before every object. */
const FIRST: Key = { bucket: '', path: '' };

const keyOf = (row: Key | undefined): Key | null =>
  row === undefined ? null : { bucket: row.bucket, path: row.path };

const columnsOf = (keys: readonly Key[]): [string[], string[]] => [
  keys.map(({ bucket }) => bucket),
  keys.map(({ path }) => path),
];

type Tried = {
  readonly removed: Key[];
  readonly failed: Key[];
  /** The last one that was tried. */
  last: Key | null;
  error: unknown;
};

/** Removes one after the other until time is up. One that fails does not keep those after it. */
async function removeAll(
  keys: readonly Key[],
  open: () => ObjectRemover,
  limits: { readonly signal: AbortSignal; readonly oneMs: number; readonly isOver: () => boolean },
): Promise<Tried> {
  const tried: Tried = { removed: [], failed: [], last: null, error: null };
  if (keys.length === 0) return tried;
  const storage = open();
  try {
    for (const key of keys) {
      if (limits.isOver()) break;
      try {
        // no transaction is open while the storage is asked; what is not there counts as removed
        await storage.remove(key.bucket, key.path, {
          signal: AbortSignal.any([limits.signal, AbortSignal.timeout(limits.oneMs)]),
        });
        tried.removed.push(key);
      } catch (error) {
        // told to stop: nothing is known of this one
        if (limits.signal.aborted) break;
        // what can be no object's path is no object
        if ((error as { code?: unknown }).code === 'not_found') tried.removed.push(key);
        else {
          tried.failed.push(key);
          tried.error = error;
        }
      }
      tried.last = keyOf(key) as Key;
    }
  } finally {
    await storage.close();
  }
  return tried;
}

/** The next objects, with when each lost its row written down; due are those that lost it `graceDays` ago, and did not fail a moment ago. */
function lookAt(
  db: Queryable,
  after: Key | null,
  graceDays: number,
): Promise<(Key & { readonly is_due: boolean })[]> {
  return db.query(
    `
with page as materialized (
  select o.bucket, o.path, o.orphaned_at, o.retry_at, ${isNamed('o')} as is_named
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
select p.bucket, p.path,
       coalesce(not p.is_named and p.orphaned_at < agentd.now() - make_interval(days => $3)
                and (p.retry_at is null or p.retry_at <= agentd.now()), false) as is_due
  from page p order by p.bucket, p.path`,
    [after?.bucket ?? '', after?.path ?? '', graceDays],
  );
}
