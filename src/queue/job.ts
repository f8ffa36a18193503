/** A queue's job: what it carries and what is done with it. */
import type { Logger } from 'pino';
import { PermanentError, type Snooze } from './errors.ts';

/** What a handler gets beside its payload. */
export type JobContext = {
  /** Fires with a JobAborted: on cancel, a lost lease, the deadline, or a drain past its patience. */
  readonly signal: AbortSignal;
  readonly job: { readonly id: string; readonly attempt: number };
  readonly log: Logger;
  /**
   * Says that from now on the job waits for others and hardly works: another one may begin in its place. It keeps its claim, and ends like any
   * other. Where as many slots are lent as the definition allows (`lends`), this one is as soon as another of them ends.
   */
  readonly lendSlot: () => void;
};

/**
 * Does one job. Returns nothing (done) or snooze(ms); throws PermanentError (dead letters), the signal's
 * JobAborted with code drain (handed back, no attempt spent), or anything else (retried with backoff).
 */
export type Handler<P> = (payload: P, context: JobContext) => Promise<undefined | Snooze>;

/** What a file of src/jobs says of its queue. */
export type JobDefinition<P> = {
  readonly queue: string;
  /** Throws if the payload is not what the queue carries. */
  readonly parse: (data: unknown) => P;
  /** The key under which only one job may be live. */
  readonly key: (payload: P) => string;
  readonly handler: Handler<P>;
  /** Slots that handlers may have lent at once: what those that wait may hold, beside those that work. None if absent. */
  readonly lends?: number;
  /** Makes jobs of rows that wait for one; asked when fewer jobs than wanted are there. Returns how many it made. */
  readonly admit?: () => Promise<number>;
};

/** A definition as the consumer uses it: payloads of all queues look the same. */
export type Job = {
  readonly queue: string;
  readonly key: (data: unknown) => string;
  /** Throws PermanentError with code bad_payload for what the queue does not carry. */
  readonly handle: (data: unknown, context: JobContext) => Promise<undefined | Snooze>;
  readonly admit: (() => Promise<number>) | null;
  readonly lends: number;
};

/** Makes a definition usable by the consumer. */
export function defineJob<P>(definition: JobDefinition<P>): Job {
  const parse = (data: unknown): P => {
    try {
      return definition.parse(data);
    } catch (error) {
      throw new PermanentError(
        'bad_payload',
        `A job of ${definition.queue} carries a payload that the queue does not know: ${(error as Error).message}`,
      );
    }
  };
  return {
    queue: definition.queue,
    key: (data) => definition.key(parse(data)),
    handle: (data, context) => definition.handler(parse(data), context),
    admit: definition.admit ?? null,
    lends: definition.lends ?? 0,
  };
}
