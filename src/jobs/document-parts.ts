/** The parts of ingestion, put together: storage, pages, threads, embedders, leases, and the job that uses them. */
import type { Logger } from 'pino';
import type { Clock } from '../clock.ts';
import type { Config } from '../config.ts';
import type { Queryable } from '../db/database.ts';
import { renewDocumentLeases } from '../db/documents.ts';
import { ensureVectorIndex } from '../db/knowledge.ts';
import { QueryEmbedder } from '../pipelines/agent/query-embedding.ts';
import type { RateLimiter } from '../pipelines/agent/rate-limiter.ts';
import { embedderOf } from '../pipelines/ingest/choose-embedder.ts';
import { DOCUMENT_LIMITS } from '../pipelines/ingest/document.ts';
import { EmbeddingLanes } from '../pipelines/ingest/embed.ts';
import { fetchInput } from '../pipelines/ingest/input.ts';
import { DocumentWorkers } from '../pipelines/ingest/workers.ts';
import { loadEmbeddingCatalog } from '../providers/embedding-models.ts';
import { openGuardedClient } from '../providers/guarded-fetch.ts';
import { openStorage } from '../providers/object-storage.ts';
import type { SecretStore } from '../providers/secrets.ts';
import type { Job } from '../queue/job.ts';
import { Leases } from '../queue/leases.ts';
import { documentIngestJob } from './document-ingest.ts';

export type DocumentPartsOptions = {
  readonly config: Config;
  readonly db: Queryable;
  readonly clock: Clock;
  readonly log: Logger;
  readonly secrets: SecretStore;
  readonly limiter: RateLimiter;
  readonly workerId: string;
  readonly leaseSeconds: number;
  /** A statement was tried again. */
  readonly onRetry: (error: Error) => void;
};

export type DocumentParts = {
  readonly job: Job;
  readonly leases: Leases;
  /** Turns what agents look for into vectors of the model that the documents have. */
  readonly queries: QueryEmbedder;
  /** After the last job: threads and connections end. */
  close(): Promise<void>;
};

/** Opens what ingestion needs; nothing is asked of the outside before the first document. Throws ConfigError. */
export function openDocumentParts(options: DocumentPartsOptions): DocumentParts {
  const { clock, config, log, leaseSeconds, secrets } = options;
  const storage = openStorage(config.storageUrl, config.storageKeys, { clock });
  const client = openGuardedClient({ allowedPrivateHosts: config.allowedPrivateHosts, clock });
  const workers = new DocumentWorkers({ clock });
  const catalog = loadEmbeddingCatalog();
  const leases = new Leases({
    clock,
    log,
    leaseMs: leaseSeconds * 1000,
    everyMs: (leaseSeconds * 1000) / 3,
    renew: (held) => renewDocumentLeases(options.db, held, leaseSeconds),
  });
  const input = { storage, client, maxBytes: DOCUMENT_LIMITS.maxBytes };
  const job = documentIngestJob({
    db: options.db,
    onRetry: options.onRetry,
    clock,
    log,
    leaseSeconds,
    leases,
    workerId: options.workerId,
    concurrency: config.queues['document-ingest']?.concurrency ?? 1,
    lanes: new EmbeddingLanes({ clock, limiter: options.limiter }),
    fetch: (document, signal) => fetchInput(input, document, signal),
    process: ({ bytes, hints }, chunking, signal) =>
      workers.process(bytes, hints, DOCUMENT_LIMITS, chunking, signal),
    chooseEmbedder: (document) => embedderOf({ config, catalog, secrets }, document),
    prepareIndex: (embedder) => ensureVectorIndex(options.db, embedder),
  });
  const queries = new QueryEmbedder({
    clock,
    log,
    embedderOf: (owner, model) =>
      embedderOf(
        { config: { ...config, embedding: { ...config.embedding, ...model } }, catalog, secrets },
        owner,
      ),
  });
  return {
    job,
    leases,
    queries,
    async close() {
      await Promise.all([workers.stop(), client.close(), storage.close()]);
    },
  };
}
