import { createHash } from 'node:crypto';
import { APIUserAbortError, type OpenAI } from 'openai';
import type { ChatCompletionCreateParamsNonStreaming } from 'openai/resources/chat/completions';
import { ProviderError } from './errors.ts';
import { DEFAULT_BASE_URL } from './model-endpoint.ts';
import { readChatAnswer } from './openai-answer.ts';
import { errorFromThrown, StatusError } from './openai-errors.ts';
import { apiRoot, type CallOptions, openAiSdk } from './openai-sdk.ts';
import { type ProviderLimits, providerLimits } from './rate-limit-headers.ts';

/** A message in the wire form of chat completions, so that the journal holds exactly what was sent. */
export type ChatMessage =
  | { role: 'system' | 'developer'; content: string }
  | { role: 'user'; content: string | ChatContentPart[] }
  | { role: 'assistant'; content: string | null; tool_calls?: ChatToolCall[]; refusal?: string | null }
  | { role: 'tool'; tool_call_id: string; content: string };

export type ChatContentPart =
  | { type: 'text'; text: string }
  | { type: 'image_url'; image_url: { url: string; detail?: 'auto' | 'low' | 'high' } };

export interface ChatToolCall {
  id: string;
  type: 'function';
  function: { name: string /** raw JSON text, as the model wrote it */; arguments: string };
}

export interface ToolDefinition {
  type: 'function';
  function: {
    /** `[a-zA-Z0-9_-]{1,64}` */
    name: string;
    description?: string;
    /** JSON Schema with `type: "object"` at its root. */
    parameters?: Record<string, unknown>;
    strict?: boolean;
  };
}

export interface ModelRequest {
  /** The provider's own model id, for example `gpt-4.1-mini`. */
  model: string;
  /** Not empty; every `tool` message follows the assistant message whose call it answers. */
  messages: ChatMessage[];
  tools?: ToolDefinition[];
  toolChoice?: 'auto' | 'none' | 'required';
  /** 0 to 2. Left out where the model refuses it (reasoning models): see {@link openAiModelClient}. */
  temperature?: number;
  /** Upper bound of tokens in the answer. */
  maxTokens?: number;
  /** Sent as `Idempotency-Key`: the journal's key of this call, the same when the call is made again. */
  idempotencyKey: string;
}

export interface ModelToolCall {
  /** Never empty and unique within the answer, also where a provider sends none. */
  id: string;
  name: string;
  /** Raw JSON text as the model wrote it; may be invalid JSON. */
  arguments: string;
}

export interface ModelUsage {
  /** All tokens of the prompt, the cached ones among them. */
  promptTokens: number;
  /** All tokens of the answer, hidden reasoning among them. */
  completionTokens: number;
  /** Part of `promptTokens` that was read from the provider's cache. */
  cachedTokens: number;
  /** False when the provider sent no usage: the zeros then mean "unknown", not "free". */
  reported: boolean;
}

export type FinishReason = 'stop' | 'length' | 'tool_calls' | 'content_filter' | 'unknown';

export interface ModelAnswer {
  /** Null when the model only called tools, refused, or was stopped before it wrote anything. */
  content: string | null;
  toolCalls: ModelToolCall[];
  refusal: string | null;
  finishReason: FinishReason;
  usage: ModelUsage;
  /** The model that answered, as the provider names it; the requested one when it names none. */
  model: string;
  responseId: string | null;
  /** Milliseconds from sending the request to the parsed answer. */
  latencyMs: number;
  /** What the provider said about its rate limits; null when it said nothing. */
  limits: ProviderLimits | null;
}

export interface ModelClient {
  /**
   * One model call, tried once: retries belong to the worker, which journals them.
   *
   * @throws ProviderError always, and nothing else. `aborted` if and only if `signal` fired first.
   */
  complete(request: ModelRequest, signal: AbortSignal): Promise<ModelAnswer>;
}

export interface ModelClientOptions {
  /** Sent to `baseUrl` and to nowhere else. Local servers that need none take any non-empty text. */
  apiKey: string;
  /** Root of an OpenAI-compatible API, for example `http://127.0.0.1:11434/v1`; null is OpenAI's own. */
  baseUrl: string | null;
  /** From sending the request to the last byte of the answer. */
  timeoutMs: number;
  /** Replaces the transport, for example with one that refuses private addresses. */
  fetch?: typeof fetch;
}

// Building an SDK client costs some 40 resource objects; a platform has many tenants' keys but few of them at a time.
const MAX_CACHED_CLIENTS = 500;
const clients = new Map<string, ModelClient>();

/**
 * A client for any OpenAI-compatible endpoint, cached per base URL, key and time limit (least recently used leave).
 *
 * Parameters that a model refuses by name (`temperature` and `max_tokens` on reasoning models) are left out after the
 * first 400 that says so, in the same call, and remembered for the client's life.
 */
