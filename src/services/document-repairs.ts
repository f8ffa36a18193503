/** The reconciler's part in keeping documents from being stuck: lapsed leases, lost jobs, due refreshes, chunks that nobody searches. */
import type { Queryable } from '../db/database.ts';
import {
  dropStaleDocumentJobs,
  requestDueRefreshes,
  requeueDocumentsWithoutJob,
  requeueLapsedDocuments,
  sourcesWithOldChunks,
} from '../db/document-repairs.ts';
import { deleteOldChunks } from '../db/documents.ts';
import { wakeQueue } from '../db/jobs.ts';
import type { ServiceDeps } from './periodic.ts';

/** Chunks that one statement deletes, and statements of one source in one pass. */
const DELETE_AT_ONCE = 500;
const DELETES = 20;

/** Where the looks that take several passes go on: after this workspace and after this source; null: they begin anew. */
export type DocumentPlace = { readonly refreshes: string | null; readonly oldChunks: string | null };

/**
 * One pass.
 *
 * @param now the database's time as it should be; null: unsure, then no lease is taken for lapsed
 * @param place how far the looks have come that take several passes
 * @returns how far they have come now
 */
export async function repairDocuments(
  deps: Pick<ServiceDeps, 'log'> & { readonly db: Queryable },
  now: Date | null | undefined,
  place: DocumentPlace,
): Promise<DocumentPlace> {
  const { db } = deps;
  const report = (what: string, repaired: number): number => {
    if (repaired > 0)
      deps.log.info({ event: 'reconciled', what, repaired }, `repaired ${repaired} × ${what}`);
    return repaired;
  };
  // one that fails, for whatever is in a row, leaves the others theirs
  const step = async (what: string, repair: () => Promise<number>): Promise<number> => {
    try {
      return report(what, await repair());
    } catch (error) {
      deps.log.warn({ event: 'repair_failed', what, err: error }, `could not repair ${what}`);
      return 0;
    }
  };
  let waiting = 0;
  if (now !== null) waiting += await step('lapsed_document', () => requeueLapsedDocuments(db, now ?? null));
  await step('stale_document_job', () => dropStaleDocumentJobs(db));
  waiting += await step('document_without_job', () => requeueDocumentsWithoutJob(db));
  let refreshes = place.refreshes;
  waiting += await step('due_refresh', async () => {
    const look = await requestDueRefreshes(db, place.refreshes);
    refreshes = look.last;
    return look.repaired;
  });
  if (waiting > 0) await wakeQueue(db, 'document-ingest');
  const look = await sourcesWithOldChunks(db, place.oldChunks);
  for (const id of look.ids) {
    for (let i = 0; i < DELETES && (await deleteOldChunks(db, id, DELETE_AT_ONCE)) === DELETE_AT_ONCE; i++);
  }
  return { refreshes, oldChunks: look.last };
}
