/**
 * A run's journal as its worker writes it: outcomes collect, and go to the database with the next intent.
 *
 * The rule that the rest of this folder keeps: record what happened, record what is about to happen, flush,
 * and only then do it. So an outcome and the intent after it are one transaction, and nothing paid or
 * visible happens without a row that says so.
 */
import type {
  CallSpend,
  Checkpoint,
  CheckpointResult,
  ClaimedRun,
  MessageChange,
  ModelCallChange,
  StepChange,
  ToolCallChange,
} from '../../db/runs.ts';
import { callKey } from './call-key.ts';
import type { PaidEmbedding } from './query-embedding.ts';

/** The run is no longer this worker's: it was cancelled, deleted, has ended, or another worker has it. */
export class RunLost extends Error {
  override readonly name = 'RunLost';
  constructor() {
    super('The run is no longer this worker’s.');
  }
}

/** The database refused a checkpoint for what is in it; nothing of it was written, and the run can still be ended. */
export class JournalRefused extends Error {
  override readonly name = 'JournalRefused';
  constructor(cause: unknown) {
    super(
      `The database refused what the run wrote: ${cause instanceof Error ? cause.message : String(cause)}`,
      { cause },
    );
  }
}

/** Writes one checkpoint; the database decides whether it is applied. */
export type CheckpointWriter = (checkpoint: Checkpoint) => Promise<CheckpointResult>;

/** What a run has used since it was first started. Cost in millionths of a US dollar. */
export type RunTotals = { turns: number; tool_calls: number; tokens: number; cost_micros: number };

/** Sees what is recorded, and what became of it. It must not throw. */
export type JournalObserver = {
  step(change: StepChange): void;
  modelCall(change: ModelCallChange): void;
  attemptStarted(call: ModelCallChange): void;
  attemptFailed(call: ModelCallChange, code: string): void;
  toolCall(change: ToolCallChange): void;
  end(end: NonNullable<Checkpoint['end']>): void;
  /** Everything so far is in the database; what the run has used by now. */
  committed(totals: Readonly<RunTotals>): void;
  /** Nothing since the last commit is. */
  refused(): void;
};

type JournaledRun = Pick<
  ClaimedRun,
  | 'id'
  | 'lease_epoch'
  | 'journal_seq'
  | 'steps'
  | 'journal'
  | 'turns'
  | 'tool_calls'
  | 'prompt_tokens'
  | 'completion_tokens'
  | 'cost_micros'
>;

export class RunJournal {
  readonly #write: CheckpointWriter;
  readonly #observer: JournalObserver | null;
  readonly #totals: RunTotals;
  #activeSince = performance.now();
  #next: Checkpoint;
  #dirty = false;
  /** A checkpoint was refused before: the next one that is, is given up whole. */
  #refused = false;
  /** Rows that say started or waiting, by their place; a run that ends closes them. */
  readonly #openSteps = new Map<number, StepChange>();
  readonly #openCalls = new Map<string, ModelCallChange>();
  readonly #openTools = new Map<string, ToolCallChange>();

