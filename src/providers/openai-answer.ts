import { createHash } from 'node:crypto';
import { ProviderError } from './errors.ts';
import type { FinishReason, ModelAnswer, ModelRequest, ModelToolCall, ModelUsage } from './models.ts';
import { errorFromFault, readFault } from './openai-errors.ts';
import type { ProviderLimits } from './rate-limit-headers.ts';

export interface AnswerContext {
  request: ModelRequest;
  /** Milliseconds. */
  latencyMs: number;
  apiKey: string;
  limits?: ProviderLimits | null;
}

/**
 * Reads a chat completion as strictly as needed and as leniently as possible: "OpenAI-compatible" servers send
 * arguments as objects, content as parts, no ids, no usage, and errors with status 200.
 *
 * @throws ProviderError `bad_response` when there is no answer in it, or what an embedded error means
 */
export function readChatAnswer(body: unknown, context: AnswerContext): ModelAnswer {
  if (!isRecord(body)) throw bad('is not a JSON object');
  const choice = Array.isArray(body.choices) ? body.choices[0] : undefined;
  const fault = body.error ?? (isRecord(choice) ? choice.error : undefined);
  if (fault) throw embeddedError(fault, context);
  if (!isRecord(choice)) throw bad('has no choices');
  if (!isRecord(choice.message)) throw bad('has a choice without a message');
  const { message } = choice;
  const content = readContent(message.content);
  const refusal = typeof message.refusal === 'string' && message.refusal !== '' ? message.refusal : null;
  const toolCalls = readToolCalls(message, context.request.idempotencyKey);
  const finishReason = readFinishReason(choice.finish_reason, toolCalls.length > 0);
  const endedEarly = finishReason === 'length' || finishReason === 'content_filter';
  if (content === null && refusal === null && toolCalls.length === 0 && !endedEarly) {
    throw bad('has neither content nor tool calls');
  }
  return {
    content,
    toolCalls,
    refusal,
    finishReason,
    usage: readUsage(body.usage),
    model: typeof body.model === 'string' && body.model !== '' ? body.model : context.request.model,
    responseId: typeof body.id === 'string' && body.id !== '' ? body.id : null,
    latencyMs: context.latencyMs,
    limits: context.limits ?? null,
  };
}

/** OpenRouter and some proxies answer 200 and put the upstream's error, with its status as code, into the body. */
function embeddedError(fault: unknown, context: AnswerContext): ProviderError {
  const read = readFault({ error: fault }, null);
  const status = /^[45]\d\d$/.test(read.code) ? Number(read.code) : 502;
  return errorFromFault(status, read, null, context.apiKey);
}

function readContent(content: unknown): string | null {
  if (typeof content === 'string') return content;
  if (!Array.isArray(content)) return null;
  const texts = content.filter(isRecord).map((part) => (part.type === 'text' ? part.text : null));
  const kept = texts.filter((text) => typeof text === 'string');
  return kept.length > 0 ? kept.join('') : null;
}

function readToolCalls(message: Record<string, unknown>, idempotencyKey: string): ModelToolCall[] {
  const legacy = isRecord(message.function_call) ? [{ function: message.function_call }] : [];
  const listed = Array.isArray(message.tool_calls) ? message.tool_calls : legacy;
  const seen = new Set<string>();
  return listed.map((call: unknown, index) => {
    if (!isRecord(call) || !isRecord(call.function)) throw bad(`has a tool call ${index} without a function`);
    const { name, arguments: given } = call.function;
    if (typeof name !== 'string' || name === '') throw bad(`has a tool call ${index} without a name`);
    let id = typeof call.id === 'string' ? call.id : '';
    if (id === '' || seen.has(id)) {
      // Made from the call's own key: the same when replayed, unlike any other turn's.
      id = `call_${createHash('sha256').update(`${idempotencyKey} ${index}`).digest('hex').slice(0, 24)}`;
    }
    seen.add(id);
    return { id, name, arguments: typeof given === 'string' ? given : JSON.stringify(given ?? {}) };
  });
}

const FINISH: Record<string, FinishReason> = {
  stop: 'stop',
  end_turn: 'stop',
  eos: 'stop',
  stop_sequence: 'stop',
  length: 'length',
  max_tokens: 'length',
  model_length: 'length',
  tool_calls: 'tool_calls',
  function_call: 'tool_calls',
  tool_use: 'tool_calls',
  content_filter: 'content_filter',
  safety: 'content_filter',
};

function readFinishReason(reason: unknown, hasToolCalls: boolean): FinishReason {
  const read = (typeof reason === 'string' ? FINISH[reason.toLowerCase()] : undefined) ?? 'unknown';
  // Several servers write "stop" beside tool calls; a cut answer stays cut, for its arguments may be.
  return hasToolCalls && (read === 'stop' || read === 'unknown') ? 'tool_calls' : read;
}

function readUsage(usage: unknown): ModelUsage {
  if (!isRecord(usage)) return { promptTokens: 0, completionTokens: 0, cachedTokens: 0, reported: false };
  const details = isRecord(usage.prompt_tokens_details) ? usage.prompt_tokens_details : {};
  const promptTokens = count(usage.prompt_tokens);
  return {
    promptTokens,
    completionTokens: count(usage.completion_tokens),
    // DeepSeek has a name of its own for it.
    cachedTokens: Math.min(promptTokens, count(details.cached_tokens ?? usage.prompt_cache_hit_tokens)),
    reported: usage.prompt_tokens !== undefined || usage.completion_tokens !== undefined,
  };
}

/** A provider that reports more than this is wrong; the journal's columns end at 2^31. */
const MOST_TOKENS = 1_000_000_000;

function count(value: unknown): number {
  const number = typeof value === 'string' ? Number(value) : value;
  if (typeof number !== 'number' || !(number > 0)) return 0;
  return Math.min(Math.round(number), MOST_TOKENS);
}

function bad(what: string): ProviderError {
  return new ProviderError({
    kind: 'retry',
    code: 'bad_response',
    message: `The provider’s answer ${what}.`,
  });
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
