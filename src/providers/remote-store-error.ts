/** How a store of vectors or passages fails. */

/** Why they do not get there. Each is a word in `reason_code`, with a sentence that says what to do. */
export type RemoteStoreErrorCode =
  /** The datastore's config lacks something. */
  | 'invalid_config'
  | 'no_credentials'
  | 'credentials_refused'
  | 'index_not_found'
  /** It was deleted elsewhere, and is made again. */
  | 'graph_not_found'
  | 'dimension_mismatch'
  | 'blocked_address'
  | 'refused'
  | 'rate_limited'
  | 'timeout'
  | 'unreachable'
  | 'store_error';

/** A request to a store has failed. No message holds a key or an answer's text beyond a few words. */
export class RemoteStoreError extends Error {
  override readonly name = 'RemoteStoreError';
  readonly code: RemoteStoreErrorCode;
  /** Whether the same may succeed without anybody changing anything. */
  readonly isTransient: boolean;
  /** Milliseconds before which another attempt is pointless; null: unknown. */
  readonly retryAfterMs: number | null;
  constructor(
    code: RemoteStoreErrorCode,
    message: string,
    options: { transient?: boolean; retryAfterMs?: number | null; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? {} : { cause: options.cause });
    this.code = code;
    this.isTransient = options.transient ?? false;
    this.retryAfterMs = options.retryAfterMs ?? null;
  }

  /** Of the one source, not of the store. */
  get isOfSource(): boolean {
    return this.code === 'dimension_mismatch' || this.code === 'refused';
  }
}
