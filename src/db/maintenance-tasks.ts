/** What is tidied, how often, and what it would come to. */
import type { Database, Queryable } from './database.ts';
import { type Done, noteBatch, type Taken } from './maintenance.ts';
import { requireOneTime } from './maintenance-clock.ts';
import { makeMonths, monthsToRetire, retireMonth } from './partitions.ts';
import { changeBatch, countDue, isLimited, type Place, stepOver } from './retention.ts';
import { MONTHLY, type Monthly, type Retention, type RowRule, rowRules } from './retention-rules.ts';
import { isLockTimeout, isStatementTimeout } from './retry.ts';

/** What a task is given for one batch. */
export type BatchContext = {
  readonly db: Database;
  readonly task: Taken;
  readonly leaseMs: number;
  /** Milliseconds that are measured with. */
  readonly elapsed: () => number;
  /** This process's time, in milliseconds since 1970: a batch removes nothing while the database's is another. Throws ClocksApart. */
  readonly now: () => number;
  readonly signal: AbortSignal;
  /** Told of a row that was stepped over, because what hangs on it is held or is too much for one statement. */
  readonly onHeld?: (held: HeldRow) => void;
};

/** A row that stays until a later pass; `key` is its id, or where it has none its place in the table. */
export type HeldRow = { readonly task: string; readonly key: string; readonly reason: 'held' | 'too_slow' };

/** What a batch came to: where the next one begins; null: the pass is over. */
export type BatchResult = { readonly place: unknown; readonly rows: number };

export type Preview = {
  readonly rows: number;
  /** There are more: nobody counted further. */
  readonly isMore: boolean;
  readonly oldest: Date | null;
  readonly bytes: number | null;
};

/** Something that is tidied. */
export type MaintenanceTask = {
  readonly name: string;
  /** For people: `deletes runs that ended …`. */
  readonly does: string;
  readonly everyMs: number;
  /** How it is limited, for people: `365 days`, `25 months`. */
  readonly keeps: string;
  /** One batch, small enough to hold nobody up. Writes itself down (noteBatch) in the transaction that does it. Throws TaskLost, ClocksApart, and the driver's errors. */
  batch(context: BatchContext, place: unknown): Promise<BatchResult>;
  /** What a pass would do now. Changes nothing. */
  preview(db: Queryable): Promise<Preview>;
};

const HOUR_MS = 3_600_000;
/** So long one batch of rows should take, in milliseconds: its size follows. Whoever writes meanwhile waits for the disk behind it. */
const BATCH_MS = 8;
/** Fewer rows than these are not taken to save time: on a slow machine the rest of a batch takes longer than they do. */
const LEAST_ROWS = 50;
/** But where so few take longer than this, a lot hangs on each. */
const LONGEST_MS = 150;
const FIRST_ROWS = 100;
/** How often a pass tries to drop a month of a table that is busy; an hour later it tries again. */
const TRIES = 20;
/** Rows that a preview counts at most. */
const COUNTED = 1_000_000;

/** All tasks but those that need more than the database. */
export function databaseTasks(retention: Retention): MaintenanceTask[] {
  return [
    ...(Object.keys(MONTHLY) as Monthly[]).map((table) => monthTask(table, retention)),
    ...rowRules.map((rule) => rowTask(rule, retention.rules[rule.name] ?? null)),
  ];
}

