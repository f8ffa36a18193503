/** Sessions with tool servers, kept open between calls: one a connection and credential, so many at most, closed when idle. */
import { createHash } from 'node:crypto';
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Clock, Timer } from '../../clock.ts';
import { McpError } from '../../providers/mcp-error.ts';
import type { McpSession, McpSettings } from '../../providers/mcp-session.ts';
import { untilAborted } from '../../providers/until-aborted.ts';
import { storedToolHash } from '../mcp/stored-tool.ts';

/** Sessions of one daemon; a stdio server's has a process. */
const MAX_SESSIONS = 64;
const IDLE_MS = 60_000;
/** Calls at once in one session. */
const CALLS_AT_ONCE = 8;
/** What a server lists is looked at again after this, or when it says that it changed. */
const LISTING_MS = 60_000;
/** That a server's tools changed is passed on at once, and then so often at most: how often it says so is up to it. */
const CHANGES_MS = 5_000;

/** A session in use: what it is asked, and what its server lists now. */
export type UsedSession = {
  readonly session: McpSession;
  /** The hash of a tool as the server lists it now; null: it does not. Throws McpError. */
  liveHash(toolName: string, signal: AbortSignal): Promise<string | null>;
};

type Entry = {
  readonly key: string;
  readonly connectionId: string;
  readonly opening: Promise<McpSession>;
  /** Ends the opening. */
  readonly giveUp: AbortController;
  session: McpSession | null;
  users: number;
  readonly waiting: (() => void)[];
  idle: Timer | null;
  listing: { readonly at: number; readonly hashes: Promise<ReadonlyMap<string, string>> } | null;
  /** Until it fires, changes are not passed on. */
  told: Timer | null;
  isUntold: boolean;
  ended: Promise<void> | null;
};

export type McpSessionsDeps = {
  readonly clock: Clock;
  /** A server says that its tools have changed. */
  readonly onToolsChanged: (connectionId: string) => void;
  /** Instead of the pool's own bounds, for tests. */
  readonly maxSessions?: number;
  readonly idleMs?: number;
};

export class McpSessions {
  readonly #deps: McpSessionsDeps;
  readonly #entries = new Map<string, Entry>();
  /** All that have not ended, also those that nobody new gets. */
  readonly #alive = new Set<Entry>();
  #closed = false;

  constructor(deps: McpSessionsDeps) {
    this.#deps = deps;
  }

  /** Sessions that are open, or being opened. */
  get size(): number {
    return this.#entries.size;
  }

