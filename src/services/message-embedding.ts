/**
 * Embeds the messages of workspaces that ask for it.
 *
 * A few workspaces at once, a batch each, in turn: whoever has a million messages waits after each batch until the others have had theirs.
 * While there is nothing to do a daemon sleeps, and an insert in one of those workspaces wakes it; it then waits a moment for others to come,
 * so that they go in one request. What no notification tells is found by a slow look, which costs two index scans.
 */
import { type Clock, sleep } from '../clock.ts';
import type { Database, Queryable } from '../db/database.ts';
import { fallAsleep, wakeUp } from '../db/jobs.ts';
import {
  claimMessageWorkspace,
  type MessageClaim,
  renewMessageLeases,
  sweepMessageQueue,
} from '../db/message-embeddings.ts';
import { isLockTimeout, isTransient, retryTransient } from '../db/retry.ts';
import { embedMessageBatch, type MessageBatchDeps } from '../pipelines/ingest/messages.ts';
import { JobAborted } from '../queue/errors.ts';
import { Leases } from '../queue/leases.ts';
import { periodic, type Service, type ServiceDeps } from './periodic.ts';

/** The name under which its sleepers are woken. */
export const MESSAGE_EMBEDDING = 'message-embedding';

/** Workspaces that are worked on at once. */
const CONCURRENCY = 6;
const LOOK_MS = 5_000;
/** The embedded database sends no notifications. */
const LOOK_EMBEDDED_MS = 500;
/** After a notification, for others to come. */
const LINGER_MS = 300;
const SWEEP_MS = 10 * 60_000;
const SWEEP_AT_ONCE = 1_000;
/** Looks in a row that come by nothing but workspaces that rest; the next look goes on behind them. */
const LOOKS_IN_A_ROW = 10;

export type MessageEmbeddingDeps = ServiceDeps &
  Omit<MessageBatchDeps, 'db'> & {
    readonly db: Database;
    readonly workerId: string;
    /** What a batch under way may still take when the daemon stops, in milliseconds. */
    readonly drainMs: number;
  };

/** The embedding of messages as a service, which starts once. */
export function messageEmbedding(deps: MessageEmbeddingDeps): Service {
  const { db, clock, metrics, workerId } = deps;
  const running = new Set<Promise<void>>();
  const leases = new Leases({
    clock,
    log: deps.log,
    leaseMs: deps.leaseSeconds * 1000,
    everyMs: (deps.leaseSeconds * 1000) / 3,
    renew: (held) => renewMessageLeases(db, held, deps.leaseSeconds),
  });
  const stopping = new AbortController();
  let isStopping = false;
  /** When something is due again that this daemon has put off, by the clock's elapsed(). */
  let dueAt = Number.POSITIVE_INFINITY;
  let isWoken = false;
  let after: string | null = null;
  let sweepAt = Number.NEGATIVE_INFINITY;

  const work = (claim: MessageClaim): void => {
    const job = workOn(deps, leases, claim, stopping.signal).then((againMs) => {
      running.delete(job);
      if (againMs !== null) dueAt = Math.min(dueAt, clock.elapsed() + againMs);
    });
    running.add(job);
  };
  /** Claims until there is nothing to claim and nothing under way. */
  const workOff = async (): Promise<void> => {
    let inVain = 0;
    while (!isStopping) {
      const claim =
        running.size < CONCURRENCY && inVain < LOOKS_IN_A_ROW
          ? await claimMessageWorkspace(db, after, workerId, deps.leaseSeconds)
          : null;
      if (typeof claim === 'string') {
        after = claim;
        inVain++;
      } else if (claim) {
        after = claim.id;
        inVain = 0;
        work(claim);
      } else if (running.size === 0) return;
      else {
        await Promise.race(running);
        inVain = 0;
      }
    }
  };
  const loop = periodic(MESSAGE_EMBEDDING, deps, async () => {
    if (isWoken) await sleep(clock, LINGER_MS, stopping.signal).catch(() => {});
    isWoken = false;
    dueAt = Number.POSITIVE_INFINITY;
    if (clock.elapsed() - sweepAt > SWEEP_MS) {
      await sweepMessageQueue(db, SWEEP_AT_ONCE);
      sweepAt = clock.elapsed();
    }
    await workOff();
    if (isStopping) return LOOK_MS;
    if (db.embedded) return LOOK_EMBEDDED_MS;
    // what came before it could notify is found by one more look
    await fallAsleep(db, MESSAGE_EMBEDDING, workerId);
    await workOff();
    return Math.min(LOOK_MS * (0.9 + Math.random() * 0.2), Math.max(dueAt - clock.elapsed(), 0) + 1);
  });
  return {
    name: loop.name,
    start() {
      leases.start();
      loop.start();
    },
    wake() {
      isWoken = true;
      loop.wake();
    },
    async stop() {
      // nothing new is claimed; what is under way has so long
      isStopping = true;
      const stopped = loop.stop();
      const patience = clock.after(deps.drainMs, () => stopping.abort(new JobAborted('drain')));
      await Promise.all(running);
      patience.cancel();
      stopping.abort(new JobAborted('drain'));
      await stopped;
      await Promise.all(running);
      leases.stop();
      await wakeUp(db, MESSAGE_EMBEDDING, workerId).catch(() =>
        metrics.databaseErrors.inc(MESSAGE_EMBEDDING),
      );
    },
  };
}

/** Returns when its workspace is to be looked at again, in milliseconds; null: nothing is put off. Never rejects. */
async function workOn(
  deps: MessageEmbeddingDeps,
  leases: Leases,
  claim: MessageClaim,
  stopping: AbortSignal,
): Promise<number | null> {
  const own = new AbortController();
  leases.hold(claim.id, claim.lease_epoch, own);
  const either = AbortSignal.any([own.signal, stopping]);
  try {
    const db = patient(deps, own.signal);
    const outcome = await embedMessageBatch({ ...deps, db }, claim, either);
    deps.metrics.messages.settled('embedded', outcome.embedded);
    deps.metrics.messages.settled('refused', outcome.refused);
    deps.log.debug(
      { event: 'message_batch', workspace_id: claim.id, ...outcome },
      `a batch of messages is ${outcome.kind}`,
    );
    return outcome.againMs;
  } catch (error) {
    // its lease ends, and somebody takes it up again
    deps.metrics.databaseErrors.inc(MESSAGE_EMBEDDING);
    deps.log.warn(
      { event: 'message_batch_failed', workspace_id: claim.id, err: error },
      'a batch of messages failed unexpectedly and is taken up again',
    );
    return null;
  } finally {
    leases.release(claim.id, claim.lease_epoch);
  }
}

/** What is held has been paid for: a row that somebody holds, or a database that is away, is waited for as long as the lease lasts. */
function patient(deps: { readonly db: Database; readonly clock: Clock }, signal: AbortSignal): Queryable {
  return {
    query: (statement, values) =>
      retryTransient(() => deps.db.query(statement, values), {
        clock: deps.clock,
        signal,
        retryIf: (error) => isTransient(error) || isLockTimeout(error),
      }),
  };
}
