/** One step: a conversation of turns until the model answers without calling a tool. */

import { type Clock, sleep } from '../../clock.ts';
import type { Queryable } from '../../db/database.ts';
import type { Chunk } from '../../db/knowledge.ts';
import { isStatementTimeout } from '../../db/retry.ts';
import type { ApprovalPolicy, ClaimedAgent, ClaimedRun, StepPlan } from '../../db/runs.ts';
import { JobAborted } from '../../queue/errors.ts';
import { askModel } from './ask.ts';
import type { RunBudgets } from './budgets.ts';
import { buildContext, type StepContext, type StepResult, stepRequest } from './context.ts';
import { RunFailure, RunMustWait, StepFailure } from './errors.ts';
import type { RunJournal } from './journal.ts';
import type { AgentMemory, Recalled } from './memory.ts';
import type { ModelCallDeps } from './model-call.ts';
import type { ModelChoice } from './model-choice.ts';
import { findKnowledge, type PaidEmbedding, type QueryEmbedder } from './query-embedding.ts';
import {
  assistantMessage,
  type Conversation,
  countRepeat,
  type JournaledAnswer,
  replayStep,
  toolMessage,
} from './replay.ts';
import { callTools } from './tool-call.ts';
import type { Tool } from './tools.ts';
import type { RunLimit } from './usage-limit.ts';

/** The same call with the same arguments and the same result, so often in one step, is a loop. */
const LOOP_REPEATS = 5;
/** Turns of a step at most; a model that goes on calling tools is stopped there. */
export const MAX_TURNS = 25;
const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 5_000;

export type StepDeps = ModelCallDeps & {
  readonly db: Queryable;
  /** Absent: knowledge is searched by words alone. */
  readonly queries?: QueryEmbedder;
  /** Absent: nothing is remembered. */
  readonly memory?: AgentMemory;
};

export type StepInput = {
  readonly run: ClaimedRun;
  readonly agent: ClaimedAgent;
  readonly models: ModelChoice;
  readonly tools: ReadonlyMap<string, Tool>;
  /** Names that the task selects and no source has. */
  readonly missingTools: readonly string[];
  readonly budgets: RunBudgets;
  readonly limit: RunLimit;
  readonly step: StepPlan;
  readonly previous: readonly StepResult[];
  readonly signal: AbortSignal;
  readonly msLeft: () => number;
};

/** What a step gave: a result, or, where its failure does not stop the run, none. `note` says what a reader of the result should know, such as that it was cut off. */
export type StepOutcome = StepResult & {
  readonly status: 'completed' | 'failed' | 'skipped';
  readonly note: { readonly code: string; readonly message: string } | null;
};

/**
 * Executes a step, or goes on with it where the journal ends. Its completion is recorded, and committed with
 * whatever comes next.
 *
 * Throws RunFailure when no attempt is left, RunMustWait, RunLost, or the signal's reason.
 */