  constructor(run: JournaledRun, write: CheckpointWriter, observer: JournalObserver | null = null) {
    this.#write = write;
    this.#observer = observer;
    this.#totals = {
      turns: run.turns,
      tool_calls: run.tool_calls,
      tokens: run.prompt_tokens + run.completion_tokens,
      cost_micros: run.cost_micros,
    };
    this.#next = empty(run.id, run.lease_epoch, run.journal_seq, 1);
    this.#adopt(run);
  }

  /** What the run has used so far, with what is recorded and not yet committed. */
  get totals(): Readonly<RunTotals> {
    return this.#totals;
  }

  /** The state of a step. Later calls for the same step in one flush add to earlier ones. */
  step(change: StepChange): void {
    this.#next.current_step = change.order;
    if (change.status === 'running') this.#openSteps.set(change.order, change);
    else {
      this.#openSteps.delete(change.order);
      this.#next.progress = true;
    }
    merge(this.#next.steps, change, (s) => s.order === change.order);
    this.#dirty = true;
    this.#observer?.step(change);
  }

  /** The state of a model call: started before it is made, then its outcome. Adds its tokens to the run. */
  modelCall(change: ModelCallChange): void {
    const place = `${change.order}:${change.turn}`;
    if (isOpen(change.status)) this.#openCalls.set(place, change);
    else this.#openCalls.delete(place);
    if (change.status === 'completed') this.#next.progress = true;
    merge(this.#next.llm, change, (c) => c.order === change.order && c.turn === change.turn);
    if (change.status === 'completed' || change.status === 'failed') {
      const made = change.status === 'completed';
      const tokens = (change.prompt_tokens ?? 0) + (change.completion_tokens ?? 0);
      this.#spend(callKey(this.#next.run, change.order, change.turn), {
        turns: made ? 1 : 0,
        tool_calls: 0,
        tokens: made ? tokens : 0,
        cost_micros: made ? (change.cost_micros ?? 0) : 0,
      });
    }
    if (change.status === 'completed') {
      this.#next.turns += 1;
      this.#next.prompt_tokens += change.prompt_tokens ?? 0;
      this.#next.completion_tokens += change.completion_tokens ?? 0;
      this.#next.cost_micros += change.cost_micros ?? 0;
      this.#usage(
        'tokens',
        (change.prompt_tokens ?? 0) + (change.completion_tokens ?? 0),
        change.cost_micros ?? 0,
        {
          key: `llm:${this.#next.run}:${change.order}:${change.turn}`,
          provider: change.provider,
          model: change.model,
          prompt_tokens: change.prompt_tokens ?? 0,
          completion_tokens: change.completion_tokens ?? 0,
          cached_tokens: change.cached_tokens ?? 0,
        },
      );
    }
    this.#dirty = true;
    this.#observer?.modelCall(change);
  }

  /** An attempt of a model call begins, for those who look on; the journal has its intent. */
  attemptStarted(call: ModelCallChange): void {
    this.#observer?.attemptStarted(call);
  }

  /** It failed, for those who look on; what becomes of the call is recorded apart. */
  attemptFailed(call: ModelCallChange, code: string): void {
    this.#observer?.attemptFailed(call, code);
  }

  /** The state of a tool call. */
  toolCall(change: ToolCallChange): void {
    const place = `${change.order}:${change.turn}:${change.index}`;
    if (isOpen(change.status)) this.#openTools.set(place, change);
    else {
      this.#openTools.delete(place);
      this.#next.progress = true;
    }
    merge(
      this.#next.tools,
      change,
      (c) => c.order === change.order && c.turn === change.turn && c.index === change.index,
    );
    if (!isOpen(change.status)) {
      // a call whose outcome nobody knows may have been made
      const counts = wasMade(change) || change.status === 'unknown' ? 1 : 0;
      this.#spend(callKey(this.#next.run, change.order, change.turn, change.index), {
        turns: 0,
        tool_calls: counts,
        tokens: 0,
        cost_micros: 0,
      });
      this.#next.tool_calls += counts;
    }
    if (wasMade(change)) {
      this.#usage('tool_call', 1, 0, {
        key: `tool:${this.#next.run}:${change.order}:${change.turn}:${change.index}`,
        tool: change.tool,
      });
    }
    this.#dirty = true;
    this.#observer?.toolCall(change);
  }

  /** What embedding a query has cost: booked with what it was made for, a step's context (turn 0) or a tool call. */
  embedding(place: { order: number; turn: number; index: number }, paid: PaidEmbedding): void {
    const { order, turn, index } = place;
    this.#spend(callKey(this.#next.run, order, turn, index), {
      turns: 0,
      tool_calls: 0,
      tokens: 0,
      cost_micros: paid.costMicros,
    });
    this.#next.cost_micros += paid.costMicros;
    this.#usage('embedding_tokens', paid.tokens, paid.costMicros, {
      key: `embed:${this.#next.run}:${order}:${turn}:${index}:${paid.model}`,
      provider: paid.provider,
      model: paid.model,
    });
    this.#dirty = true;
  }

  /** A message that appears when, and only when, this flush commits. */
  message(change: MessageChange): void {
    this.#next.messages.push(change);
    this.#dirty = true;
  }

  /**
   * The state in which the worker leaves the run. Nothing may follow but a flush.
   *
   * @param getsOn that the run is left for a good reason, which is no sign of a run that ruins its workers
   */
  end(end: NonNullable<Checkpoint['end']>, getsOn = true): void {
    this.#next.end = end;
    if (getsOn) this.#next.progress = true;
    if (end.status === 'completed' || end.status === 'failed') {
      this.#close(end.reason_code, end.reason);
      this.#usage('task_run', 1, 0, { key: `run:${this.#next.run}`, status: end.status });
    }
    this.#dirty = true;
    this.#observer?.end(end);
  }

  /** Commits what was recorded. Does nothing if nothing was. Throws RunLost if the run is not ours any more. */
  async flush(): Promise<void> {
    if (!this.#dirty) return;
    const checkpoint = this.#next;
    const now = performance.now();
    checkpoint.active_ms = Math.round(now - this.#activeSince);
    this.#activeSince = now;
    this.#dirty = false;
    this.#next = empty(checkpoint.run, checkpoint.epoch, checkpoint.seq + 1, checkpoint.current_step);
    let result: CheckpointResult;
    try {
      result = await this.#write(checkpoint);
    } catch (error) {
      // Not applied: the next checkpoint takes its place, and what it settled is still open.
      for (const { context: _context, result: _result, ...step } of checkpoint.steps) {
        this.#openSteps.set(step.order, { ...step, status: 'running' });
      }
      for (const call of checkpoint.llm.filter((one) => one.status !== 'completed' || this.#refused)) {
        this.#openCalls.set(
          `${call.order}:${call.turn}`,
          unmade(call.order, call.turn, call.attempt, call.failures ?? 0),
        );
      }
      for (const call of checkpoint.tools) {
        const { result: _, ...open } = call;
        this.#openTools.set(`${call.order}:${call.turn}:${call.index}`, { ...open, status: 'started' });
      }
      this.#next = this.#refused ? bare(checkpoint) : salvage(checkpoint);
      this.#dirty = true;
      this.#refused = true;
      this.#observer?.refused();
      throw new JournalRefused(error);
    }
    if (!result.applied) throw new RunLost();
    this.#observer?.committed(this.#totals);
  }

  /** Takes over what the claim, or an earlier worker, has left open. */
  #adopt(run: Pick<ClaimedRun, 'lease_epoch' | 'steps' | 'journal'>): void {
    const [first] = run.steps ?? [];
    if (run.lease_epoch === 1 && first) {
      this.#openSteps.set(1, {
        order: 1,
        step_id: first.id,
        name: first.name,
        attempt: 1,
        status: 'running',
      });
      this.#openCalls.set('1:1', unmade(1, 1, 1, 0));
    }
    for (const step of run.journal.steps) {
      const plan = run.steps?.find((s) => s.order === step.step_order);
      if (step.status === 'running') {
        this.#openSteps.set(step.step_order, {
          order: step.step_order,
          step_id: plan?.id ?? null,
          name: plan?.name ?? '',
          attempt: step.attempt,
          status: 'running',
        });
      }
    }
    for (const call of run.journal.llm) {
      if (isOpen(call.status)) {
        this.#openCalls.set(
          `${call.step_order}:${call.turn}`,
          unmade(call.step_order, call.turn, call.attempt, call.failures ?? 0),
        );
      }
    }
    for (const call of run.journal.tools) {
      if (isOpen(call.status)) {
        this.#openTools.set(`${call.step_order}:${call.turn}:${call.call_index}`, {
          order: call.step_order,
          turn: call.turn,
          index: call.call_index,
          provider_call_id: call.provider_call_id,
          tool: call.tool_name,
          source: call.source,
          effect: call.effect,
          arguments: call.arguments,
          status: call.status,
        });
      }
    }
  }

  /** Nothing of a run that has ended says that it is still going on. */
  #close(code: string | null, reason: string | null): void {
    const why = { error_code: code, error: reason };
    for (const call of this.#openCalls.values()) this.modelCall({ ...call, ...why, status: 'failed' });
    for (const call of this.#openTools.values()) {
      const unknown = call.status === 'started' && call.effect === 'write';
      this.toolCall({ ...call, ...why, status: unknown ? 'unknown' : 'failed' });
    }
    for (const step of this.#openSteps.values()) {
      this.step({
        ...step,
        status: 'failed',
        reason_code: step.reason_code ?? code,
        error: step.error ?? reason,
      });
    }
  }

  #spend(key: string, used: Omit<CallSpend, 'key'>): void {
    this.#totals.turns += used.turns;
    this.#totals.tool_calls += used.tool_calls;
    this.#totals.tokens += used.tokens;
    this.#totals.cost_micros += used.cost_micros;
    this.#next.spend.push({ key, ...used });
  }

  #usage(
    metric: string,
    quantity: number,
    cost: number,
    dimensions: { key: string } & Record<string, unknown>,
  ): void {
    const { key, ...rest } = dimensions;
    if (quantity > 0) this.#next.usage.push({ metric, quantity, cost_micros: cost, key, dimensions: rest });
  }
}

