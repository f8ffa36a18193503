/**
 * One claim of a run as spans: an observer of its journal.
 *
 * What may be said once only (the end of a step, of the run) waits until the journal has it, because the journal's fence lets one
 * worker through. What was done by several workers is said by each of them.
 *
 * Times are the database's: those of the claim, and from there on this process's monotonic clock. A node whose date is wrong
 * draws no child before its parent.
 */
import type { RunEnding } from '../db/run-ending.ts';
import type { Checkpoint, ClaimedRun, ModelCallChange, StepChange, ToolCallChange } from '../db/runs.ts';
import {
  claimSpan,
  idleSpan,
  modelSpan,
  type Period,
  pauseSpan,
  runSpan,
  type SpanRecord,
  stepSpan,
  type Totals,
  toolSpan,
} from './traces-spans.ts';

export type RunTraceDeps = {
  /** This process's monotonic clock, in milliseconds. */
  readonly elapsed: () => number;
  readonly emit: (span: SpanRecord) => void;
  /** What has become of a run that is no longer this worker's; null if it is gone. */
  readonly ending: (runId: string) => Promise<RunEnding | null>;
  /** A fault of the trace itself: it must never be one of the run. */
  readonly onError: (error: unknown) => void;
};

/** Shorter ones, in milliseconds, are the worker's own time; one without a reason is mostly the database's. */
const SHORTEST_PAUSE_MS = { reason: 20, none: 250 };

type End = NonNullable<Checkpoint['end']>;
type OpenStep = {
  readonly startMs: number;
  readonly change: Pick<StepChange, 'order' | 'attempt' | 'step_id'>;
};
type OpenCall = { readonly startMs: number; readonly call: ModelCallChange };
type OpenTool = { readonly startMs: number; readonly call: ToolCallChange };

/** Observes the journal of one claimed run. No method throws. */
export class RunTrace {
  readonly #run: ClaimedRun;
  readonly #deps: RunTraceDeps;
  /** The span of the application that the run is a child of; null if it is none's. */
  readonly #parentSpanId: string | null;
  readonly #createdAt: number;
  readonly #elapsedAtClaim: number;
  #totals: Totals;
  readonly #steps = new Map<number, OpenStep>();
  readonly #calls = new Map<string, OpenCall>();
  readonly #tools = new Map<string, OpenTool>();
  /** Tool calls that were said. */
  readonly #said = new Set<string>();
  /** Since when a step pauses before it tries something again, and why. */
  #pause: { readonly startMs: number; readonly order: number; readonly code: string | null } | null = null;
  #pauseCount = 0;
  #attempts = 0;
  /** Recorded, not yet committed. */
  #pending: { readonly spans: SpanRecord[]; end: End | null } = { spans: [], end: null };
  #ended: End | null = null;

