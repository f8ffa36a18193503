/** The parts of ingestion, put together: storage, pages, threads, embedders, leases, and the job that uses them. */
import type { Logger } from 'pino';
import type { Clock } from '../clock.ts';
import type { Config } from '../config.ts';
import type { Queryable } from '../db/database.ts';
import { renewDocumentLeases } from '../db/documents.ts';
import { ensureVectorIndex, prepareVectorIndex, type VectorModel } from '../db/knowledge.ts';
import { QueryEmbedder } from '../pipelines/agent/query-embedding.ts';
import type { RateLimiter } from '../pipelines/agent/rate-limiter.ts';
import { RemoteSearch } from '../pipelines/agent/remote-search.ts';
import { embedderOf } from '../pipelines/ingest/choose-embedder.ts';
import { DOCUMENT_LIMITS } from '../pipelines/ingest/document.ts';
import { EmbeddingLanes } from '../pipelines/ingest/embed.ts';
import type { ChosenEmbedder } from '../pipelines/ingest/ingest.ts';
import { fetchInput } from '../pipelines/ingest/input.ts';
import type { MoveDeps } from '../pipelines/ingest/migrate-embeddings.ts';
import type { SyncDeps } from '../pipelines/ingest/sync-vectors.ts';
import { DocumentWorkers } from '../pipelines/ingest/workers.ts';
import { loadEmbeddingCatalog } from '../providers/embedding-models.ts';
import { openGuardedClient } from '../providers/guarded-fetch.ts';
import { openStorage } from '../providers/object-storage.ts';
import { openPinecones } from '../providers/pinecone.ts';
import { openZeps } from '../providers/zep.ts';
import type { Job } from '../queue/job.ts';
import { Leases } from '../queue/leases.ts';
import type { SecretOpener } from '../secrets.ts';
import type { DocumentMetrics } from '../telemetry/document-metrics.ts';
import { documentIngestJob } from './document-ingest.ts';

export type DocumentPartsOptions = {
  readonly config: Config;
  readonly db: Queryable;
  readonly clock: Clock;
  readonly log: Logger;
  readonly secrets: SecretOpener;
  readonly limiter: RateLimiter;
  readonly workerId: string;
  readonly leaseSeconds: number;
  /** A statement was tried again. */
  readonly onRetry: (error: Error) => void;
  readonly metrics: DocumentMetrics;
};

export type DocumentParts = {
  readonly job: Job;
  readonly leases: Leases;
  /** Other stores of vectors and passages. */
  readonly stores: SyncDeps['stores'];
  /** Turns what agents look for into vectors of the model that the documents have. */
  readonly queries: QueryEmbedder;
  /** Chooses what embeds for a workspace. Throws DocumentError. */
  readonly chooseEmbedder: (owner: Parameters<typeof embedderOf>[1]) => Promise<ChosenEmbedder>;
  /** What moves to other embedding models share with documents. */
  readonly moves: Pick<MoveDeps, 'lanes' | 'chooseEmbedder' | 'prepareIndex'>;
  /** After the last job: threads and connections end. */
  close(): Promise<void>;
};

/** Opens what ingestion needs; nothing is asked of the outside before the first document. Throws ConfigError. */
export function openDocumentParts(options: DocumentPartsOptions): DocumentParts {
  const { clock, config, log, leaseSeconds, metrics, secrets } = options;
  const storage = openStorage(config.storageUrl, config.storageKeys, { clock });
  const client = openGuardedClient({ allowedPrivateHosts: config.allowedPrivateHosts, clock });
  const workers = new DocumentWorkers({
    clock,
    threads: config.documentThreads,
    onKilled: metrics.threadKilled,
  });
  const catalog = loadEmbeddingCatalog();
  const leases = new Leases({
    clock,
    log,
    leaseMs: leaseSeconds * 1000,
    everyMs: (leaseSeconds * 1000) / 3,
    renew: (held) => renewDocumentLeases(options.db, held, leaseSeconds),
  });
  const input = { storage, client, maxBytes: DOCUMENT_LIMITS.maxBytes };
  const chooseEmbedder: DocumentParts['chooseEmbedder'] = (owner) =>
    embedderOf({ config, catalog, secrets }, owner);
  const lanes = new EmbeddingLanes({
    clock,
    limiter: options.limiter,
    onRequest: metrics.embeddingRequest,
    onInFlight: metrics.embeddingInFlight,
  });
  const prepareIndex = (model: VectorModel): Promise<unknown> => ensureVectorIndex(options.db, model);
  const job = documentIngestJob({
    db: options.db,
    onRetry: options.onRetry,
    clock,
    log,
    leaseSeconds,
    leases,
    workerId: options.workerId,
    concurrency: config.queues['document-ingest']?.concurrency ?? 1,
    lanes,
    metrics,
    onStage: metrics.stage,
    fetch: (document, signal) => fetchInput(input, document, signal),
    process: ({ bytes, hints }, chunking, signal) =>
      workers.process(bytes, hints, DOCUMENT_LIMITS, chunking, signal),
    chooseEmbedder: (document) => embedderOf({ config, catalog, secrets }, document, document.assigned),
    prepareIndex: (embedder, coming) => prepareVectorIndex(options.db, embedder, coming),
  });
  const { allowedPrivateHosts } = config;
  const stores = {
    pinecone: openPinecones({ url: config.pineconeUrl, allowedPrivateHosts, clock, secrets }),
    getzep: openZeps({ url: config.zepUrl, allowedPrivateHosts, clock, secrets }),
  };
  const queries = new QueryEmbedder({
    clock,
    log,
    remote: new RemoteSearch({ clock, log, stores }),
    embedderOf: (owner, model) => embedderOf({ config, catalog, secrets }, owner, model),
  });
  return {
    job,
    leases,
    queries,
    chooseEmbedder,
    stores,
    moves: {
      lanes,
      chooseEmbedder: (move) => embedderOf({ config, catalog, secrets }, move, move),
      prepareIndex,
    },
    async close() {
      await Promise.all([
        workers.stop(),
        client.close(),
        storage.close(),
        stores.pinecone.close(),
        stores.getzep.close(),
      ]);
    },
  };
}