/** The next checkpoint after one that was not applied. */
function bare(checkpoint: Checkpoint): Checkpoint {
  return empty(checkpoint.run, checkpoint.epoch, checkpoint.seq, checkpoint.current_step);
}

/** What was paid stays on the books, whatever the database did not like about the rest: the texts are left out. */
function salvage(checkpoint: Checkpoint): Checkpoint {
  const { turns, prompt_tokens, completion_tokens, cost_micros, usage, llm } = checkpoint;
  return {
    ...bare(checkpoint),
    turns,
    prompt_tokens,
    completion_tokens,
    cost_micros,
    active_ms: checkpoint.active_ms,
    spend: checkpoint.spend.filter((call) => call.turns > 0 || call.cost_micros > 0),
    usage: usage.filter((event) => event.metric === 'tokens' || event.metric === 'embedding_tokens'),
    llm: llm.filter((call) => call.status === 'completed').map(({ response: _, ...call }) => call),
  };
}

/** A call that was refused before it was made has no duration. */
function wasMade(change: ToolCallChange): boolean {
  return (
    change.status === 'completed' || (change.status === 'failed' && typeof change.duration_ms === 'number')
  );
}

function isOpen(status: string): boolean {
  return status === 'started' || status === 'waiting';
}

/** A journaled call of which only the intent is known. */
function unmade(order: number, turn: number, attempt: number, failures: number): ModelCallChange {
  return {
    order,
    turn,
    provider: null,
    model: null,
    model_id: null,
    credential_source: null,
    status: 'started',
    attempt,
    failures,
  };
}

function empty(run: string, epoch: number, seq: number, step: number): Checkpoint {
  return {
    run,
    epoch,
    seq,
    progress: false,
    current_step: step,
    turns: 0,
    tool_calls: 0,
    prompt_tokens: 0,
    completion_tokens: 0,
    cost_micros: 0,
    active_ms: 0,
    spend: [],
    steps: [],
    llm: [],
    tools: [],
    usage: [],
    messages: [],
    end: null,
  };
}

function merge<T extends object>(list: T[], change: T, same: (item: T) => boolean): void {
  const index = list.findIndex(same);
  if (index < 0) list.push(change);
  else list[index] = { ...(list[index] as T), ...change };
}
