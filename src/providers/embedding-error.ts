/** How an embedding request fails: as a document does, with what the sender of many requests has to know besides. */
import { DocumentError, type DocumentErrorCode } from './document-error.ts';
import type { ProviderError } from './errors.ts';
import type { ProviderLimits } from './rate-limit-headers.ts';

/** What a request used of a provider. */
export type EmbeddingUsage = {
  /** As the provider counted them; guessed from the texts' length where it does not say (see `isReported`). */
  readonly tokens: number;
  readonly isReported: boolean;
  /** Millionths of a US dollar, not rounded: a short text costs a fraction of one. 0 where no price is known. */
  readonly costMicros: number;
};

export type EmbeddingErrorDetails = {
  readonly transient?: boolean;
  readonly retryAfterMs?: number | null;
  readonly mayBeOneText?: boolean;
  readonly isTooLong?: boolean;
  readonly isOverloaded?: boolean;
  readonly limits?: ProviderLimits | null;
  readonly usage?: EmbeddingUsage | null;
};

/** A failed request for embeddings. Safe to log and to store: no key, no cause. */
export class EmbeddingError extends DocumentError {
  /** One text, or how many there are, may be the reason: the same texts in smaller requests may pass. */
  readonly mayBeOneText: boolean;
  /** The provider counts too many tokens, of one text or of all together. */
  readonly isTooLong: boolean;
  /** The provider has more to do than it can: fewer requests at once would help. */
  readonly isOverloaded: boolean;
  /** What the provider said about its rate limits; null when it said nothing. */
  readonly limits: ProviderLimits | null;
  /** What was paid for an answer that can't be used; null when there was none. */
  readonly usage: EmbeddingUsage | null;
  constructor(code: DocumentErrorCode, message: string, details: EmbeddingErrorDetails = {}) {
    super(code, message, {
      transient: details.transient ?? false,
      retryAfterMs: details.retryAfterMs ?? null,
    });
    this.mayBeOneText = details.mayBeOneText ?? false;
    this.isTooLong = details.isTooLong ?? false;
    this.isOverloaded = details.isOverloaded ?? false;
    this.limits = details.limits ?? null;
    this.usage = details.usage ?? null;
  }
}

/** A provider's failure in a document's words, with what to do about it. @param model as it was asked for */
export function embeddingError(error: ProviderError, model: string): EmbeddingError {
  const { limits, retryAfterMs } = error;
  const because = (advice: string): string => `${error.message} ${advice}`;
  switch (error.kind) {
    case 'credential':
      return new EmbeddingError(
        'credentials_refused',
        because(
          error.code === 'insufficient_quota'
            ? 'Add credit or raise the limit at the provider, then process the document again.'
            : error.code === 'permission_denied'
              ? `Give the API key access to ${model}, then process the document again.`
              : 'Replace the API key, then process the document again.',
        ),
        { limits },
      );
    case 'rate_limited':
      return new EmbeddingError(
        'rate_limited',
        because('Nothing: the document goes on when the limit allows it.'),
        {
          transient: true,
          retryAfterMs,
          isOverloaded: true,
          limits,
        },
      );
    case 'context_overflow':
      return new EmbeddingError(
        'embedding_refused',
        because(`Use smaller chunks, or an embedding model that takes longer texts than ${model}.`),
        { mayBeOneText: true, isTooLong: true, limits },
      );
    case 'permanent':
      return refused(error, because, model);
    default:
      return new EmbeddingError(
        'provider_error',
        because('Nothing: it is tried again. If it lasts, look at the embedding provider’s status page.'),
        {
          transient: true,
          retryAfterMs,
          // A server that a text throws off its feet says 500, some because a text is too long.
          mayBeOneText: error.status === 500 || error.code === 'bad_response',
          isOverloaded: error.code === 'overloaded' || error.code === 'timeout',
          limits,
        },
      );
  }
}

function refused(error: ProviderError, because: (advice: string) => string, model: string): EmbeddingError {
  switch (error.code) {
    case 'content_filter':
      return new EmbeddingError(
        'embedding_refused',
        because('Remove the passage that the provider refuses, or use another one.'),
        { mayBeOneText: true },
      );
    case 'model_not_found':
      return new EmbeddingError(
        'provider_error',
        because(`Set AGENTD_EMBEDDING_MODEL to an embedding model that this key can use: ${model} is none.`),
      );
    case 'not_found':
      return new EmbeddingError(
        'provider_error',
        because('Check the provider’s base URL: it answers, but makes no embeddings there.'),
      );
    case 'redirect':
      return new EmbeddingError('provider_error', because(error.nextStep));
    default:
      return new EmbeddingError(
        'embedding_refused',
        because('Look at the passage and at the settings of the embedding model.'),
        { mayBeOneText: true },
      );
  }
}
