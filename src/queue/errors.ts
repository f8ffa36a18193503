/** What a job's handler can say besides returning. */

/** The job can never succeed: it goes straight to the dead letters. */
export class PermanentError extends Error {
  override readonly name = 'PermanentError';
  readonly code: string;
  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** Why a handler's signal fired; the `reason` of its AbortSignal. */
export class JobAborted extends Error {
  override readonly name = 'JobAborted';
  readonly code: 'cancelled' | 'lease_lost' | 'deadline' | 'drain';
  constructor(code: JobAborted['code']) {
    super(`The job was stopped: ${code}.`);
    this.code = code;
  }
}

/** A handler's answer that its job is to run again later, at no cost of an attempt. */
export type Snooze = { readonly kind: 'snooze'; readonly afterMs: number };

/** Puts the job back for so many milliseconds; counted by the database's clock, so that nodes need not agree on the time. */
export function snooze(afterMs: number): Snooze {
  return { kind: 'snooze', afterMs };
}
