/** What an erasure waits for: rows that others hold, work that daemons have in hand, stores that they empty. */
import { setTimeout as pause } from 'node:timers/promises';
import type { Database, Queryable } from '../db/database.ts';
import { isWorkerAlive, type RemoteLeft, remoteLeft } from '../db/workspace-erasing.ts';
import { stopWork, workInHand } from '../db/workspace-stopping.ts';
import { count } from './format.ts';
import { asOperator, operatorName } from './operator.ts';

export type Waiting = {
  /** How long each is waited for. */
  readonly waitMs: number;
  readonly note: (text: string) => void;
};

const LOOK_MS = 250;

/** Held by another transaction, or its statement took too long beside others'. */
const BUSY = new Set(['55P03', '57014', '40P01', '40001']);

/** Why a statement could not be done beside others' and may be later; null: for another reason. */
export function busyReason(error: unknown): string | null {
  const { code, message } = error as { code?: string; message?: string };
  return code !== undefined && BUSY.has(code) ? (message ?? code) : null;
}

/** Runs `work` in a transaction, and again while somebody holds its rows. `held`: why it was not done at last; null: it was. */
export async function patiently<T>(
  db: Database,
  waitMs: number,
  work: (tx: Queryable) => Promise<T>,
): Promise<{ readonly held: null; readonly result: T } | { readonly held: string }> {
  const began = performance.now();
  for (;;) {
    try {
      return { held: null, result: await asOperator(db, work) };
    } catch (error) {
      const held = busyReason(error);
      if (held === null) throw error;
      if (performance.now() - began > waitMs) return { held };
    }
    await pause(LOOK_MS);
  }
}

/**
 * Stops the workspace's work and waits until nobody has any of it in hand. `cancelled`: how many runs were; `held`: why it could not be stopped;
 * null: it was.
 */
export async function stop(
  db: Database,
  workspaceId: string,
  { waitMs, note }: Waiting,
  notes: string[],
): Promise<{ readonly cancelled: number; readonly held: string | null }> {
  let cancelled = 0;
  const began = performance.now();
  for (let said = ''; ; ) {
    let stopped = 0;
    let held: string | null = null;
    try {
      stopped = await asOperator(db, (tx) => stopWork(tx, workspaceId, operatorName()));
    } catch (error) {
      held = busyReason(error);
      if (held === null) throw error;
    }
    cancelled += stopped;
    const work = await workInHand(db, workspaceId);
    if (held === null && stopped === 0 && work.length === 0) return { cancelled, held };
    const line = work.map((one) => `${count(one.count)} ${one.kind}`).join(', ');
    if (performance.now() - began > waitMs) {
      if (held === null)
        notes.push(
          `It was not waited for longer that daemons let go of: ${line}. What they write of it is refused.`,
        );
      return { cancelled, held };
    }
    if (line !== said && line !== '') note(`waiting for daemons to let go of ${line}`);
    said = line;
    await pause(LOOK_MS);
  }
}

/** Waits until daemons have emptied the workspace's stores elsewhere. Returns what they have not. */
export async function waitForStores(
  db: Database,
  workspaceId: string,
  { waitMs, note }: Waiting,
): Promise<RemoteLeft[]> {
  const began = performance.now();
  for (let said = -1; ; ) {
    const left = await remoteLeft(db, workspaceId);
    if (left.length === 0 || performance.now() - began > waitMs) return left;
    if (!(await isWorkerAlive(db))) {
      note('No daemon is running that could empty the stores elsewhere.');
      return left;
    }
    const sources = left.reduce((sum, store) => sum + store.sources, 0);
    if (sources !== said)
      note(`waiting for ${count(left.length)} stores elsewhere, ${count(sources)} sources`);
    said = sources;
    await pause(LOOK_MS);
  }
}
