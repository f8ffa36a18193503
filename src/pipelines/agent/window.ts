/**
 * Keeps a conversation within the agent's window.
 *
 * Nothing is summarised by a model: what is left out is chosen by rule, so that the same journal gives the same conversation
 * again, and it is said in the conversation and in the journal. A tool's message is never separated from the call that it answers.
 */
import type { ChatMessage, ToolDefinition } from '../../providers/models.ts';
import { BYTES_PER_TOKEN, cutWithNote } from './text.ts';

/** What a message costs beside its text. */
const MESSAGE_TOKENS = 6;
/** A tool result of an earlier turn keeps this much when room is needed. */
const OLD_RESULT_CHARS = 400;
/** Turns are dropped in groups of this many, so that a provider's cache of the beginning lives longer than one turn. */
const DROP_TURNS = 4;
/** The note that something was cut takes about as much. */
const CUT_NOTE_CHARS = 80;
/** No part is cut below this. */
const SHORTEST_CHARS = 200;

/** A conversation as it is sent, and what was left out of it. */
export type Fitted = { readonly messages: ChatMessage[]; readonly leftOut: readonly string[] };

/** An estimate of the tokens that messages and tools take as input. */
export function estimateTokens(
  messages: readonly ChatMessage[],
  tools: readonly ToolDefinition[] = [],
): number {
  const text = tools.length > 0 ? Buffer.byteLength(JSON.stringify(tools)) : 0;
  return messages.reduce((sum, message) => sum + tokensOf(message), Math.ceil(text / BYTES_PER_TOKEN));
}

/**
 * The conversation within so many tokens, as far as that is possible: first the tool results of earlier turns are shortened, then
 * earlier turns dropped, then the last turn's results shortened. The beginning (who the agent is, what is asked) always stays.
 */
export function fitConversation(messages: readonly ChatMessage[], maxTokens: number): Fitted {
  let total = estimateTokens(messages);
  if (total <= maxTokens) return { messages: [...messages], leftOut: [] };
  const { head, turns } = split(messages);
  const last = turns.pop();
  const leftOut: string[] = [];
  const size = (turn: readonly ChatMessage[]): number => estimateTokens(turn);

  let shortened = 0;
  for (const [i, turn] of turns.entries()) {
    if (total <= maxTokens) break;
    const short = turn.map((message) => cutResult(message, OLD_RESULT_CHARS));
    if (short.every((message, at) => message === turn[at])) continue;
    total -= size(turn) - size(short);
    turns[i] = short;
    shortened++;
  }
  if (shortened > 0)
    leftOut.push(`the results of tools in ${shortened} earlier turns, beyond their beginning`);

  let dropped = 0;
  const names = new Set<string>();
  while (total > maxTokens && turns.length > 0) {
    for (const turn of turns.splice(0, DROP_TURNS)) {
      total -= size(turn);
      dropped++;
      for (const message of turn) {
        if (message.role === 'assistant') {
          for (const call of message.tool_calls ?? []) names.add(call.function.name);
        }
      }
    }
  }
  const note: ChatMessage[] = [];
  if (dropped > 0) {
    leftOut.push(`${dropped} earlier turns`);
    const tools = names.size > 0 ? ` Tools that were called in them: ${[...names].join(', ')}.` : '';
    note.push({
      role: 'user',
      content: `[${dropped} earlier turns are left out here, because the conversation is too long.${tools}]`,
    });
    total += estimateTokens(note);
  }

  let end = last ?? [];
  if (total > maxTokens && end.length > 0) {
    const results = end.filter((message) => message.role === 'tool').length;
    const rest = total - size(end.filter((message) => message.role === 'tool'));
    const share = Math.floor(((maxTokens - rest) * BYTES_PER_TOKEN) / Math.max(results, 1)) - CUT_NOTE_CHARS;
    const short = end.map((message) => cutResult(message, Math.max(share, SHORTEST_CHARS)));
    if (short.some((message, at) => message !== end[at]))
      leftOut.push('parts of the results of the last tools');
    end = short;
  }
  return { messages: [...head, ...note, ...turns.flat(), ...end], leftOut };
}

/** The beginning, and then each assistant's message with the tool messages that answer it. */
function split(messages: readonly ChatMessage[]): { head: ChatMessage[]; turns: ChatMessage[][] } {
  const first = messages.findIndex((message) => message.role === 'assistant');
  if (first < 0) return { head: [...messages], turns: [] };
  const turns: ChatMessage[][] = [];
  for (const message of messages.slice(first)) {
    if (message.role === 'assistant' || turns.length === 0) turns.push([message]);
    else turns.at(-1)?.push(message);
  }
  return { head: messages.slice(0, first), turns };
}

function cutResult(message: ChatMessage, length: number): ChatMessage {
  if (message.role !== 'tool' || message.content.length <= length + CUT_NOTE_CHARS) return message;
  return { ...message, content: cutWithNote(message.content, length) };
}

function tokensOf(message: ChatMessage): number {
  let bytes = 0;
  if (typeof message.content === 'string') bytes += Buffer.byteLength(message.content);
  else if (message.content) bytes += Buffer.byteLength(JSON.stringify(message.content));
  if (message.role === 'assistant') {
    for (const call of message.tool_calls ?? []) {
      bytes += Buffer.byteLength(call.function.name) + Buffer.byteLength(call.function.arguments);
    }
  }
  return MESSAGE_TOKENS + Math.ceil(bytes / BYTES_PER_TOKEN);
}
