/** The answer of the benchmarks' model: about a hundred words, as a step of a task gives. */
import type { ModelAnswer } from '../../src/providers/models.ts';

export const answerText = 'The figures of the week are in line with those of the week before. '
  .repeat(9)
  .trim();

/** As an OpenAI-compatible server sends it. */
export function completionJson(): string {
  return JSON.stringify({
    id: 'chatcmpl-bench',
    object: 'chat.completion',
    created: 1_700_000_000,
    model: 'gpt-4.1-mini',
    choices: [{ index: 0, message: { role: 'assistant', content: answerText }, finish_reason: 'stop' }],
    usage: { prompt_tokens: 180, completion_tokens: 120, total_tokens: 300 },
  });
}

/** As the client of model providers returns it. */
export function modelAnswer(): ModelAnswer {
  return {
    content: answerText,
    toolCalls: [],
    refusal: null,
    finishReason: 'stop',
    usage: { promptTokens: 180, completionTokens: 120, cachedTokens: 0, reported: true },
    model: 'gpt-4.1-mini',
    responseId: 'chatcmpl-bench',
    latencyMs: 0,
    limits: null,
  };
}
