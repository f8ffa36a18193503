/** One model call of a turn: journaled, timed, retried while that makes sense, and made of another model when one is down. */
import type { Logger } from 'pino';
import { type Clock, sleep } from '../../clock.ts';
import type { Ticket } from '../../db/rate-limits.ts';
import type { ModelCallChange } from '../../db/runs.ts';
import { ProviderError } from '../../providers/errors.ts';
import { callCost } from '../../providers/model-catalog.ts';
import type { ChatMessage, ModelAnswer, ToolDefinition } from '../../providers/models.ts';
import type { Metrics } from '../../telemetry/metrics.ts';
import { askPlace, HOLD_SLOT_MS, requestLength, takePlace, type Waiting } from './call-place.ts';
import type { UsableModel } from './credentials.ts';
import { ContextOverflow, RunFailure, RunMustWait, StepFailure } from './errors.ts';
import type { RunJournal } from './journal.ts';
import type { ModelChoice } from './model-choice.ts';
import type { RateLimiter } from './rate-limiter.ts';

const FIRST_DELAY_MS = 1_000;
const LONGEST_DELAY_MS = 60_000;
/** Short waits of one call that keep the slot, together; then the run gives it back. */
const HOLD_SLOT_TOTAL_MS = 30_000;
/** Tries of a call whose provider fails, rate limits not counted; fewer where another model can take its place. */
const MAX_FAILURES = 6;
const MAX_FAILURES_BEFORE_FALLBACK = 3;
/** A provider that names no pause, or none worth the name, is not asked again at once. */
const SHORTEST_PAUSE_MS = 100;

export type ModelCallDeps = {
  readonly clock: Clock;
  readonly metrics: Metrics;
  readonly log: Logger;
  /** Null: calls are made without regard to rate limits. */
  readonly limiter: RateLimiter | null;
  readonly random?: () => number;
};

export type ModelCall = {
  readonly order: number;
  readonly turn: number;
  readonly idempotencyKey: string;
  readonly workspaceId: string;
  /** Tries that were made of this call; null if its intent is not in the journal. */
  readonly triesBefore: number | null;
  /** Those of them that the provider failed. */
  readonly failuresBefore: number;
  /** From where it goes on waiting for its turn under a rate limit. */
  readonly ticketBefore: Ticket | null;
  /** Told of every try before it is made. */
  readonly onTry: (attempt: number, failures: number) => void;
  readonly messages: ChatMessage[];
  /** What was not sent because the conversation outgrew the window. */
  readonly leftOut: readonly string[];
  readonly tools: ToolDefinition[];
  readonly temperature: number;
  readonly maxTokens: number | null;
  /** Milliseconds that the run has left. */
  readonly msLeft: () => number;
};

/**
 * Makes the call. Its intent is committed before it is sent; its outcome is recorded and goes with the next flush.
 *
 * A model that stays down gives way to the next of `models`, in the same turn and the same row: after
 * MAX_FAILURES_BEFORE_FALLBACK tries, or at once when it asks for a longer pause than a slot is held for, answers what can't be
 * read, or does not exist for this key. A limit is waited for; what is wrong with the request, its content or the key is the
 * same for the next model, or somebody's to mend.
 *
 * Throws RunMustWait (a long rate limit: the run gives its slot back and keeps its turn), ContextOverflow (the row stays open: the
 * same turn can be asked again with fewer messages), StepFailure (another attempt of the step may help), RunFailure (nothing will),
 * RunLost, or the signal's reason.
 */
