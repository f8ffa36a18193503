/**
 * Objects that no row names any more: of those that agentd itself has stored an upload that ended half-way, a file whose row was deleted; and
 * files that could not be deleted when their workspace was.
 */
import type { Queryable } from './database.ts';
import { noteBatch } from './maintenance.ts';
import type { MaintenanceTask } from './maintenance-tasks.ts';

/** What removing them needs of the storage. */
export type ObjectRemover = {
  /** Why the object is still there, and whether it was asked for at all; null: it is gone. Throws when the signal fires. */
  remove(
    bucket: string,
    path: string,
    options: { readonly signal: AbortSignal; readonly ms: number },
  ): Promise<(Failure & { readonly isAsked: boolean }) | null>;
  /** What the next batch of the pass is to know of the storage; kept as JSON. */
  readonly past: unknown;
  close(): Promise<void>;
};

type Failure = { readonly reason_code: string; readonly reason: string };
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

/** How far a pass has come, and what it came to. */
type Place = Key & {
  readonly removed: number;
  /** What the last one that could not be removed failed with. */
  readonly failure: Failure | null;
  /** Of the storage: buckets that do not answer are left out until the pass is over. */
  readonly past: unknown;
};

/** Before every object. */
const START: Place = { bucket: '', path: '', removed: 0, failure: null, past: null };

/** A pass that found objects to remove and could remove none. */
class NoneRemoved extends Error {
  override readonly name = 'NoneRemoved';
  readonly code: string;
  constructor({ reason_code, reason }: Failure) {
    super(reason);
    this.code = reason_code;
  }
}

/** Whether a row of any workspace's names an object of `alias`. */
export const isNamed = (alias: string): string =>
  `exists (select 1 from public.media_library m where m.storage_path = ${alias}.path and m.bucket = ${alias}.bucket)`;

/** The task; the storage is opened for a batch that has something to remove, with what earlier ones of the pass have met. */
export function storedObjectTask(graceDays: number, open: (past: unknown) => ObjectRemover): MaintenanceTask {
  return {
    name: 'stored_objects',
    does: 'deletes files that agentd stored, or could not delete with a workspace, and no row names',
    everyMs: EVERY_MS,
    keeps: `${graceDays} days`,
    async batch({ db, task, leaseMs, elapsed, signal }, place) {
      const from = elapsed();
      const before = (place as Place | null) ?? START;
      const page = await lookAt(db, before, graceDays);
      const due = page.filter((row) => row.is_due);
      const share = leaseMs / SHARE_OF_LEASE;
      const tried = await removeAll(due, () => open(before.past), {
        signal,
        oneMs: Math.min(REMOVE_MS, share),
        isOver: () => signal.aborted || elapsed() - from >= share,
      });
      const { removed, failed, skipped } = tried;
      const isCut = removed.length + failed.length + skipped < due.length;
      const at = isCut ? (tried.last ?? before) : page.length < AT_ONCE ? null : page.at(-1);
      const pass = {
        removed: before.removed + removed.length,
        failure: tried.failure ?? before.failure,
        past: tried.past ?? before.past,
      };
      const next: Place | null = at ? { bucket: at.bucket, path: at.path, ...pass } : null;
      await db.transaction(async (tx) => {
        await tx.query(
          `delete from agentd.stored_objects o using unnest($1::text[], $2::text[]) d (bucket, path)
            where o.bucket = d.bucket and o.path = d.path`,
          columnsOf(removed),
        );
        await tx.query(
          `update agentd.stored_objects o set retry_at = agentd.now() + make_interval(hours => ${RETRY_HOURS})
             from unnest($1::text[], $2::text[]) d (bucket, path)
            where o.bucket = d.bucket and o.path = d.path`,
          columnsOf(failed),
        );
        const done = {
          rows: removed.length,
          held: failed.length + skipped,
          busyMs: elapsed() - from,
        };
        await noteBatch(tx, task, done, { place: next, leaseMs });
      });
      // at the end alone: a pass that is given up begins with the first again, and never comes to the last
      if (next === null && pass.removed === 0 && pass.failure !== null) throw new NoneRemoved(pass.failure);
      return { place: next, rows: removed.length };
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

const columnsOf = (keys: readonly Key[]): [string[], string[]] => [
  keys.map(({ bucket }) => bucket),
  keys.map(({ path }) => path),
];

type Tried = {
  readonly removed: Key[];
  readonly failed: Key[];
  /** How many were not asked for: their bucket does not answer. They may be the first of the next pass. */
  skipped: number;
  /** The last one of all these. */
  last: Key | null;
  failure: Failure | null;
  past: unknown;
};

/** Removes one after the other until time is up. One that fails does not keep those after it. */
async function removeAll(
  keys: readonly Key[],
  open: () => ObjectRemover,
  limits: { readonly signal: AbortSignal; readonly oneMs: number; readonly isOver: () => boolean },
): Promise<Tried> {
  const tried: Tried = { removed: [], failed: [], skipped: 0, last: null, failure: null, past: null };
  if (keys.length === 0) return tried;
  const storage = open();
  try {
    for (const key of keys) {
      if (limits.isOver()) break;
      // no transaction is open while the storage is asked
      const left = await storage.remove(key.bucket, key.path, { signal: limits.signal, ms: limits.oneMs });
      if (left === null) tried.removed.push(key);
      else {
        if (left.isAsked) tried.failed.push(key);
        else tried.skipped++;
        tried.failure = { reason_code: left.reason_code, reason: left.reason };
      }
      tried.last = key;
    }
  } catch (error) {
    // told to stop: nothing is known of this one, and the others are written down
    if (!limits.signal.aborted) throw error;
  } finally {
    tried.past = storage.past;
    await storage.close();
  }
  return tried;
}

/** The next objects, with when each lost its row written down; due are those that lost it `graceDays` ago, and did not fail a moment ago. */
function lookAt(
  db: Queryable,
  after: Key,
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
    [after.bucket, after.path, graceDays],
  );
}
