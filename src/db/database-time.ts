/**
 * The database's time between two questions, by this process's monotonic clock: a node whose date is wrong tells nobody
 * a wrong time. And whether that time can be relied on: a clock that was set, or a database that was away, makes leases look
 * lapsed whose workers live and only need a moment to renew them.
 */
import type { Clock } from '../clock.ts';
import type { Queryable } from './database.ts';

/** A reading that took longer is not taken while there is a better one that is not too old; milliseconds. */
const SLOW_MS = 1_000;
const OLD_MS = 60_000;
/** The two clocks drift apart by less than this between readings; more is a clock that was set. */
const STEP_MS = 1_000;

type Reading = { readonly offset: number; readonly at: number };

/** Off by half of the round trip of its last reading at most, and by what the two clocks drift apart since. */
export class DatabaseTime {
  readonly #clock: Clock;
  readonly #gapMs: number;
  readonly #onStep: (ms: number) => void;
  /** What to add to the monotonic clock, and when that was found; null before the first reading. */
  #reading: Reading | null = null;
  #heardAt: number | null = null;
  #brokenAt = Number.NEGATIVE_INFINITY;

  /**
   * @param options.gapMs silence of the database after which its time counts as interrupted, in milliseconds
   * @param options.onStep told when the database's clock was set, and by how many milliseconds, forward or back
   */
  constructor(clock: Clock, options: { gapMs: number; onStep: (ms: number) => void }) {
    this.#clock = clock;
    this.#gapMs = options.gapMs;
    this.#onStep = options.onStep;
  }

  /** Takes a reading: `ask` resolves with the database's time. Rejects with what it rejects with. */
  async read(ask: () => Promise<Date>): Promise<void> {
    const asked = this.#clock.elapsed();
    const told = (await ask()).getTime();
    const at = this.#clock.elapsed();
    const took = at - asked;
    const before = this.#reading;
    const offset = told - asked - took / 2;
    const step = before === null ? 0 : offset - before.offset;
    const isSet = Math.abs(step) > STEP_MS + took;
    if (isSet || (this.#heardAt !== null && asked - this.#heardAt > this.#gapMs)) this.#brokenAt = at;
    this.#heardAt = at;
    if (isSet || before === null || took <= SLOW_MS || at - before.at > OLD_MS)
      this.#reading = { offset, at };
    if (isSet) this.#onStep(Math.round(step));
  }

  /** The database's time; before the first reading this machine's. */
  now(): Date {
    return new Date(
      this.#reading === null ? this.#clock.now() : this.#clock.elapsed() + this.#reading.offset,
    );
  }

  /** Whether it has gone on evenly for so many milliseconds, and the database was heard of lately. */
  isSteady(ms: number): boolean {
    const isHeard = this.#heardAt !== null && this.#clock.elapsed() - this.#heardAt <= this.#gapMs;
    return isHeard && this.steadyMs() >= ms;
  }

  /** Milliseconds for which the database's time has gone on evenly; infinite while nothing else was seen. */
  steadyMs(): number {
    return this.#clock.elapsed() - this.#brokenAt;
  }
}

/** The database's time, asked. */
export async function databaseNow(db: Queryable): Promise<Date> {
  const [row] = await db.query<{ now: Date }>({ name: 'database_now', text: 'select agentd.now() as now' });
  if (!row) throw new Error('The database gave no time.');
  return row.now;
}