export async function callModel(
  deps: ModelCallDeps,
  journal: RunJournal,
  models: ModelChoice,
  call: ModelCall,
  signal: AbortSignal,
): Promise<ModelAnswer> {
  const random = deps.random ?? Math.random;
  const first = (call.triesBefore ?? 0) + 1;
  /** The tries that were made of models given up here: pauses begin again with the next one. */
  let ofOthers = 0;
  let model = models.current;
  let row = intent(call, model, first, call.failuresBefore);
  // The claim of a new run has journaled the intent of its first call; every other try is written here.
  if (call.triesBefore !== 0 || call.ticketBefore) {
    journal.modelCall(row);
    await journal.flush();
  }
  const wait: Waiting = { held: 0, heldForPlace: 0, ticket: call.ticketBefore, returns: false };
  for (;;) {
    const place = await takePlace(deps, journal, model, call, row, wait, signal);
    const started = performance.now();
    call.onTry(row.attempt, row.failures ?? 0);
    journal.attemptStarted(row);
    const sent = deps.limiter?.sent(model.limitKey, place, () => requestLength(call));
    try {
      const answer = await model.client.complete(
        {
          model: model.model,
          messages: call.messages,
          ...(call.tools.length > 0 ? { tools: call.tools } : {}),
          temperature: call.temperature,
          ...(call.maxTokens === null ? {} : { maxTokens: call.maxTokens }),
          idempotencyKey: call.idempotencyKey,
        },
        signal,
      );
      record(deps, journal, model, row, answer);
      sent?.answered(answer.limits, answer.usage);
      return answer;
    } catch (error) {
      sent?.failed();
      if (!(error instanceof ProviderError)) throw error;
      if (signal.aborted) throw signal.reason;
      const seconds = (performance.now() - started) / 1000;
      deps.metrics.modelCalls.finished(model.provider, model.model, error.code, seconds, 0, 0, 0);
      journal.attemptFailed(row, error.code);

      const failures = (row.failures ?? 0) + (error.kind === 'retry' ? 1 : 0);
      const failed = { ...row, failures, error_code: error.code, error: error.message };
      if (error.kind === 'context_overflow') {
        journal.modelCall(failed);
        call.onTry(row.attempt, failures);
        throw new ContextOverflow(said(error, call));
      }
      const tries = row.attempt - Math.max(first, ofOthers + 1);
      const floor = Math.min(LONGEST_DELAY_MS, SHORTEST_PAUSE_MS * 2 ** Math.min(tries, 20));
      const delay =
        error.retryAfterMs === null
          ? backoff(row.attempt - ofOthers, random)
          : Math.max(error.retryAfterMs, floor);
      if (error.kind === 'rate_limited') await sent?.refused(error.limits, delay);

      if (isDown(error) && models.hasNext) {
        const patient =
          error.kind === 'retry' && error.code !== 'bad_response' && failures < MAX_FAILURES_BEFORE_FALLBACK;
        if (!patient || delay > HOLD_SLOT_MS || delay > call.msLeft()) {
          const next = models.fallBack();
          ofOthers = row.attempt;
          row = fallBack(deps, call, row, { from: model, to: next, error, failures });
          model = next;
          wait.ticket = null;
          wait.returns = false;
          journal.modelCall(row);
          await journal.flush();
          // said once: the row adds it to what it has
          row = intent(call, model, row.attempt, 0, error);
          journal.modelCall(row);
          continue;
        }
      }
      const again =
        error.kind === 'rate_limited' ||
        (error.kind === 'retry' && error.code !== 'bad_response' && failures < MAX_FAILURES);
      if (!again) {
        journal.modelCall({ ...failed, status: 'failed' });
        throw failure(error, model, call);
      }
      if (delay > call.msLeft()) {
        journal.modelCall({ ...failed, status: 'failed' });
        throw outOfTime(error.message);
      }
      wait.returns = error.kind === 'rate_limited';
      // its place was for nothing
      wait.ticket = null;
      wait.held += delay;
      if (delay > HOLD_SLOT_MS || wait.held > HOLD_SLOT_TOTAL_MS) {
        // It keeps its turn: when it wakes it goes before those that have not asked yet.
        const place = wait.returns ? await askPlace(deps, model, call, wait) : null;
        const waitMs = Math.max(delay, place?.waitMs ?? 0);
        journal.modelCall({
          ...failed,
          status: 'waiting',
          ...(place ? { attempt: row.attempt + 1, ticket_at: place.ticket.at, ticket_kind: place.kind } : {}),
        });
        throw new RunMustWait(
          error.code,
          `${error.message} The call is made again after ${Math.ceil(waitMs / 1000)} s.`,
          waitMs,
        );
      }
      row = { ...failed, attempt: row.attempt + 1, status: 'started' };
      journal.modelCall(row);
      await journal.flush();
      await sleep(deps.clock, delay, signal);
    }
  }
}

