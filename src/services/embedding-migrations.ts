/**
 * Carries moves to other embedding models out: as many at once as one process may have, each of a workspace of its own, behind the
 * documents that people wait for.
 */

import type { Database } from '../db/database.ts';
import type { DatabaseTime } from '../db/database-time.ts';
import { type ClaimedMove, claimMove, renewMoves, reopenMoves } from '../db/embedding-migrations.ts';
import { dropUnusedVectorIndexes, type VectorModel } from '../db/knowledge.ts';
import { LONGEST_DELAY_MS } from '../db/retry.ts';
import { type MoveDeps, migrateEmbeddings } from '../pipelines/ingest/migrate-embeddings.ts';
import { JobAborted } from '../queue/errors.ts';
import { Leases } from '../queue/leases.ts';
import { periodic, type Service, type ServiceDeps } from './periodic.ts';

const LOOK_MS = 2_000;
/** Workspaces that one process moves at once. */
const AT_ONCE = 2;
const STRAYS_MS = 30_000;
/** How often indexes are looked for that nobody uses: it may take a walk through the table. */
const INDEXES_MS = 3_600_000;
const FIRST_INDEXES_MS = 300_000;

export type EmbeddingMigrationsDeps = ServiceDeps &
  Omit<MoveDeps, 'db' | 'log' | 'clock' | 'onMoved'> & {
    readonly db: Database;
    readonly time: DatabaseTime;
    readonly workerId: string;
    /** What new documents of this process are embedded with: its index is not dropped. */
    readonly ownModel: VectorModel;
    /** Replace the times above, for tests; milliseconds. */
    readonly lookMs?: number;
    readonly straysMs?: number;
  };

/** The moves of a process as a service. Its end hands them back. */
export function embeddingMigrations(deps: EmbeddingMigrationsDeps): Service {
  const { clock, db, log, leaseSeconds } = deps;
  const leases = new Leases({
    clock,
    log,
    leaseMs: leaseSeconds * 1000,
    everyMs: (leaseSeconds * 1000) / 3,
    renew: (held) => renewMoves(db, held, leaseSeconds),
  });
  const running = new Map<string, { readonly stop: AbortController; readonly done: Promise<void> }>();
  // as the reconciler: right after the database was away, or its clock was set, a lease that looks lapsed need not be
  const patience = Math.max((leaseSeconds * 1000) / 2, LONGEST_DELAY_MS + 500);
  let straysAt = Number.NEGATIVE_INFINITY;
  let indexesAt = clock.elapsed() + FIRST_INDEXES_MS - INDEXES_MS;
  let isStopped = false;

  const carryOn = async (move: ClaimedMove, stop: AbortController): Promise<void> => {
    leases.hold(move.id, move.lease_epoch, stop);
    try {
      const onMoved = deps.metrics.documents.passagesMoved;
      const outcome = await migrateEmbeddings({ ...deps, onMoved }, move, stop.signal);
      deps.metrics.documents.moveWorked(outcome.kind);
      const fields = { workspace_id: move.workspace_id, model: move.model, outcome };
      if (outcome.kind === 'failed') {
        log.warn(
          { event: 'embedding_migration_ended', ...fields },
          'a move to another embedding model failed',
        );
      } else {
        log.debug(
          { event: 'embedding_migration_worked', ...fields },
          'a turn of a move to another embedding model is over',
        );
      }
    } finally {
      leases.release(move.id, move.lease_epoch);
      running.delete(move.id);
      service.wake();
    }
  };

  const service = periodic('embedding-migrations', deps, async () => {
    const now = clock.elapsed();
    if (now - straysAt >= (deps.straysMs ?? STRAYS_MS)) {
      straysAt = now;
      await reopenMoves(db);
    }
    while (!isStopped && running.size < AT_ONCE) {
      const move = await claimMove(db, deps.workerId, leaseSeconds, deps.time.steadyMs() >= patience);
      if (move === null) break;
      const stop = new AbortController();
      running.set(move.id, { stop, done: carryOn(move, stop) });
    }
    if (now - indexesAt >= INDEXES_MS) {
      indexesAt = now;
      const dropped = await dropUnusedVectorIndexes(db, deps.ownModel);
      if (dropped > 0) {
        log.info(
          { event: 'vector_indexes_dropped', dropped },
          'indexes of embedding models that nothing uses any more were dropped',
        );
      }
    }
    return deps.lookMs ?? LOOK_MS;
  });

  return {
    name: service.name,
    start() {
      isStopped = false;
      leases.start();
      service.start();
    },
    wake: () => service.wake(),
    async stop() {
      isStopped = true;
      await service.stop();
      for (const { stop } of running.values()) stop.abort(new JobAborted('drain'));
      await Promise.all([...running.values()].map(({ done }) => done));
      leases.stop();
    },
  };
}
