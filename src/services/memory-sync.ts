/**
 * Sends what runs have said to the memories of their agents.
 *
 * A look takes a few runs of each store, and each goes its own way: a store that hangs has its few, and holds up no other.
 * A row leaves the outbox when its messages are in the store. Who can't know whether a request of his was carried out (an answer that was
 * lost, a daemon that died) waits, and then looks in the thread before sending again. A request that hangs on its way for longer than
 * that, and arrives after all, is there twice.
 */
import type { Database } from '../db/database.ts';
import { type ClaimedMemory, claimMemories, postponeMemory, settleMemory } from '../db/memory.ts';
import { messagesOf } from '../pipelines/agent/memory.ts';
import { RemoteStoreError } from '../providers/remote-store-error.ts';
import type { Zeps } from '../providers/zep.ts';
import { periodic, type Service, type ServiceDeps } from './periodic.ts';

/** Runs that one process sends at once. */
const SLOTS = 32;
const LOOK_MS = 1_000;
/** One request, and all that one run needs. A claim lasts longer. */
const REQUEST_MS = 10_000;
const ITEM_MS = 30_000;
const LEASE_SECONDS = 60;
/** Before another attempt; doubled by each. */
const FIRST_DELAY_MS = 15_000;
const LONGEST_DELAY_MS = 10 * 60_000;

export type MemorySyncDeps = ServiceDeps & {
  readonly db: Database;
  readonly zeps: Pick<Zeps, 'openMemory'>;
  /** Replaces how often it looks and how long it waits after the first failure, in milliseconds, for tests. */
  readonly lookMs?: number;
};

/** The sending as a service. */
export function memorySync(deps: MemorySyncDeps): Service {
  const stopping = new AbortController();
  const running = new Set<Promise<void>>();
  /** Under way, by store. */
  const ofStore = new Map<string, number>();
  const begin = (item: ClaimedMemory): void => {
    const store = item.datastore_id;
    ofStore.set(store, (ofStore.get(store) ?? 0) + 1);
    const work = send(deps, item, stopping.signal)
      .catch((error: unknown) => {
        deps.metrics.databaseErrors.inc('memory-sync');
        deps.log.warn(
          { event: 'service_failed', service: 'memory-sync', err: error },
          'the memory-sync failed and tries again',
        );
        return false;
      })
      .then((isSettled) => {
        running.delete(work);
        const left = (ofStore.get(store) ?? 1) - 1;
        if (left > 0) ofStore.set(store, left);
        else ofStore.delete(store);
        // more may wait for its store
        if (isSettled && left === 0) loop.wake();
      });
    running.add(work);
  };
  const loop = periodic('memory-sync', deps, async () => {
    const free = SLOTS - running.size;
    if (free > 0) {
      for (const item of await claimMemories(deps.db, free, LEASE_SECONDS, [...ofStore.keys()])) begin(item);
    }
    return deps.lookMs ?? LOOK_MS;
  });
  return {
    ...loop,
    async stop() {
      // what is cut off here is looked for before it is sent again
      stopping.abort();
      await loop.stop();
      await Promise.all(running);
    },
  };
}

/** Resolves with whether it is done with. */
async function send(deps: MemorySyncDeps, item: ClaimedMemory, stopping: AbortSignal): Promise<boolean> {
  const { clock, db, log, metrics } = deps;
  const fields = { run_id: item.run_id, datastore_id: item.datastore_id };
  if (item.memory === null) {
    await settleMemory(db, item.run_id);
    return true;
  }
  const { store, talk } = item.memory;
  const limit = new AbortController();
  const timer = clock.after(ITEM_MS, () => limit.abort());
  try {
    const signal = AbortSignal.any([stopping, limit.signal]);
    const memory = await deps.zeps.openMemory(store, talk, signal, REQUEST_MS);
    if (item.attempts === 0 || !(await memory.has(item.run_id)))
      await memory.add(messagesOf(item), item.run_id);
    await settleMemory(db, item.run_id);
    metrics.memory.sent('sent');
    return true;
  } catch (error) {
    if (stopping.aborted) return false;
    if (!(error instanceof RemoteStoreError) && !limit.signal.aborted) throw error;
    const code = error instanceof RemoteStoreError ? error.code : 'timeout';
    const reason = error instanceof RemoteStoreError ? error.message : 'The store did not answer in time.';
    const first = deps.lookMs ?? FIRST_DELAY_MS;
    const inMs = Math.min(first * 2 ** Math.min(item.attempts, 10), LONGEST_DELAY_MS);
    const isLost = await postponeMemory(db, item, { code, reason, inMs });
    metrics.memory.sent(isLost ? 'lost' : 'postponed');
    const failed = { ...fields, code, attempts: item.attempts + 1 };
    if (isLost) log.warn({ event: 'memory_lost', ...failed }, `what a run said is given up: ${reason}`);
    else log.warn({ event: 'memory_postponed', ...failed }, `what a run said waits: ${reason}`);
    return false;
  } finally {
    timer.cancel();
  }
}