  /**
   * Runs `work` in a session with these settings, which is opened where none is there. Waits for a place in it.
   *
   * Throws McpError, or the signal's reason while it waits. A session that is lost under `work` is not used again.
   */
  async use<T>(
    connectionId: string,
    settings: McpSettings,
    signal: AbortSignal,
    work: (used: UsedSession) => Promise<T>,
  ): Promise<T> {
    // in one go: it is in use before anybody can make room of it
    const entry = this.#entry(connectionId, settings);
    await this.#enter(entry, signal);
    try {
      const session = await untilAborted(entry.opening, signal);
      return await work({ session, liveHash: (name, stop) => this.#liveHash(entry, session, name, stop) });
    } catch (error) {
      const lost =
        error instanceof McpError &&
        (['session_lost', 'connection_lost', 'auth_required'].includes(error.code) ||
          // a stream or a process that hangs would hang for the next call too
          (error.code === 'timeout' && entry.session?.server.transport !== 'streamable-http'));
      if (lost || entry.session?.isOpen === false) this.#drop(entry);
      throw error;
    } finally {
      this.#leave(entry);
    }
  }

  /** Closes all sessions; calls under way fail. */
  async close(): Promise<void> {
    this.#closed = true;
    await Promise.all([...this.#alive].map((entry) => this.#end(entry)));
  }

  #entry(connectionId: string, settings: McpSettings): Entry {
    if (this.#closed) throw new McpError('cancelled', 'The worker is stopping.', { transient: true });
    const key = keyOf(connectionId, settings);
    const known = this.#entries.get(key);
    if (known && known.session?.isOpen !== false) {
      // the last to be forgotten
      this.#entries.delete(key);
      this.#entries.set(key, known);
      return known;
    }
    if (known) this.#drop(known);
    this.#makeRoom();
    // not under a caller's signal: others may wait for it too; it has a time limit of its own
    const giveUp = new AbortController();
    // loaded with the first connection: a worker without any does without
    const opening = import('../../providers/mcp-session.ts').then(({ openMcpSession }) =>
      openMcpSession(settings, giveUp.signal),
    );
    const entry: Entry = {
      key,
      connectionId,
      opening,
      giveUp,
      session: null,
      users: 0,
      waiting: [],
      idle: null,
      listing: null,
      told: null,
      isUntold: false,
      ended: null,
    };
    this.#entries.set(key, entry);
    this.#alive.add(entry);
    opening
      .then((session) => {
        entry.session = session;
        session.onToolsChanged(() => this.#changed(entry));
      })
      .catch(() => this.#drop(entry));
    return entry;
  }

  #makeRoom(): void {
    if (this.#entries.size < (this.#deps.maxSessions ?? MAX_SESSIONS)) return;
    const oldest = [...this.#entries.values()].find((entry) => entry.users === 0);
    if (!oldest) {
      throw new McpError(
        'rate_limited',
        'This worker has as many sessions with tool servers as it may have.',
        {
          transient: true,
        },
      );
    }
    this.#drop(oldest);
  }

  async #enter(entry: Entry, signal: AbortSignal): Promise<void> {
    entry.idle?.cancel();
    entry.idle = null;
    entry.users++;
    if (entry.users <= CALLS_AT_ONCE) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    entry.waiting.push(resolve);
    try {
      await untilAborted(promise, signal);
    } catch (error) {
      const place = entry.waiting.indexOf(resolve);
      if (place >= 0) {
        entry.waiting.splice(place, 1);
        entry.users--;
      }
      // its turn had come: it is the next one's
      else this.#leave(entry);
      throw error;
    }
  }

  #leave(entry: Entry): void {
    entry.users--;
    entry.waiting.shift()?.();
    if (entry.users > 0) return;
    if (this.#entries.get(entry.key) !== entry) void this.#end(entry);
    else entry.idle = this.#deps.clock.after(this.#deps.idleMs ?? IDLE_MS, () => this.#drop(entry));
  }

  /** Nobody new gets it; who uses it goes on as far as that goes. */
  #drop(entry: Entry): void {
    if (this.#entries.get(entry.key) === entry) this.#entries.delete(entry.key);
    if (entry.users === 0) void this.#end(entry);
  }

  #end(entry: Entry): Promise<void> {
    entry.ended ??= this.#endNow(entry);
    return entry.ended;
  }

  async #endNow(entry: Entry): Promise<void> {
    entry.idle?.cancel();
    if (this.#entries.get(entry.key) === entry) this.#entries.delete(entry.key);
    if (!entry.session) entry.giveUp.abort();
    const session = await entry.opening.catch(() => null);
    await session?.close();
    entry.told?.cancel();
    if (entry.isUntold) this.#deps.onToolsChanged(entry.connectionId);
    this.#alive.delete(entry);
  }

  #changed(entry: Entry): void {
    entry.listing = null;
    if (entry.told) {
      entry.isUntold = true;
      return;
    }
    this.#deps.onToolsChanged(entry.connectionId);
    entry.told = this.#deps.clock.after(CHANGES_MS, () => {
      entry.told = null;
      if (!entry.isUntold) return;
      entry.isUntold = false;
      this.#changed(entry);
    });
  }

  async #liveHash(
    entry: Entry,
    session: McpSession,
    name: string,
    signal: AbortSignal,
  ): Promise<string | null> {
    const now = this.#deps.clock.elapsed();
    if (!entry.listing || now - entry.listing.at > LISTING_MS) {
      const hashes = listedHashes(session);
      const listing = { at: now, hashes };
      entry.listing = listing;
      hashes.catch(() => {
        if (entry.listing === listing) entry.listing = null;
      });
    }
    return (await untilAborted(entry.listing.hashes, signal)).get(name) ?? null;
  }
}

/** A name that is listed twice, with different tools, is nobody's. */
async function listedHashes(session: McpSession): Promise<ReadonlyMap<string, string>> {
  const { tools } = await session.listTools(new AbortController().signal);
  const hashes = new Map<string, string>();
  for (const [n, tool] of tools.entries()) {
    if (n % 50 === 49) await nextTurn();
    const hash = storedToolHash(tool);
    const known = hashes.get(tool.name);
    hashes.set(tool.name, known === undefined || known === hash ? (hash ?? '') : '');
  }
  return hashes;
}

function keyOf(connectionId: string, settings: McpSettings): string {
  const headers = Object.entries(settings.headers).toSorted(([a], [b]) => (a < b ? -1 : 1));
  return createHash('sha256')
    .update(JSON.stringify([connectionId, settings.url, headers]))
    .digest('hex');
}