/** Months of one table ahead and retired. */
export function monthTask(table: Monthly, retention: Retention): MaintenanceTask {
  const { monthsAhead, keepMonths } = retention.partitions[table];
  return {
    name: `months_of_${table}`,
    does: `makes the months of ${MONTHLY[table]} ahead and drops those that have had their time`,
    everyMs: HOUR_MS,
    keeps: `${keepMonths} months`,
    async batch({ db, task, leaseMs, elapsed, now }, place) {
      const from = elapsed();
      const tries = (place as MonthPlace | null)?.tries ?? 0;
      let made = 0;
      try {
        made = await makeMonths(db, table, monthsAhead);
      } catch (error) {
        // there are months enough to try again for
        if (!isLockTimeout(error)) throw error;
      }
      await requireOneTime(db, now);
      // on its own: what it locks, it gives back before anybody waits for an answer of ours
      const retired = await retireMonth(db, table, keepMonths);
      const isBusy = retired.leftBecause === 'busy';
      const next: MonthPlace | null =
        retired.months.length > 0 ? { tries: 0 } : isBusy && tries < TRIES ? { tries: tries + 1 } : null;
      const done: Done = {
        rows: made + retired.months.length,
        held: retired.leftBecause === null || next !== null ? 0 : 1,
        busyMs: elapsed() - from,
        ...(retired.months.length > 0 ? { bytes: retired.bytes } : {}),
      };
      await db.transaction((tx) => noteBatch(tx, task, done, { place: next, leaseMs }));
      return { place: next, rows: done.rows };
    },
    async preview(db) {
      const months = await monthsToRetire(db, table, keepMonths);
      return {
        rows: months.length,
        isMore: false,
        oldest: null,
        bytes: months.reduce((sum, { bytes }) => sum + bytes, 0),
      };
    },
  };
}

/** The rows of one rule. */
export function rowTask(rule: RowRule, keepDays: number | null): MaintenanceTask {
  let rows = Math.min(FIRST_ROWS, rule.most);
  return {
    name: rule.name,
    does: rule.does,
    everyMs: 6 * HOUR_MS,
    keeps: keepDays === null ? 'for ever' : `${keepDays} days`,
    async batch({ db, task, leaseMs, elapsed, now, onHeld }, place) {
      const from = elapsed();
      const noted = (held: number, next: unknown): Promise<void> =>
        db.transaction((tx) =>
          noteBatch(tx, task, { rows: 0, held, busyMs: elapsed() - from }, { place: next, leaseMs }),
        );
      if (place === null && !(await isLimited(db, rule, keepDays))) return { place: null, rows: 0 };
      try {
        return await db.transaction(async (tx) => {
          const batch = await changeBatch(tx, rule, keepDays, rows, place as Place | null);
          await requireOneTime(tx, now);
          const busyMs = elapsed() - from;
          await noteBatch(
            tx,
            task,
            { rows: batch.changed, held: batch.held, busyMs },
            { place: batch.place, leaseMs },
          );
          if (busyMs > LONGEST_MS) rows = Math.max(1, Math.floor((rows * LONGEST_MS) / busyMs));
          else if (busyMs > BATCH_MS)
            rows = Math.max(Math.min(rows, LEAST_ROWS), Math.floor((rows * BATCH_MS) / busyMs));
          else if (batch.seen === rows) rows = Math.min(rule.most, rows * 2);
          return { place: batch.place, rows: batch.changed };
        });
      } catch (error) {
        if (!isLockTimeout(error) && !isStatementTimeout(error)) throw error;
        if (rows > 1) {
          rows = Math.max(1, Math.floor(rows / 8));
          // four statements that took too long are longer than the lease
          const again = place ?? BEGINNING;
          await noted(0, again);
          return { place: again, rows: 0 };
        }
        // what hangs on this very row is held by somebody, or too much for one statement: the next pass meets it again
        const over = await stepOver(db, rule, keepDays, place as Place | null);
        if (over === null && !isLockTimeout(error)) throw error;
        rows = 8;
        const next = over?.place ?? null;
        await noted(1, next);
        if (over !== null)
          onHeld?.({ task: rule.name, key: over.key, reason: isLockTimeout(error) ? 'held' : 'too_slow' });
        return { place: next, rows: 0 };
      }
    },
    async preview(db) {
      const { rows: found, oldest } = await countDue(db, rule, keepDays, COUNTED);
      return { rows: found, isMore: found === COUNTED, oldest, bytes: null };
    },
  };
}

type MonthPlace = { readonly tries: number };

/** A pass that could not even begin with its batch begins with a smaller one. */
const BEGINNING: Place = { walk: 'time', at: '-infinity', tid: '(0,0)' };
