/**
 * One batch of one workspace's messages: taken from the queue, embedded, stored.
 *
 * A batch is small, and afterwards the next workspace has its turn. What fails for a passing reason waits in the workspace's row; a batch in
 * which one message may be the reason is halved until that message is alone.
 */
import { randomUUID } from 'node:crypto';
import type { Logger } from 'pino';
import type { Clock } from '../../clock.ts';
import type { Queryable } from '../../db/database.ts';
import {
  failMessageBatch,
  type MessageClaim,
  type MessageOutcome,
  messageCredentials,
  type QueuedMessage,
  releaseMessageWorkspace,
  storeMessageEmbeddings,
  takeMessages,
  walkMessages,
} from '../../db/message-embeddings.ts';
import type { StoredCredential } from '../../db/runs.ts';
import { DocumentError } from '../../providers/document-error.ts';
import { EmbeddingError } from '../../providers/embedding-error.ts';
import { JobAborted } from '../../queue/errors.ts';
import type { DocumentChunk } from './document.ts';
import { type EmbeddingLanes, embedChunks } from './embed.ts';
import type { ChosenEmbedder } from './ingest.ts';

export type MessageBatchDeps = {
  readonly db: Queryable;
  readonly clock: Clock;
  readonly log: Logger;
  readonly lanes: EmbeddingLanes;
  /** Throws a DocumentError where no key can be used. */
  readonly chooseEmbedder: (owner: {
    readonly workspace_id: string;
    readonly credentials: readonly StoredCredential[];
  }) => ChosenEmbedder | Promise<ChosenEmbedder>;
  readonly leaseSeconds: number;
};

/** What became of a batch. */
export type MessageBatchOutcome = {
  readonly kind: 'embedded' | 'nothing' | 'erased' | 'failed' | 'released' | 'lost';
  readonly embedded: number;
  /** Messages that will not be tried again. */
  readonly refused: number;
  readonly code: string | null;
  /** When the workspace is to be looked at again, in milliseconds; null: whenever there is something to do. */
  readonly againMs: number | null;
};

/** Older messages that one batch puts into the queue, or takes the vectors of. */
const WALK = 5_000;
const ERASE = 1_000;
const WALK_AGAIN_MS = 1_000;
/** What has nothing to embed and is held by another transaction is looked at again after this. */
const HELD_AGAIN_MS = 2_000;
/** Numbers of vectors in one statement. */
const NUMBERS_AT_ONCE = 40_000;
/** UTF-8 bytes that stand for a token: most languages have more. What is sent is judged by it, never billed. */
const BYTES_PER_TOKEN = 3;

const FIRST_RETRY_MS = 5_000;
const LONGEST_RETRY_MS = 30 * 60_000;
/** Whatever a provider asks for: a claim takes what rests longer than an hour for a clock that was ahead. */
const LONGEST_REST_MS = 50 * 60_000;
/** A provider that refuses texts is not down: the halves of a batch follow soon, this many times. */
const REFUSED_RETRY_MS = 500;
const SOON = 10;

/** Works on a claimed workspace once, and gives it back. Rejects only with what the database throws. */
export async function embedMessageBatch(
  deps: MessageBatchDeps,
  claim: MessageClaim,
  signal: AbortSignal,
): Promise<MessageBatchOutcome> {
  const batch = new MessageBatch(deps, claim, signal);
  try {
    return await batch.run();
  } catch (error) {
    return await batch.failed(error);
  }
}

class MessageBatch {
  readonly #deps: MessageBatchDeps;
  readonly #claim: MessageClaim;
  readonly #signal: AbortSignal;
  /** Those that are not stored yet. */
  #open = new Map<string, QueuedMessage>();
  #embedded = 0;
  #refused = 0;
  /** Whose rows somebody holds, or has changed meanwhile: they stay in the queue. */
  #held = 0;

  constructor(deps: MessageBatchDeps, claim: MessageClaim, signal: AbortSignal) {
    this.#deps = deps;
    this.#claim = claim;
    this.#signal = signal;
  }

  async run(): Promise<MessageBatchOutcome> {
    const { db } = this.#deps;
    const claim = this.#claim;
    if (!claim.is_wanted) {
      const seen = await walkMessages(db, claim, ERASE);
      return this.#release('erased', seen < 0 ? WALK_AGAIN_MS : 0);
    }
    let taken = await takeMessages(db, claim, claim.batch_size);
    if (claim.is_walking && taken.looked_at < claim.batch_size) {
      const seen = await walkMessages(db, claim, WALK);
      if (seen < 0 && taken.looked_at === 0) return this.#release('nothing', WALK_AGAIN_MS);
      if (seen > 0) taken = await takeMessages(db, claim, claim.batch_size);
    }
    if (taken.messages.length === 0) return this.#release('nothing', taken.held > 0 ? HELD_AGAIN_MS : 0);
    this.#open = new Map(taken.messages.map((message) => [keyOf(message), message]));

    const credentials = await messageCredentials(db, claim.id);
    const chosen = await this.#deps.chooseEmbedder({ workspace_id: claim.id, credentials });
    const { embedder } = chosen;
    const chunks = taken.messages.map((message, index) => chunkOf(message, index, embedder.maxItemTokens));
    await embedChunks({ lanes: this.#deps.lanes, embedder }, chunks, {
      workspaceId: claim.id,
      signal: this.#signal,
      onEmbedded: async ({ chunks: batch, tokens, costMicros }) => {
        let paid = { tokens, costMicros };
        // a few at once: writing numbers as text is work on the daemon's own thread
        const atOnce = Math.max(1, Math.floor(NUMBERS_AT_ONCE / embedder.dimensions));
        for (let from = 0; from < batch.length; from += atOnce) {
          const outcomes = batch.slice(from, from + atOnce).map(({ chunk, embedding, reason }) => {
            const { kind, id, version } = taken.messages[chunk.index] as QueuedMessage;
            return {
              kind,
              id,
              version,
              embedding: embedding === null ? null : vectorLiteral(embedding),
              code: embedding === null ? 'embedding_refused' : null,
              reason,
            };
          });
          await this.#store(outcomes, paid, chosen);
          paid = { tokens: 0, costMicros: 0 };
        }
      },
    });
    if (this.#held > 0) {
      // paid for in vain: not again at once
      const inMs = backoff(REFUSED_RETRY_MS, claim.failures);
      await failMessageBatch(db, claim, {
        messages: [],
        code: 'row_locked',
        reason: `${this.#held} messages were changed, or held by another transaction, while they were embedded. They are tried again.`,
        inMs,
        mayBeMessage: false,
        isFinal: false,
      });
      return this.#outcome('embedded', 'row_locked', inMs);
    }
    await releaseMessageWorkspace(db, claim, { grows: true });
    return this.#outcome('embedded', null);
  }

