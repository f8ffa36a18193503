/** Asking the model for the next turn: within the window, within the budgets, and again with less where it was too long. */
import type { ClaimedAgent } from '../../db/runs.ts';
import type { ModelAnswer, ToolDefinition } from '../../providers/models.ts';
import { callKey } from './call-key.ts';
import { LARGEST_WINDOW } from './context.ts';
import type { UsableModel } from './credentials.ts';
import { ContextOverflow, RunFailure } from './errors.ts';
import type { RunJournal } from './journal.ts';
import { callModel } from './model-call.ts';
import type { ModelChoice } from './model-choice.ts';
import type { Conversation } from './replay.ts';
import type { StepDeps, StepInput } from './step.ts';
import { estimateTokens, fitConversation } from './window.ts';

/** Tokens that are set aside for an answer where the agent bounds it by nothing. */
const ANSWER_TOKENS = 4_096;
/** What follows the beginning of a conversation gets at least this share of the window. */
const LEAST_SHARE = 0.25;
/** A conversation that the provider finds too long is made this much smaller, and asked again, at most so many times. */
const SQUEEZE = 0.7;
const MAX_SQUEEZES = 4;

/** Makes the open turn's model call. Throws as callModel does, and as the budgets and the plan's limit do. */
export async function askModel(
  deps: StepDeps,
  journal: RunJournal,
  input: StepInput,
  conversation: Conversation,
): Promise<ModelAnswer> {
  const { run, agent, models, step, budgets, limit } = input;
  const tools = [...input.tools.values()].map((tool) => tool.definition);
  const key = callKey(run.id, step.order, conversation.turn);
  const maxTokens = agent.max_tokens !== null && agent.max_tokens > 0 ? agent.max_tokens : null;
  const answerTokens = maxTokens ?? ANSWER_TOKENS;
  if (budgets.boundsCost) requirePrices(models);
  // a finished call is on record before anything is waited for
  if (budgets.any || limit.any) await journal.flush();
  await limit.check();
  let mostTokens = conversationRoom(agent, models.current, conversation, tools, answerTokens);
  for (let squeezes = 0; ; squeezes++) {
    const fitted = fitConversation(conversation.messages, mostTokens);
    if (budgets.any) {
      const promptTokens = estimateTokens(fitted.messages, tools);
      await budgets.reserve([
        {
          key,
          turns: 1,
          tool_calls: 0,
          tokens: promptTokens + answerTokens,
          cost_micros: mostCost(models, promptTokens, answerTokens),
        },
      ]);
    }
    try {
      return await callModel(
        deps,
        journal,
        models,
        {
          order: step.order,
          turn: conversation.turn,
          idempotencyKey: key,
          triesBefore: conversation.openTries,
          failuresBefore: conversation.openFailures,
          ticketBefore: conversation.openTicket,
          workspaceId: run.workspace_id,
          onTry: (attempt, failures) => {
            conversation.openTries = attempt;
            conversation.openFailures = failures;
            conversation.openTicket = null;
          },
          messages: fitted.messages,
          leftOut: fitted.leftOut,
          tools,
          temperature: agent.temperature,
          // what was set aside is what the provider may give
          maxTokens: budgets.any ? answerTokens : maxTokens,
          msLeft: input.msLeft,
        },
        input.signal,
      );
    } catch (error) {
      if (!(error instanceof ContextOverflow) || squeezes >= MAX_SQUEEZES) throw error;
      // our estimate was too low for this model: from here on it counts less
      const size = estimateTokens(fitted.messages);
      mostTokens = Math.min(
        size * SQUEEZE,
        // another model may have taken its place, with a window of its own
        conversationRoom(agent, models.current, conversation, tools, answerTokens),
      );
      // nothing is left to leave out
      if (estimateTokens(fitConversation(conversation.messages, mostTokens).messages) >= size) throw error;
    }
  }
}

/**
 * Tokens that a conversation may take: the agent's window, or the model's where that is smaller, without what answer and tools need. What
 * is said after the beginning has a share of its own, however long the instructions are: an agent must see what its tools answer.
 */
function conversationRoom(
  agent: ClaimedAgent,
  model: UsableModel,
  conversation: Conversation,
  tools: readonly ToolDefinition[],
  answerTokens: number,
): number {
  const window = Math.min(Math.max(agent.context_window_size, 1), model.contextWindow ?? LARGEST_WINDOW);
  const beginning = conversation.messages.slice(
    0,
    conversation.messages.findIndex((message) => message.role === 'assistant') >>> 0,
  );
  return Math.max(
    window - answerTokens - estimateTokens([], tools),
    estimateTokens(beginning) + window * LEAST_SHARE,
  );
}

/** Throws RunFailure no_price where a budget in money can't bound what a model costs. */
function requirePrices(models: ModelChoice): void {
  const unpriced = models.all.find((model) => model.prices === null);
  if (unpriced) {
    throw new RunFailure(
      'no_price',
      `A budget bounds the cost of this run, and nobody knows what ${unpriced.provider}/${unpriced.model} costs. ` +
        'Add the model with its prices to llm_models, or take it off the agent.',
    );
  }
}

/** Millionths of a US dollar that a call may cost, with the dearest of the models that may make it. */
function mostCost(models: ModelChoice, promptTokens: number, answerTokens: number): number {
  const costs = models.all.map(({ prices }) =>
    prices ? (promptTokens * prices.inputPer1k + answerTokens * prices.outputPer1k) * 1000 : 0,
  );
  return Math.ceil(Math.max(0, ...costs));
}
