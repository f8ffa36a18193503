/** One model call, with a provider that answers what a test says. */
import { describe, expect, test } from 'vitest';
import type { Checkpoint } from '../../../src/db/runs.ts';
import type { UsableModel } from '../../../src/pipelines/agent/credentials.ts';
import {
  ContextOverflow,
  RunFailure,
  RunMustWait,
  StepFailure,
} from '../../../src/pipelines/agent/errors.ts';
import { RunJournal } from '../../../src/pipelines/agent/journal.ts';
import { callModel } from '../../../src/pipelines/agent/model-call.ts';
import { ModelChoice } from '../../../src/pipelines/agent/model-choice.ts';
import { ProviderError, type ProviderErrorDetails } from '../../../src/providers/errors.ts';
import type { ModelAnswer } from '../../../src/providers/models.ts';
import { silentLogger } from '../../../src/telemetry/logger.ts';
import { createMetrics } from '../../../src/telemetry/metrics.ts';
import { handClock } from '../../support/hand-clock.ts';
import { claimedRun } from './claimed-run.ts';

const answer: ModelAnswer = {
  content: 'answer',
  toolCalls: [],
  refusal: null,
  finishReason: 'stop',
  usage: { promptTokens: 1, completionTokens: 1, cachedTokens: 0, reported: true },
  model: 'm',
  responseId: null,
  latencyMs: 1,
  limits: null,
};
const overflow = { kind: 'context_overflow', code: 'context_length_exceeded', message: 'Too long.' } as const;
const down = { kind: 'retry', code: 'overloaded', message: 'Overloaded.', retryAfterMs: 1 } as const;

function usable(name: string, complete: () => ModelAnswer): UsableModel {
  return {
    client: { complete: async () => complete() },
    provider: 'openai',
    model: name,
    modelId: null,
    limitKey: name,
    contextWindow: null,
    credentialSource: 'agent',
    credentialName: 'a key',
    prices: null,
  };
}

/** Calls models that fail with these in turn, then answer. */
function setup(failures: Record<string, readonly ProviderErrorDetails[]>, msLeft = 60_000) {
  const clock = handClock();
  const written: Checkpoint[] = [];
  const journal = new RunJournal(claimedRun({ lease_epoch: 2, steps: [] }), async (checkpoint) => {
    written.push(structuredClone(checkpoint));
    return { applied: true };
  });
  const asked: string[] = [];
  const [first, ...rest] = Object.entries(failures).map(([name, list]) => {
    const left = [...list];
    return usable(name, () => {
      asked.push(name);
      const next = left.shift();
      if (next) throw new ProviderError(next);
      return answer;
    });
  });
  const models = new ModelChoice([first as UsableModel, ...rest]);
  const tries: number[] = [];
  const ask = () =>
    callModel(
      { clock, metrics: createMetrics(), log: silentLogger(), limiter: null, random: () => 0 },
      journal,
      models,
      {
        order: 1,
        turn: 1,
        idempotencyKey: 'k',
        workspaceId: 'w',
        triesBefore: tries.at(-1) ?? null,
        failuresBefore: 0,
        ticketBefore: null,
        onTry: (attempt) => {
          tries.push(attempt);
        },
        messages: [{ role: 'user', content: 'x' }],
        leftOut: [],
        tools: [],
        temperature: 0,
        maxTokens: null,
        msLeft: () => msLeft,
      },
      new AbortController().signal,
    );
  /** The row as the last checkpoint has it. */
  const row = async () => {
    await journal.flush();
    return written.at(-1)?.llm[0];
  };
  /** Lets the call go through its short pauses. */
  const through = async (call: Promise<ModelAnswer>) => {
    let settled = false;
    const outcome = call
      .then(
        (value) => value,
        (error: unknown) => error,
      )
      .finally(() => {
        settled = true;
      });
    while (!settled) await clock.advance(1_000);
    return outcome;
  };
  return { ask, row, through, asked, models, clock };
}

describe('a conversation that is too long', () => {
  test('is no failure of its call: the row stays open, says why, and the same turn can be asked again', async () => {
    const { ask, row } = setup({ m: [overflow] });
    const error = await ask().catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(ContextOverflow);
    expect(error).toBeInstanceOf(StepFailure);
    expect(error).toMatchObject({ code: 'context_length_exceeded', retryable: false });
    expect(await row()).toMatchObject({
      status: 'started',
      attempt: 1,
      error_code: 'context_length_exceeded',
    });
    await ask();
    expect(await row()).toMatchObject({ status: 'completed', attempt: 2, error_code: null });
  });

  test('is not asked of another model', async () => {
    const { ask, asked } = setup({ m: [overflow], n: [] });
    await expect(ask()).rejects.toBeInstanceOf(ContextOverflow);
    expect(asked).toEqual(['m']);
  });
});

describe('a model that is down', () => {
  test('is given up sooner where another can take its place', async () => {
    const { ask, asked, through } = setup({ m: Array(9).fill(down), n: Array(9).fill(down) });
    expect(await through(ask())).toBeInstanceOf(StepFailure);
    expect(asked.join('')).toBe('mmmnnnnnn');
  });

  test('is given up rather than waited for beyond the time that the run has left', async () => {
    const later = { ...down, retryAfterMs: 4_000 };
    const { ask, asked } = setup({ m: [later], n: [] }, 3_000);
    await ask();
    expect(asked).toEqual(['m', 'n']);
    const alone = setup({ m: [later] }, 3_000);
    await expect(alone.ask()).rejects.toBeInstanceOf(RunFailure);
  });

  test('keeps the run waiting without a slot only where no other can take its place', async () => {
    const later = { ...down, retryAfterMs: 60_000 };
    const { ask, asked } = setup({ m: [later], n: [later] }, 600_000);
    await expect(ask()).rejects.toBeInstanceOf(RunMustWait);
    expect(asked).toEqual(['m', 'n']);
  });

  test.each([
    ['invalid_request', { kind: 'permanent', code: 'invalid_request', message: 'No.' }],
    ['not_found', { kind: 'permanent', code: 'not_found', message: 'No.' }],
    ['content_filter', { kind: 'permanent', code: 'content_filter', message: 'No.' }],
    ['insufficient_quota', { kind: 'credential', code: 'insufficient_quota', message: 'No.' }],
  ] as const)('is not one that answers %s', async (_, failure) => {
    const { ask, asked } = setup({ m: [failure], n: [] });
    await expect(ask()).rejects.toMatchObject({ code: failure.code });
    expect(asked).toEqual(['m']);
  });
});
