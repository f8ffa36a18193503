/** How the making of knowledge from documents fails, wherever on its way. */

/** Why a document cannot become knowledge. Each is a word in `reason_code`, with a sentence that says what to do. */
export type DocumentErrorCode =
  /** Nothing to read: no file, no URL, no content. */
  | 'no_input'
  | 'not_found'
  | 'empty'
  | 'needs_ocr'
  | 'password'
  | 'corrupt'
  | 'unsupported'
  | 'too_large'
  | 'timeout'
  | 'blocked_address'
  | 'blocked_by_robots'
  | 'http_error'
  | 'unreachable'
  | 'storage_error'
  | 'changed_while_read'
  | 'no_credentials'
  | 'credentials_refused'
  | 'embedding_refused'
  | 'wrong_dimensions'
  | 'rate_limited'
  | 'provider_error'
  | 'worker_crashed';

/** A document, or one attempt at it, has failed. */
export class DocumentError extends Error {
  override readonly name = 'DocumentError';
  readonly code: DocumentErrorCode;
  /** Whether another attempt may succeed without anybody changing anything. */
  readonly isTransient: boolean;
  /** Milliseconds before which another attempt is pointless; null: unknown. */
  readonly retryAfterMs: number | null;
  constructor(
    code: DocumentErrorCode,
    message: string,
    options: { transient?: boolean; retryAfterMs?: number | null; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? {} : { cause: options.cause });
    this.code = code;
    this.isTransient = options.transient ?? false;
    this.retryAfterMs = options.retryAfterMs ?? null;
  }
}
