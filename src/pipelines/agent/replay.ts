/** Back from the journal to the conversation of a step: what was paid for and done is never paid or done again. */
import { createHash } from 'node:crypto';
import type { Ticket } from '../../db/rate-limits.ts';
import type { JournaledModelCall, JournaledToolCall } from '../../db/runs.ts';
import type { ChatMessage, ModelToolCall } from '../../providers/models.ts';
import type { StepContext } from './context.ts';

/** A model's answer as the journal keeps it. */
export type JournaledAnswer = {
  readonly content: string | null;
  readonly toolCalls: readonly ModelToolCall[];
  readonly refusal: string | null;
  readonly finishReason: string | null;
};

/** Where a step's conversation stands. */
export type Conversation = {
  readonly messages: ChatMessage[];
  /** The turn to make next, or the one whose tool calls are still open. */
  turn: number;
  /** The answer of `turn`, if the model has already given it. */
  answer: JournaledAnswer | null;
  /** Journaled tool calls of `turn`, by index. */
  toolCalls: Map<number, JournaledToolCall>;
  /** Tries that were made of the open call; null if its intent is not in the journal. */
  openTries: number | null;
  /** Those of them that the provider failed. */
  openFailures: number;
  /** From where the open call goes on waiting for its turn under a rate limit. */
  openTicket: Ticket | null;
  /** How often the same call with the same arguments had the same result. */
  readonly repeats: Map<string, number>;
};

/** Counts a settled call; returns how often it has been made with this result. */
export function countRepeat(repeats: Map<string, number>, call: ModelToolCall, content: string): number {
  const signature = createHash('sha256')
    .update(JSON.stringify([call.name, call.arguments, content]))
    .digest('base64');
  const count = (repeats.get(signature) ?? 0) + 1;
  repeats.set(signature, count);
  return count;
}

/** Builds the conversation of a step from its context and its journaled calls. */
export function replayStep(
  context: StepContext,
  llm: readonly JournaledModelCall[],
  tools: readonly JournaledToolCall[],
): Conversation {
  const messages: ChatMessage[] = [...context.messages];
  const repeats = new Map<string, number>();
  let turn = 1;
  for (const [i, call] of llm.entries()) {
    if (call.status !== 'completed')
      return {
        messages,
        turn,
        answer: null,
        toolCalls: new Map(),
        // one that waits for its turn has not been made
        openTries: call.ticket_at ? call.attempt - 1 : call.attempt,
        openFailures: call.failures,
        openTicket:
          call.ticket_at && call.ticket_kind ? { at: call.ticket_at, kind: call.ticket_kind } : null,
        repeats,
      };
    const answer = journaledAnswer(call);
    const calls = new Map(tools.filter((t) => t.turn === call.turn).map((t) => [t.call_index, t]));
    // An empty answer that was asked for again: it is no part of the conversation.
    if (answer.toolCalls.length === 0 && i < llm.length - 1) {
      turn = call.turn + 1;
      continue;
    }
    const open = answer.toolCalls.length === 0 || answer.toolCalls.some((_, i) => !isSettled(calls.get(i)));
    if (open)
      return {
        messages,
        turn,
        answer,
        toolCalls: calls,
        openTries: null,
        openFailures: 0,
        openTicket: null,
        repeats,
      };
    messages.push(assistantMessage(answer));
    answer.toolCalls.forEach((toolCall, i) => {
      const content = settledContent(calls.get(i));
      messages.push(toolMessage(toolCall, content));
      countRepeat(repeats, toolCall, content);
    });
    turn = call.turn + 1;
  }
  return {
    messages,
    turn,
    answer: null,
    toolCalls: new Map(),
    openTries: null,
    openFailures: 0,
    openTicket: null,
    repeats,
  };
}

/** Whether a tool call needs nothing more. */
export function isSettled(call: JournaledToolCall | undefined): boolean {
  return call !== undefined && call.status !== 'started' && call.status !== 'waiting';
}

/** What the model is told of a settled tool call. */
export function settledContent(call: JournaledToolCall | undefined): string {
  const content = (call?.result as { content?: unknown } | null | undefined)?.content;
  return typeof content === 'string' ? content : (call?.error_message ?? '');
}

/** The message that answers a tool call, in wire form. */
export function toolMessage(call: ModelToolCall, content: string): ChatMessage {
  return { role: 'tool', tool_call_id: wireCallId(call.id), content };
}

/** Providers refuse ids over 40 characters; one that another endpoint made longer is cut, and kept unique. */
function wireCallId(id: string): string {
  return id.length <= 40 ? id : `call_${createHash('sha256').update(id).digest('hex').slice(0, 32)}`;
}

/** Models invent names that no provider takes back; the model has been told that there is no such tool. */
function wireToolName(name: string): string {
  return name.replace(/[^a-zA-Z0-9_-]/g, '_').slice(0, 64) || 'unknown';
}

/** The assistant's message of an answer, in wire form. */
export function assistantMessage(answer: JournaledAnswer): ChatMessage {
  return {
    role: 'assistant',
    content: answer.content,
    ...(answer.toolCalls.length === 0
      ? {}
      : {
          tool_calls: answer.toolCalls.map((call) => ({
            id: wireCallId(call.id),
            type: 'function' as const,
            function: { name: wireToolName(call.name), arguments: call.arguments },
          })),
        }),
  };
}

function journaledAnswer(call: JournaledModelCall): JournaledAnswer {
  const response = (call.response ?? {}) as {
    content?: string | null;
    tool_calls?: ModelToolCall[];
    refusal?: string | null;
  };
  return {
    content: response.content ?? null,
    toolCalls: response.tool_calls ?? [],
    refusal: response.refusal ?? null,
    finishReason: call.finish_reason,
  };
}
