/**
 * What the storage refuses of stored files. Which bucket a row names may be a tenant's to write: that one can't be asked for says nothing of
 * the others.
 */
import { DocumentError } from './document-error.ts';
import type { ObjectStorage } from './object-storage.ts';

/** Why one object could not be had or deleted. */
export type StorageFailure = { readonly reason_code: string; readonly reason: string };

/** How often in a row each bucket has not answered, and what those failed with that are given up. May be kept as JSON. */
export type PastFailures = {
  readonly silences: readonly (readonly [bucket: string, times: number])[];
  readonly givenUp: readonly (readonly [bucket: string, failure: StorageFailure])[];
};

/** How long a request may take, and what stops it before. */
export type Limits = { readonly ms: number; readonly signal?: AbortSignal };

/** After so many failures one after the other it is asked whether the bucket answers at all. */
const PATIENCE = 10;
const PROBE_MS = 60_000;
const PROBE = 'agentd-asks-whether-the-storage-answers';

function describe(error: unknown): StorageFailure {
  if (error instanceof DocumentError) return { reason_code: error.code, reason: error.message };
  if ((error as { name?: unknown } | null)?.name === 'TimeoutError')
    return { reason_code: 'timeout', reason: 'The storage did not finish in time.' };
  return { reason_code: 'storage_error', reason: error instanceof Error ? error.message : 'unknown' };
}

/** Keeps a bucket whose storage does not answer from being waited for again with every object. Objects that fail alone give up nothing. */
export class FailingBuckets {
  readonly #storage: Pick<ObjectStorage, 'exists'>;
  readonly #silences: Map<string, number>;
  readonly #givenUp: Map<string, StorageFailure>;

  constructor(storage: Pick<ObjectStorage, 'exists'>, past: PastFailures | null = null) {
    this.#storage = storage;
    this.#silences = new Map(past?.silences);
    this.#givenUp = new Map(past?.givenUp);
  }

  /** What another one goes on with. */
  get past(): PastFailures {
    return { silences: [...this.#silences], givenUp: [...this.#givenUp] };
  }

  /** What the bucket failed with, if it is given up; null: ask. */
  givenUp(bucket: string): StorageFailure | null {
    return this.#givenUp.get(bucket) ?? null;
  }

  /** An object of it was had, or refused by an answer. */
  answered(bucket: string): void {
    this.#silences.delete(bucket);
  }

  /** An object of it failed. Returns what is to be said of that. Throws the reason of the limits' signal. */
  async failed(bucket: string, error: unknown, limits: Limits = { ms: PROBE_MS }): Promise<StorageFailure> {
    const failure = describe(error);
    if (!isSilence(error)) {
      this.answered(bucket);
      return failure;
    }
    const silences = (this.#silences.get(bucket) ?? 0) + 1;
    this.#silences.set(bucket, silences);
    if (silences === PATIENCE) {
      if (await this.#answers(bucket, limits)) this.answered(bucket);
      else this.#givenUp.set(bucket, failure);
    }
    return failure;
  }

  async #answers(bucket: string, limits: Limits): Promise<boolean> {
    try {
      await this.#storage.exists(bucket, PROBE, { signal: signalOf(limits) });
      return true;
    } catch (error) {
      if (limits.signal?.aborted === true) {
        // told to stop: the next failure asks again
        this.#silences.set(bucket, PATIENCE - 1);
        throw limits.signal.reason;
      }
      return !isSilence(error);
    }
  }
}

/** One signal of both. */
export function signalOf({ ms, signal }: Limits): AbortSignal {
  const late = AbortSignal.timeout(ms);
  return signal === undefined ? late : AbortSignal.any([signal, late]);
}

/** Whether a failure is none of the object's own. */
function isSilence(error: unknown): boolean {
  return error instanceof DocumentError ? error.isTransient && error.code !== 'changed_while_read' : true;
}