  async #store(
    messages: readonly MessageOutcome[],
    paid: { readonly tokens: number; readonly costMicros: number },
    { provider, embedder }: ChosenEmbedder,
  ): Promise<void> {
    const { db, leaseSeconds } = this.#deps;
    const claim = this.#claim;
    this.#signal.throwIfAborted();
    const done = await storeMessageEmbeddings(db, claim, {
      // made before the statement, which may be said twice; an epoch begins anew in a workspace that asks again
      key: `messages:${randomUUID()}`,
      messages,
      ...paid,
      provider,
      model: embedder.model,
      dimensions: embedder.dimensions,
      leaseSeconds,
    });
    if (done === null) throw new JobAborted('lease_lost');
    for (const message of messages) this.#open.delete(keyOf(message));
    this.#embedded += done.embedded;
    this.#held += messages.length - done.settled;
    this.#refused += messages.filter((message) => message.embedding === null).length;
  }

  async failed(error: unknown): Promise<MessageBatchOutcome> {
    const { db, log } = this.#deps;
    const claim = this.#claim;
    const aborted = error instanceof JobAborted ? error : this.#signal.aborted ? this.#signal.reason : null;
    if (aborted instanceof JobAborted) {
      if (aborted.code !== 'drain') return this.#outcome('lost', aborted.code);
      return this.#release('released');
    }
    const known = error instanceof DocumentError ? error : null;
    const code = known?.code ?? 'internal_error';
    const reason = known?.message ?? `An unexpected failure: ${(error as Error)?.message ?? String(error)}`;
    const refuses = code === 'embedding_refused';
    const inMs = Math.max(
      Math.min(known?.retryAfterMs ?? 0, LONGEST_REST_MS),
      code === 'rate_limited'
        ? REFUSED_RETRY_MS
        : refuses
          ? backoff(REFUSED_RETRY_MS, claim.failures - SOON)
          : backoff(FIRST_RETRY_MS, claim.failures),
    );
    const mayBeMessage = refuses || known === null || (known instanceof EmbeddingError && known.mayBeOneText);
    log.warn(
      {
        event: 'messages_not_embedded',
        workspace_id: claim.id,
        messages: this.#open.size,
        code,
        in_ms: Math.round(inMs),
        ...(known === null ? { err: error } : {}),
      },
      'messages could not be embedded, and wait',
    );
    const failed = await failMessageBatch(db, claim, {
      messages: [...this.#open.values()],
      code,
      reason,
      inMs,
      mayBeMessage,
      isFinal: known !== null && !known.isTransient,
    });
    this.#refused += failed;
    return this.#outcome('failed', code, inMs);
  }

  async #release(kind: 'nothing' | 'erased' | 'released', inMs = 0): Promise<MessageBatchOutcome> {
    await releaseMessageWorkspace(this.#deps.db, this.#claim, { grows: false, inMs });
    return this.#outcome(kind, null, inMs > 0 ? inMs : null);
  }

  #outcome(
    kind: MessageBatchOutcome['kind'],
    code: string | null,
    againMs: number | null = null,
  ): MessageBatchOutcome {
    return { kind, embedded: this.#embedded, refused: this.#refused, code, againMs };
  }
}

function backoff(firstMs: number, failures: number): number {
  return (
    Math.min(LONGEST_RETRY_MS, firstMs * 2 ** Math.min(Math.max(failures, 0), 20)) * (1 + Math.random() * 0.2)
  );
}

const keyOf = ({ kind, id }: Pick<QueuedMessage, 'kind' | 'id'>): string => `${kind}:${id}`;

/** A message as what a lane takes. No token is shorter than a byte, so what has no more bytes than tokens are allowed fits without a count. */
function chunkOf(message: QueuedMessage, index: number, maxTokens: number): DocumentChunk {
  const bytes = Buffer.from(message.content);
  let end = Math.min(bytes.length, maxTokens);
  // not within a character
  while (end < bytes.length && ((bytes[end] as number) & 0xc0) === 0x80) end--;
  const text = bytes.toString('utf8', 0, end);
  return {
    index,
    start: 0,
    end: text.length,
    content: text,
    page: null,
    headingPath: [],
    embedText: text,
    tokens: Math.ceil(end / BYTES_PER_TOKEN),
  };
}

/** Nine digits say a 32-bit number exactly. */
function vectorLiteral(vector: Float32Array): string {
  return `[${Array.from(vector, (x) => x.toPrecision(9)).join(',')}]`;
}
