/**
 * Keeps other stores (of vectors, of passages) equal to the ledger.
 *
 * A pass claims stores and lets each go its own way: one that hangs takes a slot of its workspace's few and holds up no other. Woken by a
 * notification when the outbox gets a row; looks by itself every few seconds.
 */
import type { Queryable } from '../db/database.ts';
import { claimStores, dropRetiredStores } from '../db/remote-vectors.ts';
import { LEASE_SECONDS, type SyncDeps, syncStore } from '../pipelines/ingest/sync-vectors.ts';
import { periodic, type Service, type ServiceDeps } from './periodic.ts';

const PASS_MS = 2_000;
/** Stores that one process works on at once. */
const SLOTS = 8;
const RETIRED_EVERY = 15;

export type VectorSyncDeps = ServiceDeps & {
  readonly db: Queryable;
  readonly stores: SyncDeps['stores'];
  readonly workerId: string;
  /** Milliseconds from one look to the next where nothing wakes it. */
  readonly lookMs?: number;
};

export function vectorSync(deps: VectorSyncDeps): Service {
  const running = new Set<Promise<void>>();
  const stopping = new AbortController();
  let pass = 0;
  const forgetRetired = async (): Promise<void> => {
    for (const store of await dropRetiredStores(deps.db)) {
      deps.log.error(
        { event: 'vectors_left_behind', datastore_id: store.datastore_id },
        'a datastore that was deleted let nothing of it be deleted for a week: it stays where it is',
      );
    }
  };
  const service = periodic('vector-sync', deps, async () => {
    const free = SLOTS - running.size;
    const claimed = free > 0 ? await claimStores(deps.db, deps.workerId, free, LEASE_SECONDS) : [];
    for (const store of claimed) {
      const work = syncStore(deps, store, stopping.signal)
        .then(async ({ done, code }) => {
          deps.log.debug(
            { event: 'vectors_synced', datastore_id: store.datastore_id, sources: done, code },
            'a store had its turn',
          );
          // its key is kept no longer than it is needed
          if (store.is_retired) await forgetRetired();
        })
        .catch((error: unknown) => {
          deps.metrics.databaseErrors.inc('vector-sync');
          deps.log.warn(
            { event: 'service_failed', service: 'vector-sync', err: error },
            'the vector-sync failed and tries again',
          );
        })
        .finally(() => {
          running.delete(work);
          // more of it may wait, or another store for its slot
          service.wake();
        });
      running.add(work);
    }
    if (pass++ % RETIRED_EVERY === 0) await forgetRetired();
    return (deps.lookMs ?? PASS_MS) * (0.9 + Math.random() * 0.2);
  });
  return {
    ...service,
    async stop() {
      stopping.abort(new Error('stopping'));
      await service.stop();
      await Promise.all(running);
    },
  };
}