export async function executeStep(
  deps: StepDeps,
  journal: RunJournal,
  input: StepInput,
): Promise<StepOutcome> {
  const { run, step } = input;
  const before = run.journal.steps.find((s) => s.step_order === step.order);
  const restored = before?.context ? (before.context as StepContext) : null;
  // The step before is on record before this one searches: an answer that was paid for is not to be lost in a wait.
  if (!restored && input.agent.has_knowledge) await journal.flush();
  const paid: PaidEmbedding[] = [];
  const context =
    restored ??
    withMissingTools(await freshContext(deps, input, paid), input.missingTools, input.models.leftOut);
  const llm = run.journal.llm.filter((call) => call.step_order === step.order);
  const tools = run.journal.tools.filter((call) => call.step_order === step.order);
  const conversation = replayStep(context, llm, tools);
  // The claim of a new run has journaled the intent of its first call.
  if (run.lease_epoch === 1 && step.order === 1) conversation.openTries = 0;

  // The answer at which the step's last attempt failed is no answer: it is asked for again.
  if (before?.reason_code === 'empty_answer' && conversation.answer?.toolCalls.length === 0) {
    conversation.answer = null;
    conversation.turn++;
  }

  const state = { order: step.order, step_id: step.id, name: step.name };
  let attempt = before?.attempt ?? 1;
  if (!restored) {
    journal.step({ ...state, attempt, status: 'running', context });
    for (const one of paid) journal.embedding({ order: step.order, turn: 0, index: 0 }, one);
  }

  const maxRetries = step.max_retries ?? run.settings.max_retries;
  for (;;) {
    try {
      const { text, note } = await withTimeLimit(deps.clock, input, (signal) =>
        runTurns(deps, journal, { ...input, signal }, conversation),
      );
      journal.step({
        ...state,
        attempt,
        status: 'completed',
        result: { text },
        reason_code: note?.code ?? null,
        error: note?.message ?? null,
      });
      return { order: step.order, name: step.name, status: 'completed', text, note };
    } catch (error) {
      if (error instanceof RunMustWait) {
        journal.step({ ...state, attempt, status: 'running', reason_code: error.code, error: error.message });
        throw error;
      }
      if (!(error instanceof StepFailure || error instanceof RunFailure)) throw error;
      const final = error instanceof RunFailure || !error.retryable || attempt > maxRetries;
      const failed = { ...state, attempt, reason_code: error.code, error: error.message };
      if (final) {
        const tried = attempt > 1 ? ` (after ${attempt} attempts)` : '';
        const message = `Step ${step.order} (${step.name}) failed${tried}: ${error.message}`;
        const goesOn = error instanceof StepFailure && (step.on_failure ?? 'stop') !== 'stop';
        const status = goesOn && step.on_failure === 'skip' ? 'skipped' : 'failed';
        journal.step({ ...failed, status });
        if (!goesOn) throw new RunFailure(error.code, message);
        return { order: step.order, name: step.name, status, text: '', note: { code: error.code, message } };
      }
      attempt++;
      journal.step({ ...failed, attempt, status: 'running' });
      await journal.flush();
      await sleep(deps.clock, Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** (attempt - 2)), input.signal);
    }
  }
}

/** What a task asks for and does not get is said where its owner looks, not swallowed. */
function withMissingTools(
  context: StepContext,
  missing: readonly string[],
  models: readonly string[],
): StepContext {
  const notes = missing.map(
    (name) => `tool '${name}': the task selects it, and there is no such tool for this agent`,
  );
  notes.push(...models);
  return notes.length === 0 ? context : { ...context, left_out: [...context.left_out, ...notes] };
}

/** @param paid gets what embedding the request has cost */
async function freshContext(deps: StepDeps, input: StepInput, paid: PaidEmbedding[]): Promise<StepContext> {
  const { run, agent, step, previous } = input;
  const request = stepRequest(run, step);
  if (request === '') {
    throw new RunFailure(
      'no_instructions',
      `Step ${step.order} (${step.name}) has no instructions. Write them into the task or the step.`,
    );
  }
  if (!agent.has_knowledge || !run.agent_id) return buildContext(run, agent, step, previous, []);
  const recalling = recall(deps, input, request);
  const notes: string[] = [];
  let chunks: readonly Chunk[] = [];
  try {
    const found = await findKnowledge(
      deps,
      {
        workspaceId: run.workspace_id,
        agentId: run.agent_id,
        text: request.slice(0, 1000),
        limit: null,
        signal: input.signal,
      },
      (some) => paid.push(...some),
    );
    chunks = found.chunks;
    if (found.note !== null) notes.push(`knowledge by its meaning: ${found.note}`);
  } catch (error) {
    if (!isStatementTimeout(error)) throw error;
    notes.push('knowledge: the search took too long');
  }
  const { text, note } = await recalling;
  if (note !== null) notes.push(note);
  const context = buildContext(run, agent, step, previous, chunks, text);
  return notes.length === 0 ? context : { ...context, left_out: [...context.left_out, ...notes] };
}

/** What the agent remembers, beside the search. A failure waits until it is asked for, so that it is never nobody's. */
function recall({ db, memory }: StepDeps, { run, signal }: StepInput, request: string): Promise<Recalled> {
  const nothing: Recalled = { text: null, note: null };
  if (!memory) return Promise.resolve(nothing);
  const recalled = memory.recall(db, { runId: run.id, request, signal }).catch((error: unknown) => {
    if (isStatementTimeout(error)) return { text: null, note: 'memory: the search for it took too long' };
    throw error;
  });
  recalled.catch(() => {});
  return recalled;
}

