/**
 * A run's journal as its worker writes it: outcomes collect, and go to the database with the next intent.
 *
 * The rule that the rest of this folder keeps: record what happened, record what is about to happen, flush,
 * and only then do it. So an outcome and the intent after it are one transaction, and nothing paid or
 * visible happens without a row that says so.
 */
import type {
  Checkpoint,
  CheckpointResult,
  ClaimedRun,
  MessageChange,
  ModelCallChange,
  StepChange,
  ToolCallChange,
} from '../../db/runs.ts';

/** The run is no longer this worker's: it was cancelled, deleted, has ended, or another worker has it. */
export class RunLost extends Error {
  override readonly name = 'RunLost';
  constructor() {
    super('The run is no longer this worker’s.');
  }
}

/** Writes one checkpoint; the database decides whether it is applied. */
export type CheckpointWriter = (checkpoint: Checkpoint) => Promise<CheckpointResult>;

export class RunJournal {
  readonly #write: CheckpointWriter;
  #next: Checkpoint;
  #dirty = false;

  constructor(run: Pick<ClaimedRun, 'id' | 'lease_epoch' | 'journal_seq'>, write: CheckpointWriter) {
    this.#write = write;
    this.#next = empty(run.id, run.lease_epoch, run.journal_seq, 1);
  }

  /** The state of a step. Later calls for the same step in one flush add to earlier ones. */
  step(change: StepChange): void {
    this.#next.current_step = change.order;
    merge(this.#next.steps, change, (s) => s.order === change.order);
    this.#dirty = true;
  }

  /** The state of a model call: started before it is made, then its outcome. Adds its tokens to the run. */
  modelCall(change: ModelCallChange): void {
    merge(this.#next.llm, change, (c) => c.order === change.order && c.turn === change.turn);
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
  }

  /** The state of a tool call. */
  toolCall(change: ToolCallChange): void {
    merge(
      this.#next.tools,
      change,
      (c) => c.order === change.order && c.turn === change.turn && c.index === change.index,
    );
    if (change.status === 'completed' || change.status === 'failed') {
      this.#next.tool_calls += 1;
      this.#usage('tool_call', 1, 0, {
        key: `tool:${this.#next.run}:${change.order}:${change.turn}:${change.index}`,
        tool: change.tool,
      });
    }
    this.#dirty = true;
  }

  /** A message that appears when, and only when, this flush commits. */
  message(change: MessageChange): void {
    this.#next.messages.push(change);
    this.#dirty = true;
  }

  /** The state in which the worker leaves the run. Nothing may follow but a flush. */
  end(end: NonNullable<Checkpoint['end']>): void {
    this.#next.end = end;
    if (end.status === 'completed' || end.status === 'failed') {
      this.#usage('task_run', 1, 0, { key: `run:${this.#next.run}`, status: end.status });
    }
    this.#dirty = true;
  }

  /** Commits what was recorded. Does nothing if nothing was. Throws RunLost if the run is not ours any more. */
  async flush(): Promise<void> {
    if (!this.#dirty) return;
    const checkpoint = this.#next;
    this.#dirty = false;
    this.#next = empty(checkpoint.run, checkpoint.epoch, checkpoint.seq + 1, checkpoint.current_step);
    const result = await this.#write(checkpoint);
    if (!result.applied) throw new RunLost();
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

function empty(run: string, epoch: number, seq: number, step: number): Checkpoint {
  return {
    run,
    epoch,
    seq,
    current_step: step,
    turns: 0,
    tool_calls: 0,
    prompt_tokens: 0,
    completion_tokens: 0,
    cost_micros: 0,
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
