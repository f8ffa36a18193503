/** Whether the database and this process agree on what time it is: if not, rows would be taken for older, or younger, than they are. */

import type { Queryable } from './database.ts';
import { databaseNow } from './database-time.ts';

/** Clocks that are further apart are not both right, in milliseconds. */
const MOST_DIFFERENCE_MS = 48 * 3_600_000;

/** The clocks are days apart: what was done by them is undone, and nothing is removed until one is right. */
export class ClocksApart extends Error {
  override readonly name = 'ClocksApart';
  /** Milliseconds. */
  readonly apartMs: number;

  constructor(apartMs: number) {
    super('The clocks of the database and of this machine are days apart.');
    this.apartMs = apartMs;
  }
}

/**
 * Throws ClocksApart. Asked in the transaction that removed something, after it did: whichever clock was set since the last batch, that
 * transaction is rolled back.
 *
 * @param now this process's time, in milliseconds since 1970
 */
export async function requireOneTime(tx: Queryable, now: () => number): Promise<void> {
  const apartMs = Math.abs((await databaseNow(tx)).getTime() - now());
  if (apartMs > MOST_DIFFERENCE_MS) throw new ClocksApart(apartMs);
}