/** Turns until there is an answer. `conversation` advances, so that a retry goes on after the last finished call. */
async function runTurns(
  deps: StepDeps,
  journal: RunJournal,
  input: StepInput,
  conversation: Conversation,
): Promise<{ text: string; note: StepOutcome['note'] }> {
  const { run, agent, step, tools, budgets, signal } = input;
  for (;;) {
    if (conversation.answer === null) {
      if (conversation.turn > MAX_TURNS) {
        throw new StepFailure(
          'too_many_turns',
          `The model made ${MAX_TURNS} turns without an answer.`,
          false,
        );
      }
      conversation.answer = await askModel(deps, journal, input, conversation);
    }
    const answer = conversation.answer;
    if (answer.toolCalls.length === 0) return finalText(answer, agent, conversation);

    const contents = await callTools(deps, journal, {
      order: step.order,
      turn: conversation.turn,
      calls: answer.toolCalls,
      known: conversation.toolCalls,
      tools,
      context: {
        workspaceId: run.workspace_id,
        runId: run.id,
        agentId: run.agent_id ?? '',
        userId: run.user_id,
        target: {
          conversationId: run.settings.target_conversation_id,
          channelId: run.settings.target_channel_id,
        },
        signal,
      },
      contextWindowSize: agent.context_window_size,
      budgets,
      approval: stricter(agent.approval_policy, run.settings.approval_policy ?? 'none'),
    });
    conversation.messages.push(assistantMessage(answer));
    const repeats = answer.toolCalls.map((call, i) => {
      const content = contents[i] ?? '';
      conversation.messages.push(toolMessage(call, content));
      return { name: call.name, count: countRepeat(conversation.repeats, call, content) };
    });
    const loop = repeats.find((repeat) => repeat.count >= LOOP_REPEATS);
    if (loop) {
      throw new StepFailure(
        'loop',
        `The model called ${loop.name} ${loop.count} times with the same arguments and the same result. ` +
          'Say in the instructions what to do with that result.',
        false,
      );
    }
    conversation.turn++;
    conversation.answer = null;
    conversation.openTries = null;
    conversation.openFailures = 0;
    conversation.toolCalls = new Map();
  }
}

const POLICIES: readonly ApprovalPolicy[] = ['none', 'writes', 'all'];

function stricter(one: ApprovalPolicy, other: ApprovalPolicy): ApprovalPolicy {
  return POLICIES.indexOf(one) > POLICIES.indexOf(other) ? one : other;
}

/** The answer's text, or why it is none. A failed answer is asked for again at the same turn. */
function finalText(
  answer: JournaledAnswer,
  agent: ClaimedAgent,
  conversation: Conversation,
): { text: string; note: StepOutcome['note'] } {
  const text = answer.content?.trim() ?? '';
  const again = (): void => {
    conversation.answer = null;
    conversation.turn++;
    conversation.openTries = null;
    conversation.openFailures = 0;
  };
  if (answer.refusal) throw new StepFailure('refusal', `The model refused: ${answer.refusal}`, false);
  if (answer.finishReason === 'content_filter') {
    throw new StepFailure(
      'content_filter',
      'The provider’s content filter withheld the answer. Change the instructions or the input.',
      false,
    );
  }
  if (answer.finishReason === 'length') {
    const limit = agent.max_tokens === null ? 'the model’s limit' : `max_tokens (${agent.max_tokens})`;
    const message = `The answer was cut off at ${limit}. Raise the agent's max_tokens or ask for less.`;
    if (text === '') throw new StepFailure('answer_cut_off', message, false);
    return { text, note: { code: 'answer_cut_off', message } };
  }
  if (text === '') {
    again();
    throw new StepFailure('empty_answer', 'The model answered nothing.', true);
  }
  return { text, note: null };
}

/** Gives `work` a signal that also fires when the step's own time limit has passed. */
async function withTimeLimit<T>(
  clock: Clock,
  input: StepInput,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const seconds = input.step.timeout_seconds;
  if (seconds === null || seconds === undefined) return work(input.signal);
  const limit = new AbortController();
  const timer = clock.after(seconds * 1000, () => limit.abort(new JobAborted('deadline')));
  try {
    return await work(AbortSignal.any([input.signal, limit.signal]));
  } catch (error) {
    if (limit.signal.aborted && !input.signal.aborted && error === limit.signal.reason) {
      throw new StepFailure('step_timeout', `The step took longer than its ${seconds} s.`, true);
    }
    throw error;
  } finally {
    timer.cancel();
  }
}