export function openAiModelClient(options: ModelClientOptions): ModelClient {
  if (options.fetch) return new OpenAiModelClient(options);
  // The key is hashed so that a heap dump or a debugger's listing of this map is not a list of keys.
  const id = createHash('sha256')
    .update(JSON.stringify([options.baseUrl, options.timeoutMs, options.apiKey]))
    .digest('base64');
  const cached = clients.get(id);
  if (cached) clients.delete(id);
  const client = cached ?? new OpenAiModelClient(options);
  clients.set(id, client);
  if (clients.size > MAX_CACHED_CLIENTS) {
    const oldest = clients.keys().next();
    if (!oldest.done) clients.delete(oldest.value);
  }
  return client;
}

class OpenAiModelClient implements ModelClient {
  readonly #sdk: OpenAI;
  readonly #apiKey: string;
  readonly #timeoutMs: number;
  readonly #tokenLimitName: 'max_completion_tokens' | 'max_tokens';
  /** Per model, the parameters that it refused. */
  readonly #refused = new Map<string, Set<string>>();

  constructor(options: ModelClientOptions) {
    this.#apiKey = options.apiKey;
    this.#timeoutMs = options.timeoutMs;
    // OpenAI deprecates max_tokens and its reasoning models refuse it; most compatible servers know no other name.
    this.#tokenLimitName =
      apiRoot(options.baseUrl) === DEFAULT_BASE_URL ? 'max_completion_tokens' : 'max_tokens';
    this.#sdk = openAiSdk(options);
  }

  async complete(request: ModelRequest, signal: AbortSignal): Promise<ModelAnswer> {
    // One controller and one timer instead of AbortSignal.any and AbortSignal.timeout: those stay referenced by a
    // long-lived run's signal until it is collected.
    const call = new AbortController();
    let timedOut = false;
    const onAbort = () => call.abort();
    const timer = setTimeout(() => {
      timedOut = true;
      call.abort();
    }, this.#timeoutMs);
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      if (signal.aborted) throw new APIUserAbortError();
      const started = performance.now();
      let limits: ProviderLimits | null = null;
      const body = await this.#send(request, call.signal, (headers) => {
        limits = providerLimits(headers, Date.now());
      });
      const latencyMs = Math.round(performance.now() - started);
      return readChatAnswer(body, { request, latencyMs, apiKey: this.#apiKey, limits });
    } catch (error) {
      if (error instanceof ProviderError) throw error;
      throw errorFromThrown(error, {
        apiKey: this.#apiKey,
        aborted: signal.aborted && !timedOut,
        timedOutAfterMs: timedOut ? this.#timeoutMs : null,
      });
    } finally {
      clearTimeout(timer);
      signal.removeEventListener('abort', onAbort);
    }
  }

  async #send(
    request: ModelRequest,
    signal: AbortSignal,
    onHeaders: (headers: Headers) => void,
  ): Promise<unknown> {
    for (let tries = 0; ; tries++) {
      const headers = {
        'idempotency-key': tries ? `${request.idempotencyKey}-${tries}` : request.idempotencyKey,
      };
      try {
        return await this.#sdk.chat.completions.create(this.#body(request), {
          headers,
          fetchOptions: { callSignal: signal, onHeaders } satisfies CallOptions as object,
        });
      } catch (error) {
        // A refused parameter is a 400: nothing was computed or paid, so asking again here doubles nothing.
        if (tries > 2 || !(error instanceof StatusError) || !this.#learn(request, error)) throw error;
      }
    }
  }

  /** Notes the parameter that a 400 names; false when it names none that can be left out. */
  #learn(request: ModelRequest, error: StatusError): boolean {
    const parameter = error.refusedParameter();
    if (!parameter || !(parameter in this.#body(request))) return false;
    const refused = this.#refused.get(request.model) ?? new Set();
    refused.add(parameter);
    this.#refused.set(request.model, refused);
    return true;
  }

  #body(request: ModelRequest): ChatCompletionCreateParamsNonStreaming {
    const refused = this.#refused.get(request.model);
    const body: Record<string, unknown> = { model: request.model, messages: request.messages };
    if (request.tools?.length) {
      body.tools = request.tools;
      if (request.toolChoice) body.tool_choice = request.toolChoice;
    }
    if (request.temperature !== undefined && !refused?.has('temperature'))
      body.temperature = request.temperature;
    if (request.maxTokens !== undefined) {
      const other = this.#tokenLimitName === 'max_tokens' ? 'max_completion_tokens' : 'max_tokens';
      const name = refused?.has(this.#tokenLimitName) ? other : this.#tokenLimitName;
      if (!refused?.has(name)) body[name] = request.maxTokens;
    }
    return body as unknown as ChatCompletionCreateParamsNonStreaming;
  }
}