/** The call's row before a try of it. */
function intent(
  call: ModelCall,
  model: UsableModel,
  attempt: number,
  failures: number,
  error: ProviderError | null = null,
): ModelCallChange {
  return {
    order: call.order,
    turn: call.turn,
    provider: model.provider,
    model: model.model,
    model_id: model.modelId,
    credential_source: model.credentialSource,
    status: 'started',
    attempt,
    failures,
    ...(call.leftOut.length > 0 ? { left_out: call.leftOut } : {}),
    ...(error ? { error_code: error.code, error: error.message } : {}),
  };
}

/** The row with the next model: its failures start again, the tries go on. */
function fallBack(
  deps: ModelCallDeps,
  call: ModelCall,
  row: ModelCallChange,
  {
    from,
    to,
    error,
    failures,
  }: { from: UsableModel; to: UsableModel; error: ProviderError; failures: number },
): ModelCallChange {
  const failed = `${from.provider}/${from.model}`;
  deps.log.warn(
    {
      event: 'model_fallback',
      workspace_id: call.workspaceId,
      from: failed,
      to: `${to.provider}/${to.model}`,
      code: error.code,
    },
    'a model is down: the run goes on with the next one of its agent',
  );
  deps.metrics.modelCalls.fellBack(from.provider, error.code);
  return {
    ...intent(call, to, row.attempt + 1, 0, error),
    fallback_reason: `${failed}: ${error.code}${failures > 1 ? ` (${failures} times)` : ''}. ${error.message}`,
  };
}

/** Writes an answer down. */
function record(
  deps: ModelCallDeps,
  journal: RunJournal,
  model: UsableModel,
  row: ModelCallChange,
  answer: ModelAnswer,
): void {
  const cost = model.prices ? Math.round(callCost(model.prices, answer.usage) * 1e6) : 0;
  const { promptTokens, completionTokens, cachedTokens } = answer.usage;
  journal.modelCall({
    ...row,
    status: 'completed',
    error_code: null,
    error: null,
    response: {
      content: answer.content,
      tool_calls: answer.toolCalls,
      refusal: answer.refusal,
      response_id: answer.responseId,
      model: answer.model,
      usage_reported: answer.usage.reported,
    },
    finish_reason: answer.finishReason,
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    cached_tokens: cachedTokens,
    cost_micros: cost,
    latency_ms: Math.round(answer.latencyMs),
  });
  deps.metrics.modelCalls.finished(
    model.provider,
    model.model,
    'completed',
    answer.latencyMs / 1000,
    promptTokens,
    completionTokens,
    cost,
  );
}

/** Whether a model can't be used by anybody who has this key, as far as one call can tell. */
function isDown(error: ProviderError): boolean {
  return error.kind === 'retry' || error.code === 'model_not_found';
}

function backoff(attempt: number, random: () => number): number {
  return Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** (attempt - 1)) * (0.5 + random() / 2);
}

function said(error: ProviderError, call: ModelCall): string {
  return `Step ${call.order}, turn ${call.turn}: ${error.message} ${error.nextStep}`;
}

function failure(error: ProviderError, model: UsableModel, call: ModelCall): Error {
  const sentence = `${error.message} ${error.nextStep}`;
  switch (error.kind) {
    case 'credential':
      return new RunFailure(error.code, `${model.credentialName}: ${sentence}`, { cause: error });
    case 'retry':
    case 'rate_limited':
      return new StepFailure(error.code, sentence, error.code === 'bad_response');
    default:
      return new StepFailure(error.code, said(error, call), false);
  }
}

/** The run's time would be over before the provider may be asked again. */
function outOfTime(why: string): RunFailure {
  return new RunFailure(
    'timeout',
    `The provider can't be asked again within the run's time limit: ${why} Raise timeout_seconds, or use another model.`,
  );
}
