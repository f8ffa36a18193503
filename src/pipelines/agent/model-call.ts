/** One model call of a turn: journaled, timed, retried while that makes sense. */
import { type Clock, sleep } from '../../clock.ts';
import type { ModelCallChange } from '../../db/runs.ts';
import { ProviderError } from '../../providers/errors.ts';
import { callCost } from '../../providers/model-catalog.ts';
import type { ChatMessage, ModelAnswer, ToolDefinition } from '../../providers/models.ts';
import type { Metrics } from '../../telemetry/metrics.ts';
import type { UsableModel } from './credentials.ts';
import { RunFailure, RunMustWait, StepFailure } from './errors.ts';
import type { RunJournal } from './journal.ts';

/** Waits up to this long keep the slot; longer ones give it back. */
const HOLD_SLOT_MS = 5_000;
const FIRST_DELAY_MS = 1_000;
const LONGEST_DELAY_MS = 60_000;
/** Short waits of one call that keep the slot, together; then the run gives it back. */
const HOLD_SLOT_TOTAL_MS = 30_000;
/** Tries of a call whose provider fails, rate limits not counted. */
const MAX_FAILURES = 6;
/** A provider that names no pause, or none worth the name, is not asked again at once. */
const SHORTEST_PAUSE_MS = 100;

export type ModelCallDeps = {
  readonly clock: Clock;
  readonly metrics: Metrics;
  readonly random?: () => number;
};

export type ModelCall = {
  readonly order: number;
  readonly turn: number;
  readonly idempotencyKey: string;
  /** Tries that were made of this call; null if its intent is not in the journal. */
  readonly triesBefore: number | null;
  /** Those of them that the provider failed. */
  readonly failuresBefore: number;
  /** Told of every try before it is made. */
  readonly onTry: (attempt: number, failures: number) => void;
  readonly messages: ChatMessage[];
  readonly tools: ToolDefinition[];
  readonly temperature: number;
  readonly maxTokens: number | null;
  /** Milliseconds that the run has left. */
  readonly msLeft: () => number;
};

/**
 * Makes the call. Its intent is committed before it is sent; its outcome is recorded and goes with the next flush.
 *
 * Throws RunMustWait (a long rate limit: the run gives its slot back), StepFailure (another attempt of the step
 * may help), RunFailure (nothing will), RunLost, or the signal's reason.
 */
export async function callModel(
  deps: ModelCallDeps,
  journal: RunJournal,
  model: UsableModel,
  call: ModelCall,
  signal: AbortSignal,
): Promise<ModelAnswer> {
  const random = deps.random ?? Math.random;
  const base: ModelCallChange = {
    order: call.order,
    turn: call.turn,
    provider: model.provider,
    model: model.model,
    model_id: model.modelId,
    credential_source: model.credentialSource,
    status: 'started',
    attempt: (call.triesBefore ?? 0) + 1,
    failures: call.failuresBefore,
  };
  // The claim of a new run has journaled the intent of its first call; every other try is written here.
  if (call.triesBefore !== 0) {
    journal.modelCall(base);
    await journal.flush();
  }
  let failures = call.failuresBefore;
  let held = 0;
  for (let attempt = base.attempt; ; attempt++) {
    const started = performance.now();
    call.onTry(attempt, failures);
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
      const cost = model.prices ? Math.round(callCost(model.prices, answer.usage) * 1e6) : 0;
      const { promptTokens, completionTokens, cachedTokens } = answer.usage;
      journal.modelCall({
        ...base,
        status: 'completed',
        attempt,
        failures,
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
      return answer;
    } catch (error) {
      if (!(error instanceof ProviderError)) throw error;
      if (signal.aborted) throw signal.reason;
      deps.metrics.modelCalls.finished(
        model.provider,
        model.model,
        error.code,
        (performance.now() - started) / 1000,
        0,
        0,
        0,
      );
      if (error.kind === 'retry') failures++;
      const again =
        error.kind === 'rate_limited' ||
        (error.kind === 'retry' && error.code !== 'bad_response' && failures < MAX_FAILURES);
      const failed = { ...base, attempt, failures, error_code: error.code, error: error.message };
      if (!again) {
        journal.modelCall({ ...failed, status: 'failed' });
        throw failure(error, model, call);
      }
      const tries = attempt - base.attempt;
      const floor = Math.min(LONGEST_DELAY_MS, SHORTEST_PAUSE_MS * 2 ** Math.min(tries, 20));
      const delay =
        error.retryAfterMs === null ? backoff(attempt, random) : Math.max(error.retryAfterMs, floor);
      if (delay > call.msLeft()) {
        journal.modelCall({ ...failed, status: 'failed' });
        throw new RunFailure(
          'timeout',
          `The provider can't be asked again within the run's time limit: ${error.message} Raise timeout_seconds, or use another model.`,
        );
      }
      held += delay;
      if (delay > HOLD_SLOT_MS || held > HOLD_SLOT_TOTAL_MS) {
        journal.modelCall({ ...failed, status: 'waiting' });
        throw new RunMustWait(
          error.code,
          `${error.message} The call is made again after ${Math.ceil(delay / 1000)} s.`,
          delay,
        );
      }
      journal.modelCall({ ...failed, attempt: attempt + 1, status: 'started' });
      await journal.flush();
      await sleep(deps.clock, delay, signal);
    }
  }
}

function backoff(attempt: number, random: () => number): number {
  return Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** (attempt - 1)) * (0.5 + random() / 2);
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
      return new StepFailure(error.code, `Step ${call.order}, turn ${call.turn}: ${sentence}`, false);
  }
}
