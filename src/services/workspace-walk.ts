/**
 * Something that is done for one workspace after the other, a part of them in each pass.
 *
 * A pass takes up where the last one ended, and ends after some seconds: no number of workspaces keeps what comes after it waiting. Each is done in a
 * transaction of its own. One that can't be done, because somebody holds its rows or because it takes too long, is left for a growing pause.
 */
import type { Database } from '../db/database.ts';
import { isDeadlock, isLockTimeout, isStatementTimeout } from '../db/retry.ts';
import type { ServiceDeps } from './periodic.ts';
import { type Pause, Postponed } from './postponed.ts';

/** Workspaces that one statement finds. */
const PAGE = 200;
/** After so many milliseconds the rest is for the next pass. */
const PASS_MS = 5_000;
/** Somebody holds a row. */
const HELD: Pause = { firstMs: 1_000, longestMs: 60_000 };
/** It took longer than a statement may. */
const SLOW: Pause = { firstMs: 60_000, longestMs: 3_600_000 };

export type WalkDeps = Pick<ServiceDeps, 'clock' | 'log'> & { readonly db: Database };

/** What the log says of a workspace for which something took too long. */
export type SlowWorkspace = {
  readonly workspace_id: string;
  readonly err: unknown;
  readonly again_ms: number;
};

/** What is done, and for which workspaces. */
export type Walk = {
  /** Up to `limit` workspaces after `after`, in the order of their ids. */
  readonly find: (db: Database, after: string | null, limit: number) => Promise<string[]>;
  /** Does it for one; how much there was to do. */
  readonly each: (db: Database, workspaceId: string) => Promise<number>;
  /** Told where it took too long. */
  readonly onSlow: (slow: SlowWorkspace) => void;
};

/** A walk, and where it has come to. */
export class WorkspaceWalk {
  readonly #deps: WalkDeps;
  readonly #walk: Walk;
  readonly #left: Postponed;
  #after: string | null = null;

  constructor(deps: WalkDeps, walk: Walk) {
    this.#deps = deps;
    this.#walk = walk;
    this.#left = new Postponed(deps.clock);
  }

  /** Goes on to the last workspace, or until the time is over. Returns how much was done. */
  async pass(): Promise<number> {
    const { db, clock } = this.#deps;
    const until = clock.elapsed() + PASS_MS;
    const waiting = new Set(this.#left.waiting());
    // those that are not found any more have nothing to be done
    const gone = new Set(this.#after === null ? this.#left.due() : []);
    let done = 0;
    for (;;) {
      const ids = await this.#walk.find(db, this.#after, PAGE);
      for (const id of ids) {
        if (clock.elapsed() >= until) return done;
        this.#after = id;
        gone.delete(id);
        if (!waiting.has(id)) done += await this.#one(id);
      }
      if (ids.length < PAGE) break;
    }
    this.#after = null;
    for (const id of gone) this.#left.settle(id);
    return done;
  }

  async #one(id: string): Promise<number> {
    try {
      const done = await this.#walk.each(this.#deps.db, id);
      this.#left.settle(id);
      return done;
    } catch (error) {
      if (isLockTimeout(error) || isDeadlock(error)) this.#left.postpone(id, HELD);
      else if (isStatementTimeout(error)) {
        const again = this.#left.postpone(id, SLOW);
        this.#walk.onSlow({ workspace_id: id, err: error, again_ms: again });
      } else throw error;
      return 0;
    }
  }
}
