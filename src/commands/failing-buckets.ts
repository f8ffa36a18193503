/**
 * What the storage refuses of a workspace's files. Which bucket a row names is the tenant's to write: that one can't be asked for says nothing of
 * the others.
 */
import { DocumentError } from '../providers/document-error.ts';
import type { ObjectStorage } from '../providers/object-storage.ts';

/** Why one object could not be had or deleted. */
export type StorageFailure = { readonly reason_code: string; readonly reason: string };

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
  readonly #failures = new Map<string, number>();
  readonly #givenUp = new Map<string, StorageFailure>();

  constructor(storage: Pick<ObjectStorage, 'exists'>) {
    this.#storage = storage;
  }

  /** What the bucket failed with, if it is given up; null: ask. */
  givenUp(bucket: string): StorageFailure | null {
    return this.#givenUp.get(bucket) ?? null;
  }

  /** An object of it was had, or refused by an answer. */
  answered(bucket: string): void {
    this.#failures.delete(bucket);
  }

  /** An object of it failed. Returns what is to be said of that. */
  async failed(bucket: string, error: unknown): Promise<StorageFailure> {
    const failure = describe(error);
    if (!isSilence(error)) {
      this.answered(bucket);
      return failure;
    }
    const failures = (this.#failures.get(bucket) ?? 0) + 1;
    this.#failures.set(bucket, failures);
    if (failures === PATIENCE) {
      if (await this.#answers(bucket)) this.answered(bucket);
      else this.#givenUp.set(bucket, failure);
    }
    return failure;
  }

  async #answers(bucket: string): Promise<boolean> {
    try {
      await this.#storage.exists(bucket, PROBE, { signal: AbortSignal.timeout(PROBE_MS) });
      return true;
    } catch (error) {
      return !isSilence(error);
    }
  }
}

/** Whether a failure is none of the object's own. */
function isSilence(error: unknown): boolean {
  return error instanceof DocumentError ? error.isTransient && error.code !== 'changed_while_read' : true;
}
