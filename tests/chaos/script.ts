/** What the runs of the load do: three steps, each with tool calls, decided by what the conversation holds so far. */
import type { RecordedRequest, Scripted } from '../peers/model-server.ts';

/** The tools of the tool peer and what recovery may repeat of them. */
export const EFFECTS = { chaos_read: 'read', chaos_put: 'idempotent', chaos_charge: 'write' } as const;

export type ToolName = keyof typeof EFFECTS;

/** Instructions of the steps; the model below knows them again. */
export const STEPS = ['Part one: look and put.', 'Part two: charge.', 'Part three: tell.'] as const;

/** Model calls and tool calls of a run that nothing disturbs. */
export const CALLS = { model: 6, tools: 4 } as const;

/** What a step asks for in its first turn; with the results it answers. */
const TOOL_CALLS: Readonly<Record<string, Scripted['toolCalls']>> = {
  [STEPS[0]]: [
    { name: 'chaos_read', arguments: {} },
    { name: 'chaos_put', arguments: {} },
  ],
  [STEPS[1]]: [{ name: 'chaos_charge', arguments: {} }],
  [STEPS[2]]: [{ name: 'send_message', arguments: { content: 'told' } }],
};

/** The model's answer to a request of the load. */
export function answerTo(request: RecordedRequest): Scripted {
  const step = STEPS.find((one) => request.userText.includes(one));
  if (!step) throw new Error(`A request of no step: ${request.userText}`);
  const { messages } = request.body;
  const isFirstTurn = messages.at(-1)?.role !== 'tool';
  const toolCalls = TOOL_CALLS[step];
  return isFirstTurn && toolCalls ? { toolCalls } : { content: `done: ${step}` };
}
