/** Stored objects removed one by one, where some can't be. */
import {
  FailingBuckets,
  type Limits,
  type PastFailures,
  type StorageFailure,
  signalOf,
} from './failing-buckets.ts';
import type { ObjectStorage } from './object-storage.ts';

/** Why an object is still there. */
export type LeftObject = StorageFailure & {
  /** Whether it was asked for: of a bucket that has not answered for too often nothing is. */
  readonly isAsked: boolean;
};

/** Removes objects; a bucket that does not answer is soon asked no more, and others are. */
export class ObjectRemover {
  readonly #storage: Pick<ObjectStorage, 'remove' | 'exists' | 'close'>;
  readonly #failing: FailingBuckets;

  /** `past` is what an earlier one has met, and null for none. The storage is closed with it. */
  constructor(storage: Pick<ObjectStorage, 'remove' | 'exists' | 'close'>, past: PastFailures | null = null) {
    this.#storage = storage;
    this.#failing = new FailingBuckets(storage, past);
  }

  /** What it has met so far. */
  get past(): PastFailures {
    return this.#failing.past;
  }

  /** Null: the object is gone. Throws the reason of the limits' signal, and then nothing is known of it. */
  async remove(bucket: string, path: string, limits: Limits): Promise<LeftObject | null> {
    const known = this.#failing.givenUp(bucket);
    if (known !== null) return { ...known, isAsked: false };
    try {
      await this.#storage.remove(bucket, path, { signal: signalOf(limits) });
      this.#failing.answered(bucket);
      return null;
    } catch (error) {
      limits.signal?.throwIfAborted();
      const failure = await this.#failing.failed(bucket, error, limits);
      // what can be no object's path is no object
      return failure.reason_code === 'not_found' ? null : { ...failure, isAsked: true };
    }
  }

  close(): Promise<void> {
    return this.#storage.close();
  }
}
