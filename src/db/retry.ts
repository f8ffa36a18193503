/** What to do when the database is away: wait for it, as long as it takes. */
import { type Clock, sleep } from '../clock.ts';
import type { Queryable } from './database.ts';

const FIRST_DELAY_MS = 50;
/** After a database was away, whoever waits for it has come back after so many milliseconds. */
export const LONGEST_DELAY_MS = 5_000;

/**
 * Whether an error says that the same statement may succeed later: a lost or refused connection, a server
 * that starts or stops, a serialization failure or deadlock.
 */
export function isTransient(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  if (error instanceof AggregateError) return error.errors.some(isTransient);
  if (isMissingPartition(error)) return true;
  const code = (error as { code?: unknown }).code;
  if (typeof code === 'string') {
    if (/^(08...|40001|40P01|57P0[1235]|57014|25P03|53...|58...|25006|XX000)$/.test(code)) return true;
    if (/^(ECONN|EPIPE|ETIMEDOUT|ENOTFOUND|EAI_AGAIN|EHOSTUNREACH|ENETUNREACH)/.test(code)) return true;
    if (/^[0-9A-Z]{5}$/.test(code)) return false;
  }
  return /connection|terminated|socket|timeout/i.test(error.message);
}

/** Whether a row has no partition yet, as after the server's clock was set far ahead: the reconciler makes it. */
function isMissingPartition(error: unknown): boolean {
  return (error as { routine?: unknown } | null)?.routine === 'ExecFindPartition';
}

/** Whether the database refused a statement for what is in it: a value, a constraint, a size. */
export function isRefusal(error: unknown): boolean {
  if (isMissingPartition(error)) return false;
  const code = error instanceof Error ? (error as { code?: unknown }).code : null;
  return typeof code === 'string' && /^(22|23|54)...$/.test(code);
}

/** Whether a statement took longer than it may. */
export function isStatementTimeout(error: unknown): boolean {
  return error instanceof Error && (error as { code?: unknown }).code === '57014';
}

/** Whether a transaction was ended because it and others waited for each other. */
export function isDeadlock(error: unknown): boolean {
  return error instanceof Error && (error as { code?: unknown }).code === '40P01';
}

/** Whether a statement gave up waiting for a row that another transaction holds. */
export function isLockTimeout(error: unknown): boolean {
  return error instanceof Error && (error as { code?: unknown }).code === '55P03';
}

/**
 * Runs `work` until it succeeds or fails for a reason that time does not heal.
 *
 * Delays grow from 50 ms to 5 s, with jitter. Rejects with the signal's reason when it is aborted.
 */
export async function retryTransient<T>(
  work: () => Promise<T>,
  options: {
    clock: Clock;
    signal?: AbortSignal;
    onRetry?: (error: Error, attempt: number) => void;
    /** Which errors to wait out; those that time heals when left out. */
    retryIf?: (error: unknown) => boolean;
  },
): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await work();
    } catch (error) {
      if (!(options.retryIf ?? isTransient)(error)) throw error;
      options.onRetry?.(error as Error, attempt);
      const delay = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** Math.min(attempt - 1, 10));
      await sleep(options.clock, delay * (0.5 + Math.random() / 2), options.signal);
    }
  }
}

/**
 * The database for work that has been paid for: a statement waits for a database that is away, and for a row that somebody holds, until
 * the signal fires. Then it rejects with the signal's reason.
 */
export function patientQueries(
  db: Queryable,
  options: { clock: Clock; signal?: AbortSignal; onRetry?: (error: Error) => void },
): Queryable {
  return {
    query: (statement, values) =>
      retryTransient(() => db.query(statement, values), {
        ...options,
        retryIf: (error) => isTransient(error) || isLockTimeout(error),
      }),
  };
}