  constructor(run: ClaimedRun, parentSpanId: string | null, deps: RunTraceDeps) {
    this.#run = run;
    this.#deps = deps;
    this.#parentSpanId = parentSpanId;
    this.#elapsedAtClaim = deps.elapsed();
    const { turns, tool_calls, cost_micros } = run;
    this.#totals = { turns, tool_calls, cost_micros, tokens: run.prompt_tokens + run.completion_tokens };
    const startedAt = Math.min(run.started_at_ms, run.claimed_at_ms);
    // An application may write any moment into created_at.
    const created = Number.isFinite(run.created_at_ms) ? run.created_at_ms : startedAt;
    this.#createdAt = Math.max(0, Math.min(created, startedAt));
    for (const step of run.journal.steps) {
      if (step.status !== 'running') continue;
      const startMs = Date.parse(step.started_at ?? '');
      this.#steps.set(step.step_order, {
        startMs: Number.isFinite(startMs) ? startMs : run.claimed_at_ms,
        change: { order: step.step_order, attempt: step.attempt, step_id: step.step_id ?? null },
      });
    }
    if (run.lease_epoch === 1) {
      deps.emit(idleSpan(run, 'queued', 'queued', null, { startMs: this.#createdAt, endMs: startedAt }));
    }
    if (run.paused_at_ms !== null) {
      const period = { startMs: Math.min(run.paused_at_ms, run.claimed_at_ms), endMs: run.claimed_at_ms };
      deps.emit(idleSpan(run, `wait:${run.lease_epoch - 1}`, 'waiting', null, period));
    }
  }

  /** The state of a step. */
  step(change: StepChange): void {
    this.#safely(() => {
      const now = this.#now();
      const { order } = change;
      const known = this.#steps.get(order);
      const startMs = known?.startMs ?? now;
      if (change.status !== 'running') {
        this.#endPause(now);
        this.#steps.delete(order);
        const code = change.reason_code ?? null;
        this.#pending.spans.push(stepSpan(this.#run, change, change.status, code, { startMs, endMs: now }));
        return;
      }
      this.#steps.set(order, { startMs, change });
      if (change.reason_code) {
        this.#abort(now, order);
        this.#pauses(order, change.reason_code);
      }
      // The claim of a new run has journaled its first call.
      if (!known && order === 1 && this.#run.lease_epoch === 1) this.#pauses(1, null);
    });
  }

  /** The state of a model call: its answer, or that it was cut by the end of its run. */
  modelCall(change: ModelCallChange): void {
    this.#safely(() => {
      // Until it is sent, a call waits for its intent to be written, and perhaps for its turn under a rate limit.
      if (change.status === 'started') this.#pauses(change.order, null);
      if (change.status === 'completed' || change.status === 'failed') this.#endAttempt(change);
    });
  }

  /** A request goes out. */
  attemptStarted(call: ModelCallChange): void {
    this.#safely(() => {
      const now = this.#now();
      this.#endPause(now);
      this.#calls.set(`${call.order}:${call.turn}`, { startMs: now, call });
    });
  }

  /** It failed; a pause may follow, or the next model, or the end. */
  attemptFailed(call: ModelCallChange, code: string): void {
    this.#safely(() => {
      this.#endAttempt({ ...call, error_code: code });
      this.#pauses(call.order, code);
    });
  }

  /** The state of a tool call. */
  toolCall(change: ToolCallChange): void {
    this.#safely(() => {
      const now = this.#now();
      const place = `${change.order}:${change.turn}:${change.index}`;
      if (change.status === 'started' || change.status === 'waiting') {
        this.#endPause(now);
        this.#tools.set(place, { startMs: now, call: change });
        return;
      }
      const open = this.#tools.get(place);
      this.#tools.delete(place);
      const startMs = begun(open, now, change.duration_ms);
      this.#tool(change, change.status, change.error_code ?? null, { startMs, endMs: now });
    });
  }

  /** The state in which the worker leaves the run. */
  end(end: End): void {
    this.#pending.end = end;
  }

  /** What was recorded is in the journal. */
  committed(totals: Totals): void {
    this.#safely(() => {
      this.#totals = { ...totals };
      const { spans, end } = this.#pending;
      this.#pending = { spans: [], end: null };
      for (const span of spans) this.#deps.emit(span);
      if (end === null) return;
      this.#ended = end;
      if (end.status === 'completed' || end.status === 'failed') this.#root(end.status, end.reason_code);
      else if (end.status === 'waiting' && end.wake_in_ms !== null && !end.for_somebody) {
        // By plan: nobody is there to see when it really ends. (A wait for a person or a budget is said by the claim that ends it.)
        const now = this.#now();
        const period = { startMs: now, endMs: now + end.wake_in_ms };
        const place = `wait:${this.#run.lease_epoch}`;
        this.#deps.emit(idleSpan(this.#run, place, 'waiting', end.reason_code, period));
      }
    });
  }

  /** The database took nothing of it. */
  refused(): void {
    this.#pending = { spans: [], end: null };
  }

  /** The worker has left the run. Resolves when everything about this claim has been said. Never rejects. */
  async left(): Promise<void> {
    this.#safely(() => this.#endClaim());
    if (this.#ended !== null) return;
    try {
      // Cancelling raises the epoch by one: only the worker that held the run last says how it ended.
      const ending = await this.#deps.ending(this.#run.id);
      if (!ending || ending.lease_epoch !== this.#run.lease_epoch + 1) return;
      // (So does a takeover; but who takes a run over ends it in other ways, or it has risen by two.)
      const byNobody = ending.status === 'cancelled' || ending.reason_code === 'job_failed';
      if (!byNobody) return;
      const endMs = this.#now();
      for (const { startMs, change } of this.#steps.values()) {
        this.#deps.emit(stepSpan(this.#run, change, 'failed', ending.reason_code, { startMs, endMs }));
      }
      this.#root(ending.status, ending.reason_code);
    } catch (error) {
      this.#deps.onError(error);
    }
  }

  #endClaim(): void {
    const endMs = this.#now();
    this.#endPause(endMs);
    this.#abort(endMs);
    const end = this.#ended;
    const outcome = end === null ? 'lost' : end.status === 'queued' ? 'released' : end.status;
    const period = { startMs: this.#run.claimed_at_ms, endMs };
    this.#deps.emit(claimSpan(this.#run, outcome, end?.reason_code ?? null, period));
  }

  #root(status: string, code: string | null): void {
    const end = { status, code, totals: this.#totals };
    const period = { startMs: this.#createdAt, endMs: this.#now() };
    this.#deps.emit(runSpan(this.#run, this.#parentSpanId, end, period));
  }

  /** Nothing for a call that was not under way here. */
  #endAttempt(change: ModelCallChange): void {
    const place = `${change.order}:${change.turn}`;
    const open = this.#calls.get(place);
    if (!open) return;
    this.#calls.delete(place);
    const { provider, model, attempt } = open.call;
    const period = { startMs: open.startMs, endMs: this.#now() };
    this.#deps.emit(modelSpan(this.#run, { ...change, provider, model, attempt }, ++this.#attempts, period));
  }

  /** What was under way in a step, or at all, was aborted; it may be made again. */
  #abort(endMs: number, order: number | null = null): void {
    for (const { call } of [...this.#calls.values()]) {
      if (order === null || call.order === order) this.#endAttempt({ ...call, error_code: 'aborted' });
    }
    for (const [place, { startMs, call }] of [...this.#tools]) {
      if (call.status === 'waiting' || (order !== null && call.order !== order)) continue;
      this.#tools.delete(place);
      this.#deps.emit(
        toolSpan(
          this.#run,
          call,
          ++this.#attempts,
          { status: 'started', code: 'aborted' },
          { startMs, endMs },
        ),
      );
    }
  }

  #tool(call: ToolCallChange, status: string, code: string | null, period: Period): void {
    // A checkpoint that is refused makes the journal name its calls again.
    const place = `${call.order}:${call.turn}:${call.index}`;
    if (this.#said.has(place)) return;
    this.#said.add(place);
    this.#deps.emit(toolSpan(this.#run, call, ++this.#attempts, { status, code }, period));
  }

  /** A pause begins, unless one has. */
  #pauses(order: number, code: string | null): void {
    this.#pause ??= { startMs: this.#now(), order, code };
  }

  #endPause(endMs: number): void {
    const pause = this.#pause;
    this.#pause = null;
    const shortest = SHORTEST_PAUSE_MS[pause?.code ? 'reason' : 'none'];
    if (!pause || endMs - pause.startMs < shortest) return;
    const period = { startMs: pause.startMs, endMs };
    this.#deps.emit(pauseSpan(this.#run, pause.order, ++this.#pauseCount, pause.code, period));
  }

  /** The database's time. */
  #now(): number {
    return this.#run.claimed_at_ms + (this.#deps.elapsed() - this.#elapsedAtClaim);
  }

  #safely(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.#deps.onError(error);
    }
  }
}

/** When a call began: it was measured in whole milliseconds, and not before its intent. */
function begun(
  open: { readonly startMs: number } | undefined,
  now: number,
  tookMs: number | undefined,
): number {
  if (tookMs === undefined) return open?.startMs ?? now;
  return Math.max(now - tookMs, open?.startMs ?? Number.NEGATIVE_INFINITY);
}
