/** Queue document-ingest: reads one source into searchable chunks. */
import { z } from 'zod';
import { admitDocuments, claimDocument, documentHeldFor } from '../db/documents.ts';
import { wakeQueue } from '../db/jobs.ts';
import { isLockTimeout, patientQueries, retryTransient } from '../db/retry.ts';
import { type IngestDeps, ingestDocument } from '../pipelines/ingest/ingest.ts';
import { JobAborted, snooze } from '../queue/errors.ts';
import { defineJob, type Job } from '../queue/job.ts';
import type { Leases } from '../queue/leases.ts';
import type { DocumentMetrics } from '../telemetry/document-metrics.ts';

/** A document whose row somebody holds is looked at again after so many milliseconds; its slot is another's meanwhile. */
const HELD_MS = 1_000;

/**
 * A slot stands for the memory that a document takes. One of so few passages, two or three hundred kilobytes, lends it to another while its
 * embeddings are waited for; so many at once.
 */
const SMALL_CHUNKS = 100;
const MOST_SMALL = 16;

const payload = z.object({ source_id: z.guid(), request: z.int() });

export type DocumentIngestDeps = IngestDeps & {
  readonly workerId: string;
  readonly leases: Leases;
  /** Documents that are read at once. */
  readonly concurrency: number;
  readonly metrics: DocumentMetrics;
};

/** The job of queue document-ingest. */
export function documentIngestJob(deps: DocumentIngestDeps): Job {
  return defineJob({
    queue: 'document-ingest',
    parse: (data) => payload.parse(data),
    key: ({ source_id, request }) => `${source_id}:${request}`,
    // a look lets in more than there are slots, so that a slot never waits for the next look
    admit: () => admitDocuments(deps.db, deps.concurrency * 4),
    lends: MOST_SMALL,
    async handler({ source_id, request }, { signal, job, log, lendSlot }) {
      const asked = { sourceId: source_id, request };
      const patience = { clock: deps.clock, signal, onRetry: deps.onRetry };
      const db = patientQueries(deps.db, patience);
      const document = await retryTransient(
        () => claimDocument(deps.db, asked, deps.workerId, deps.leaseSeconds),
        patience,
      ).catch((error: unknown) => {
        if (isLockTimeout(error)) return 'held' as const;
        throw error;
      });
      if (document === 'held') return snooze(HELD_MS);
      if (document === null) {
        const heldForMs = await documentHeldFor(db, asked);
        return heldForMs === null ? undefined : snooze(heldForMs);
      }
      const own = new AbortController();
      deps.leases.hold(document.id, document.lease_epoch, own);
      try {
        const outcome = await ingestDocument(
          {
            ...deps,
            log,
            onChunked: (chunks) => {
              if (chunks <= SMALL_CHUNKS) lendSlot();
            },
          },
          document,
          job.id,
          AbortSignal.any([signal, own.signal]),
        );
        deps.metrics.ended(outcome.kind, 'code' in outcome ? outcome.code : null);
        log.info({ event: 'document_ingested', source_id, outcome }, `a document is ${outcome.kind}`);
        if (outcome.kind === 'released') throw new JobAborted('drain');
        // a place of its workspace is free: who waits there need not wait for the next look
        if ((await admitDocuments(db, deps.concurrency * 4)) > 0) await wakeQueue(db, 'document-ingest');
      } finally {
        deps.leases.release(document.id, document.lease_epoch);
      }
      return undefined;
    },
  });
}
