/**
 * A document's passages to vectors.
 *
 * Requests are filled to the provider's limits and share, with all documents of the process, the lane of their key and model
 * (embedding-lane.ts). What each brings is handed over at once. A request that is refused for what is in it is taken apart until the
 * passage that is the reason stands alone: that one comes back without a vector, the others with theirs.
 */

import type { Embedder } from '../../providers/embeddings.ts';
import type { DocumentChunk } from './document.ts';
import { DocumentEmbedding } from './document-embedding.ts';
import { EmbeddingLane, type LaneDeps } from './embedding-lane.ts';

/** What one request brought. */
export type EmbeddedBatch = {
  readonly chunks: readonly {
    readonly chunk: DocumentChunk;
    /** Null: the provider refuses this passage, for the reason that stands beside. */
    readonly embedding: Float32Array | null;
    readonly reason: string | null;
  }[];
  /** As the provider counted them; among them those of answers before that could not be used. */
  readonly tokens: number;
  /** Whole millionths of a US dollar; fractions are carried on to the next batch, so that the sum is right. */
  readonly costMicros: number;
};

export type EmbedOptions = {
  /** Workspaces take turns at a key, and so do the documents of one. */
  readonly workspaceId: string;
  /** Sent when nobody else has a request for this key and model; false when left out. */
  readonly isBackground?: boolean;
  readonly signal: AbortSignal;
  /** Called for one batch after the other. What it rejects with ends the document. */
  readonly onEmbedded: (batch: EmbeddedBatch) => Promise<void>;
};

/** What became of all passages. */
export type EmbeddingSummary = {
  readonly embedded: number;
  readonly refused: number;
  /** Everything that was paid for, whether it could be used or not. */
  readonly tokens: number;
  readonly costMicros: number;
};

export type EmbeddingLanesOptions = {
  /** Requests in flight at once for one key and model; 8 when left out. */
  readonly maxInFlight?: number;
  /** A longer wait for a rate limit ends the document with `rate_limited`, to be taken up again later; a minute when left out. */
  readonly patienceMs?: number;
};

const MAX_IN_FLIGHT = 8;
const PATIENCE_MS = 60_000;
const MAX_LANES = 500;

/** The lanes of a process: one for each key and model. */
export class EmbeddingLanes {
  readonly deps: LaneDeps;
  readonly patienceMs: number;
  /** Requests in flight at once for one key and model; of one document, with its answers that are not stored yet. */
  readonly maxInFlight: number;
  readonly #lanes = new Map<string, EmbeddingLane>();

  constructor(deps: LaneDeps, options: EmbeddingLanesOptions = {}) {
    this.deps = deps;
    this.patienceMs = options.patienceMs ?? PATIENCE_MS;
    this.maxInFlight = options.maxInFlight ?? MAX_IN_FLIGHT;
  }

  /** The lane of an embedder's key and model. Idle ones are forgotten when there are too many. */
  of(embedder: Embedder): EmbeddingLane {
    const id = embedder.limitKey ?? `${embedder.model}/${embedder.dimensions}`;
    const lane =
      this.#lanes.get(id) ??
      new EmbeddingLane(embedder.limitKey, this.deps, {
        maxInFlight: this.maxInFlight,
        patienceMs: this.patienceMs,
      });
    this.#lanes.delete(id);
    this.#lanes.set(id, lane);
    for (const [old, other] of this.#lanes) {
      if (this.#lanes.size <= MAX_LANES) break;
      if (other !== lane && other.isIdle) this.#lanes.delete(old);
    }
    return lane;
  }
}

/**
 * Embeds all chunks, in whatever order. Resolves when everything was handed over.
 *
 * Rejects, after what was in flight has been handed over: with a DocumentError (`rate_limited` and other passing ones are
 * transient; `embedding_refused` where nothing at all could be embedded), with what `onEmbedded` or the chunks' iterator threw, or with the
 * signal's reason, at once.
 */
export function embedChunks(
  deps: { readonly lanes: EmbeddingLanes; readonly embedder: Embedder },
  chunks: Iterable<DocumentChunk> | AsyncIterable<DocumentChunk>,
  options: EmbedOptions,
): Promise<EmbeddingSummary> {
  return new DocumentEmbedding(deps.lanes, deps.embedder, chunks, options).run();
}
