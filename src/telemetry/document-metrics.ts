/** What becomes of documents, and what making their vectors takes. */
import { Counter, Gauge, Histogram, type Registry } from 'prom-client';
import type { DocumentsWaiting } from '../db/operations.ts';

/** Why a thread that reads documents was ended in the middle of one: its deadline, its memory, a fault, or nobody wants it any more. */
export type ThreadEnd = 'timeout' | 'memory' | 'crash' | 'aborted';

/** One request for vectors that is over. */
export type EmbeddingRequestEnd = {
  readonly model: string;
  /** `completed`, the error's code, or `aborted`. */
  readonly outcome: string;
  readonly seconds: number;
  readonly items: number;
  readonly tokens: number;
  readonly costMicros: number;
};

export type DocumentMetrics = {
  /** An attempt at a document is over. */
  ended(outcome: string, reasonCode: string | null): void;
  stage(stage: string, seconds: number): void;
  embeddingRequest(request: EmbeddingRequestEnd): void;
  /** A request for vectors was sent, or is over. */
  embeddingInFlight(change: 1 | -1): void;
  threadKilled(reason: ThreadEnd): void;
  /** A turn of a workspace's move to another embedding model is over. */
  moveWorked(outcome: string): void;
  /** Passages of moves whose new vectors were stored. */
  passagesMoved(passages: number): void;
  /** Replaces what is known of waiting documents. */
  waiting(rows: readonly DocumentsWaiting[]): void;
  /** The database did not answer: old figures would be lies, so they go. */
  clear(): void;
};

const STAGE_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600];
const REQUEST_SECONDS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

/**
 * Registers them.
 *
 * @param bounded makes a function that lets so many values of a label through, and `other` for what comes later
 * @param amount a measurement as a number that prom-client accepts
 */
export function documentMetrics(
  registry: Registry,
  bounded: () => (value: string) => string,
  amount: (value: number) => number,
): DocumentMetrics {
  const registers = [registry];
  const documents = new Counter({
    name: 'agentd_documents_total',
    help: 'Attempts at documents that are over, by what became of them.',
    labelNames: ['outcome', 'reason_code'],
    registers,
  });
  const stages = new Histogram({
    name: 'agentd_document_stage_seconds',
    help: 'Time of a stage of ingestion.',
    labelNames: ['stage'],
    buckets: STAGE_SECONDS,
    registers,
  });
  const requests = new Counter({
    name: 'agentd_embedding_requests_total',
    help: 'Requests for vectors that are over.',
    labelNames: ['model', 'outcome'],
    registers,
  });
  const requestSeconds = new Histogram({
    name: 'agentd_embedding_request_seconds',
    help: 'Time of a request for vectors.',
    labelNames: ['model'],
    buckets: REQUEST_SECONDS,
    registers,
  });
  const tokens = new Counter({
    name: 'agentd_embedding_tokens_total',
    help: 'Tokens of the requests for vectors, as the provider counted them.',
    labelNames: ['model'],
    registers,
  });
  const cost = new Counter({
    name: 'agentd_embedding_cost_micros_total',
    help: 'Their cost in millionths of the currency.',
    labelNames: ['model'],
    registers,
  });
  const inFlight = new Gauge({
    name: 'agentd_embedding_requests_in_flight',
    help: 'Requests for vectors that are under way in this process.',
    registers,
  });
  const killed = new Counter({
    name: 'agentd_document_threads_killed_total',
    help: 'Threads that were ended in the middle of a document.',
    labelNames: ['reason'],
    registers,
  });
  const waiting = new Gauge({
    name: 'agentd_documents_waiting',
    help: 'Documents that are to be read, by what they wait for.',
    labelNames: ['state'],
    registers,
  });
  const oldest = new Gauge({
    name: 'agentd_documents_oldest_wait_seconds',
    help: 'How long the first in line has waited.',
    labelNames: ['state'],
    registers,
  });
  const moveTurns = new Counter({
    name: 'agentd_embedding_migration_turns_total',
    help: 'Turns of moves to another embedding model that are over, by what became of them.',
    labelNames: ['outcome'],
    registers,
  });
  const movedPassages = new Counter({
    name: 'agentd_embedding_migration_passages_total',
    help: 'Passages of moves whose new vectors were stored.',
    registers,
  });
  // an increase is seen only of a series that is there
  for (const reason of ['timeout', 'memory', 'crash', 'aborted'] as const) killed.inc({ reason }, 0);
  const reasonLabel = bounded();
  const modelLabel = bounded();
  const outcomeLabel = bounded();
  const clear = (): void => {
    waiting.reset();
    oldest.reset();
  };
  return {
    ended: (outcome, reasonCode) =>
      documents.inc({ outcome, reason_code: reasonCode === null ? '' : reasonLabel(reasonCode) }),
    stage: (stage, seconds) => stages.observe({ stage }, amount(seconds)),
    embeddingRequest(request) {
      const model = modelLabel(request.model);
      requests.inc({ model, outcome: outcomeLabel(request.outcome) });
      requestSeconds.observe({ model }, amount(request.seconds));
      tokens.inc({ model }, amount(request.tokens));
      cost.inc({ model }, amount(request.costMicros));
    },
    embeddingInFlight: (change) => inFlight.inc(change),
    threadKilled: (reason) => killed.inc({ reason }),
    moveWorked: (outcome) => moveTurns.inc({ outcome }),
    passagesMoved: (passages) => movedPassages.inc(amount(passages)),
    waiting(rows) {
      clear();
      for (const { state, documents: count, oldest_seconds } of rows) {
        waiting.set({ state }, count);
        if (oldest_seconds !== null) oldest.set({ state }, oldest_seconds);
      }
    },
    clear,
  };
}
