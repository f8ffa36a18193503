/** What an agent remembers of whom it works for. A convenience: a memory that is slow or away costs a run a moment, and no more. */
import type { Logger } from 'pino';
import type { Clock } from '../../clock.ts';
import type { Queryable } from '../../db/database.ts';
import { findMemory } from '../../db/memory.ts';
import { RemoteStoreError } from '../../providers/remote-store-error.ts';
import type { Zeps } from '../../providers/zep.ts';
import type { MemoryMessage } from '../../providers/zep-memory.ts';

/** How long a step waits for it, in milliseconds. */
const DEADLINE_MS = 2_000;
/** After a failure a memory is not asked for so long. */
const REST_MS = 10_000;
const MOST_RESTING = 1_000;

export type AgentMemoryDeps = {
  readonly clock: Clock;
  readonly log: Logger;
  readonly zeps: Pick<Zeps, 'load' | 'openMemory'>;
  readonly onRecall: (outcome: 'found' | 'nothing' | 'failed' | 'resting') => void;
  readonly deadlineMs?: number;
};

/** What was recalled, or why nothing could be. */
export type Recalled = { readonly text: string | null; readonly note: string | null };

/** Asks memories. */
export class AgentMemory {
  readonly #deps: AgentMemoryDeps;
  readonly #resting = new Map<string, number>();

  constructor(deps: AgentMemoryDeps) {
    this.#deps = deps;
  }

  /** What the agent of a run remembers that matters to a request. Throws what the database throws, or the signal's reason. */
  async recall(
    db: Queryable,
    {
      runId,
      request,
      signal,
    }: { readonly runId: string; readonly request: string; readonly signal: AbortSignal },
  ): Promise<Recalled> {
    const { clock, log, zeps, onRecall } = this.#deps;
    const memory = await findMemory(db, runId);
    if (memory === null) return { text: null, note: null };
    const { store, talk } = memory;
    if ((this.#resting.get(store.datastore_id) ?? 0) > clock.elapsed()) {
      onRecall('resting');
      return { text: null, note: 'memory: its store had failed a moment before' };
    }
    const deadlineMs = this.#deps.deadlineMs ?? DEADLINE_MS;
    await zeps.load();
    const deadline = new AbortController();
    const timer = clock.after(deadlineMs, () => deadline.abort(new Error('deadline')));
    try {
      const either = AbortSignal.any([signal, deadline.signal]);
      const opened = await zeps.openMemory(store, talk, either, deadlineMs);
      const text = await opened.recall(request);
      onRecall(text === null ? 'nothing' : 'found');
      return { text, note: null };
    } catch (error) {
      signal.throwIfAborted();
      const isLate = deadline.signal.aborted;
      if (!isLate && !(error instanceof RemoteStoreError)) throw error;
      const code = error instanceof RemoteStoreError && !isLate ? error.code : 'timeout';
      this.#resting.delete(store.datastore_id);
      this.#resting.set(store.datastore_id, clock.elapsed() + REST_MS);
      if (this.#resting.size > MOST_RESTING)
        this.#resting.delete(this.#resting.keys().next().value as string);
      onRecall('failed');
      log.warn(
        { event: 'memory_failed', run_id: runId, datastore_id: store.datastore_id, code },
        'the memory of an agent could not be asked: its run goes on without',
      );
      return { text: null, note: `memory: its store could not be asked (${code})` };
    } finally {
      timer.cancel();
    }
  }
}

/** What a run leaves in memory: what it was asked, in the words of whoever asked, and what it answered. */
export function messagesOf(run: {
  readonly input: unknown;
  readonly instructions: string;
  readonly answer: string;
}): MemoryMessage[] {
  return [
    { role: 'user', content: askedIn(run.input) ?? run.instructions },
    { role: 'assistant', content: run.answer },
  ];
}

/** The message that a run is about, or the input as a whole; null: there is none. */
function askedIn(input: unknown): string | null {
  if (typeof input !== 'object' || input === null || Object.keys(input).length === 0) return null;
  const { event, message, content, text, question } = input as Record<string, unknown>;
  const data = ((event as Record<string, unknown> | null)?.data ?? {}) as Record<string, unknown>;
  const said = [data.content, message, content, text, question].find(
    (one) => typeof one === 'string' && one.trim() !== '',
  );
  return typeof said === 'string' ? said : JSON.stringify(input);
}
