/**
 * The probes' own view of the database: one connection, a deadline on every question, answers kept for a moment.
 *
 * A connection of its own, because a busy worker may hold every connection of the pool for seconds and is healthy
 * all the same. A deadline on this side as well as the server's: a server behind a cut cable enforces nothing.
 */
import { type Database, openDatabase, type Queryable } from '../db/database.ts';

/** What the database said, or why it said nothing. */
export type Answer<T> =
  | { readonly ok: true; readonly value: T }
  | { readonly ok: false; readonly error: Error };

/** Asks one question of the database, at most one at a time. */
export type Question<T> = () => Promise<Answer<T>>;

export type DatabaseWatch = {
  /**
   * A question whose answer holds for `keepMs` milliseconds. It never rejects and never takes longer than the
   * deadline; askers that come while it is out share its answer.
   */
  question<T>(keepMs: number, ask: (tx: Queryable) => Promise<T>): Question<T>;
  close(): Promise<void>;
};

/** Raised for a question that took longer than the deadline. */
export class NoAnswer extends Error {
  override readonly name = 'NoAnswer';
  readonly reasonCode = 'database_timeout';
}

/** Opens the watch beside `db`; the connection is made with the first question. */
export function watchDatabase(
  db: Pick<Database, 'url' | 'embedded'>,
  options: { deadlineMs: number; onError: (error: Error) => void },
): DatabaseWatch {
  const open = (): Database =>
    openDatabase({
      url: db.url,
      embedded: db.embedded,
      max: 1,
      applicationName: 'agentd-probes',
      onError: options.onError,
    });
  let handle = open();
  let closed = false;

  // The hung connection is left to the kernel: waiting for it would make the next question hang as well.
  const replace = (): void => {
    const old = handle;
    handle = open();
    old.close().catch(options.onError);
  };

  const once = async <T>(ask: (tx: Queryable) => Promise<T>): Promise<Answer<T>> => {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(
        () => reject(new NoAnswer(`The database gave no answer within ${options.deadlineMs} ms.`)),
        options.deadlineMs,
      );
    });
    const work = handle.transaction(async (tx) => {
      await tx.query(`set local statement_timeout = ${Math.max(1, Math.floor(options.deadlineMs))}`);
      return ask(tx);
    });
    try {
      return { ok: true, value: await Promise.race([work, late]) };
    } catch (error) {
      if (error instanceof NoAnswer) {
        work.catch(() => {});
        if (!closed) replace();
      }
      return { ok: false, error: error instanceof Error ? error : new Error(String(error)) };
    } finally {
      clearTimeout(timer);
    }
  };

  return {
    question<T>(keepMs: number, ask: (tx: Queryable) => Promise<T>): Question<T> {
      let flight: Promise<Answer<T>> | null = null;
      let last: { at: number; answer: Answer<T> } | null = null;
      return () => {
        if (flight) return flight;
        if (last && performance.now() - last.at < keepMs) return Promise.resolve(last.answer);
        flight = once(ask)
          .then((answer) => {
            last = { at: performance.now(), answer };
            return answer;
          })
          .finally(() => {
            flight = null;
          });
        return flight;
      };
    },
    async close() {
      closed = true;
      let timer: NodeJS.Timeout | undefined;
      const enough = new Promise<void>((resolve) => {
        timer = setTimeout(resolve, options.deadlineMs);
      });
      await Promise.race([handle.close().catch(options.onError), enough]);
      clearTimeout(timer);
    },
  };
}
