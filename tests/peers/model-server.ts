import { once } from 'node:events';
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { loadModelCatalog } from '../../src/providers/model-catalog.ts';
import type { ChatMessage, ToolDefinition } from '../../src/providers/models.ts';
import { chatRequestFault } from './chat-rules.ts';
import { EnforcedLimits, type RateLimits } from './rate-limits.ts';

export { validateChatRequest } from './chat-rules.ts';

/** One answer. Without any field: an answer with empty content. */
export interface Scripted {
  content?: string;
  /** Ids are made when left out: `call_<number>`, unique in the server's life. */
  toolCalls?: { id?: string; name: string; arguments: string | object }[];
  refusal?: string;
  /** `stop`, or `tool_calls` when there are some. */
  finishReason?: string;
  /** Made from the lengths when left out; null sends none. */
  usage?: { promptTokens: number; completionTokens: number; cachedTokens?: number } | null;
  /** An HTTP error in OpenAI's shape with `error` as its fields, or with `body` as it is. */
  status?: number;
  error?: { message?: string; type?: string; code?: string | null; param?: string | null };
  headers?: Record<string, string>;
  /** Sent raw instead of a completion. */
  body?: string;
  /** Answer when it resolves. */
  delay?: Promise<void>;
  /** Never answer; ends with {@link ModelServer.close} or the client. */
  hang?: boolean;
  /** Cut the connection without an answer. */
  drop?: boolean;
}

export interface ChatBody {
  model: string;
  messages: ChatMessage[];
  tools?: ToolDefinition[];
  tool_choice?: unknown;
  temperature?: number;
  max_tokens?: number;
  max_completion_tokens?: number;
}

export interface RecordedRequest {
  path: string;
  headers: IncomingHttpHeaders;
  /** The bearer token, or null. */
  apiKey: string | null;
  idempotencyKey: string | null;
  /** As parsed; for a refused request it may have any shape. */
  body: ChatBody;
  /** The last user message's text, or ''. */
  userText: string;
  /** Resolves when the exchange is over, with true if the client went away before its answer was complete. */
  finished: Promise<boolean>;
}

export type ModelHandler = (request: RecordedRequest, index: number) => Scripted | Promise<Scripted>;

export interface ModelServer {
  /** `http://127.0.0.1:<port>/v1` */
  readonly url: string;
  readonly apiKey: string;
  /** Every request in order of arrival, refused ones among them. */
  readonly requests: RecordedRequest[];
  /** What the server refused by itself (400, 401, 404), never what a script answered: tests assert that it stays empty. */
  readonly rejected: { status: number; message: string }[];
  /** What it let through and refused under {@link ModelServerOptions.limits}; not among `rejected`. */
  readonly limits: EnforcedLimits;
  /** Answers all further requests; `index` counts the accepted requests since this call, from 0. */
  respond(handler: ModelHandler): void;
  /** The `count`th request (1 is the first) that fits, whether it has come or will. */
  waitForRequest(predicate?: (request: RecordedRequest) => boolean, count?: number): Promise<RecordedRequest>;
  close(): Promise<void>;
}

export interface ModelServerOptions {
  /** Keys that are taken; the first is {@link ModelServer.apiKey}. */
  apiKeys?: string[];
  /** Models beside those of the catalog's `openai`. */
  models?: string[];
  /** Refuse longer conversations (a token is taken for four characters), as a small model would. */
  contextTokens?: number;
  /** Enforced for all keys and models together, before any script is asked; no limits when left out. */
  limits?: RateLimits;
  /** Forget requests once they are answered: for measurements of many. */
  forgets?: boolean;
}

/**
 * A chat completions server as strict as the real one: what that would answer with 400, 401 or 404 this one does, before
 * any script is asked. Lenient mocks accept orphaned tool messages and schemas that fail in production.
 */
export async function startModelServer(options: ModelServerOptions = {}): Promise<ModelServer> {
  const keys = options.apiKeys ?? ['sk-test-4f7Qm2vXc9Lr8TzK1bNw'];
  const catalog = loadModelCatalog();
  const requests: RecordedRequest[] = [];
  const rejected: ModelServer['rejected'] = [];
  const limits = new EnforcedLimits(options.limits ?? {});
  const waiting = new Set<() => void>();
  let handler: ModelHandler = ({ userText }) => ({ content: `echo: ${userText}` });
  let answered = 0;
  let callNumber = 0;

  const server = createServer((incoming, response) => {
    // A handler that throws is a mistake of the test: it must be seen there, not as a lost connection.
    exchange(incoming, response).catch((error: unknown) => {
      rejected.push({ status: 500, message: `The test's handler threw: ${String(error)}` });
      if (!response.headersSent) sendError(response, 500, { message: 'The handler of this server threw.' });
    });
  });

  async function exchange(incoming: IncomingMessage, response: ServerResponse): Promise<void> {
    const finished = new Promise<boolean>((resolve) => {
      response.once('close', () => resolve(!response.writableFinished));
    });
    const text = await readText(incoming);
    if (text === null) return;
    const request = record(incoming, text, finished);
    if (!options.forgets) requests.push(request);
    for (const look of waiting) look();
    const refusal = refuse(request, incoming, text);
    if (refusal) {
      rejected.push({ status: refusal.status, message: refusal.message });
      sendError(response, refusal.status, refusal);
      return;
    }
    const tokens = tokensOf(JSON.stringify(request.body.messages));
    const most = request.body.max_completion_tokens ?? request.body.max_tokens ?? 0;
    const wait = limits.take(limits.counts === 'used' ? tokens : Math.max(tokens, most));
    if (wait !== null) {
      const said = `Rate limit reached for ${request.body.model}. Please try again in ${wait}ms.`;
      const headers = { 'retry-after-ms': String(wait), 'retry-after': String(Math.ceil(wait / 1000)) };
      sendError(
        response,
        429,
        { message: said, type: 'requests', code: 'rate_limit_exceeded' },
        { ...headers, ...limits.headers() },
      );
      return;
    }
    // as they were when the request was let through
    const limitHeaders = limits.headers();
    const script = await handler(request, answered++);
    if (script.delay) await script.delay;
    if (script.hang) return;
    if (script.drop) {
      incoming.socket.destroy();
      return;
    }
    answer(response, request, { ...script, headers: { ...limitHeaders, ...script.headers } });
  }

  function refuse(request: RecordedRequest, incoming: IncomingMessage, text: string): Refusal | null {
    const path = `${incoming.method} ${request.path}`;
    if (path !== 'POST /v1/chat/completions') return { status: 404, message: `Invalid URL (${path})` };
    if (request.apiKey === null || !keys.includes(request.apiKey)) return keyRefusal(request.apiKey);
    if (!/^application\/json\b/.test(incoming.headers['content-type'] ?? '')) {
      return {
        status: 400,
        message: 'We could not parse the body: send it with content-type application/json.',
      };
    }
    const fault = chatRequestFault(request.body);
    if (fault) return { status: 400, ...fault };
    const { model } = request.body;
    const known = catalog.model('openai', model);
    if (!known && !options.models?.includes(model)) {
      const message = `The model \`${model}\` does not exist or you do not have access to it.`;
      return { status: 404, message, code: 'model_not_found' };
    }
    const limit = request.body.max_completion_tokens ?? request.body.max_tokens;
    if (known && limit && limit > known.maxOutputTokens) {
      const message = `max_tokens is too large: ${limit}. This model supports at most ${known.maxOutputTokens} completion tokens.`;
      return { status: 400, message, param: 'max_tokens', code: 'invalid_value' };
    }
    const window = options.contextTokens ?? known?.contextWindow;
    const tokens = tokensOf(text);
    if (window && tokens > window) {
      const message = `This model's maximum context length is ${window} tokens. However, your messages resulted in ${tokens} tokens. Please reduce the length of the messages.`;
      return { status: 400, message, param: 'messages', code: 'context_length_exceeded' };
    }
    return null;
  }

  function answer(response: ServerResponse, request: RecordedRequest, script: Scripted): void {
    const status = script.status ?? 200;
    if (script.body !== undefined) {
      response.writeHead(status, { 'content-type': 'application/json', ...script.headers });
      response.end(script.body);
      return;
    }
    if (status >= 300) {
      sendError(response, status, { message: `Scripted ${status}`, ...script.error }, script.headers);
      return;
    }
    const toolCalls = script.toolCalls?.map((call) => ({
      id: call.id ?? `call_${++callNumber}`,
      type: 'function',
      function: {
        name: call.name,
        arguments: typeof call.arguments === 'string' ? call.arguments : JSON.stringify(call.arguments),
      },
    }));
    const content = script.content ?? (toolCalls || script.refusal !== undefined ? null : '');
    const message = {
      role: 'assistant',
      content,
      refusal: script.refusal ?? null,
      ...(toolCalls ? { tool_calls: toolCalls } : {}),
    };
    const finish_reason = script.finishReason ?? (toolCalls ? 'tool_calls' : 'stop');
    const completion = {
      id: `chatcmpl-${requests.indexOf(request) + 1}`,
      object: 'chat.completion',
      created: 1_750_000_000,
      model: request.body.model,
      choices: [{ index: 0, message, logprobs: null, finish_reason }],
      ...usageOf(script, request, JSON.stringify(message)),
    };
    if (limits.counts === 'used') limits.takeTokens(completion.usage?.completion_tokens ?? 0);
    response.writeHead(status, {
      'content-type': 'application/json',
      'x-request-id': completion.id,
      ...script.headers,
    });
    response.end(JSON.stringify(completion));
  }

  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}/v1`,
    apiKey: keys[0] ?? '',
    requests,
    rejected,
    limits,
    respond(next) {
      handler = next;
      answered = 0;
    },
    waitForRequest(predicate = () => true, count = 1) {
      return new Promise((resolve) => {
        const look = () => {
          const found = requests.filter(predicate)[count - 1];
          if (!found) return;
          waiting.delete(look);
          resolve(found);
        };
        waiting.add(look);
        look();
      });
    },
    async close() {
      const closed = once(server, 'close');
      server.close();
      server.closeAllConnections();
      await closed;
    },
  };
}

interface Refusal {
  status: number;
  message: string;
  code?: string | null;
  param?: string | null;
}

/** Echoes a part of the key, as OpenAI does: tests that search for leaked keys need a provider that leaks. */
function keyRefusal(key: string | null): Refusal {
  const shown =
    key === null ? null : `${key.slice(0, 8)}${'*'.repeat(Math.max(4, key.length - 12))}${key.slice(-4)}`;
  return shown === null
    ? { status: 401, message: "You didn't provide an API key in an Authorization header." }
    : {
        status: 401,
        message: `Incorrect API key provided: ${shown}. You can find your API key at https://platform.openai.com/account/api-keys.`,
        code: 'invalid_api_key',
      };
}

function sendError(
  response: ServerResponse,
  status: number,
  error: { message?: string; type?: string; code?: string | null; param?: string | null },
  headers: Record<string, string> = {},
): void {
  const { message = '', type = 'invalid_request_error', param = null, code = null } = error;
  response.writeHead(status, { 'content-type': 'application/json', ...headers });
  response.end(JSON.stringify({ error: { message, type, param, code } }));
}

function record(incoming: IncomingMessage, text: string, finished: Promise<boolean>): RecordedRequest {
  const body = parse(text) as ChatBody;
  const authorization = incoming.headers.authorization;
  const key = incoming.headers['idempotency-key'];
  return {
    path: incoming.url ?? '',
    headers: incoming.headers,
    apiKey: authorization?.startsWith('Bearer ') ? authorization.slice(7) : null,
    idempotencyKey: typeof key === 'string' ? key : null,
    body,
    userText: lastUserText(body),
    finished,
  };
}

function lastUserText(body: ChatBody | null): string {
  const messages = Array.isArray(body?.messages) ? body.messages : [];
  const last = messages.findLast((message) => message?.role === 'user');
  if (!last?.content) return '';
  if (typeof last.content === 'string') return last.content;
  return last.content.map((part) => (part.type === 'text' ? part.text : '')).join('');
}

function usageOf(
  script: Scripted,
  request: RecordedRequest,
  answer: string,
): { usage?: Record<string, unknown> & { completion_tokens: number } } {
  if (script.usage === null) return {};
  const promptTokens = script.usage?.promptTokens ?? tokensOf(JSON.stringify(request.body.messages));
  const completionTokens = script.usage?.completionTokens ?? tokensOf(answer);
  return {
    usage: {
      prompt_tokens: promptTokens,
      completion_tokens: completionTokens,
      total_tokens: promptTokens + completionTokens,
      prompt_tokens_details: { cached_tokens: script.usage?.cachedTokens ?? 0 },
    },
  };
}

function tokensOf(text: string): number {
  return Math.ceil(text.length / 4);
}

/** Null when the client went away before it had sent all. */
async function readText(incoming: IncomingMessage): Promise<string | null> {
  const parts: Buffer[] = [];
  try {
    for await (const part of incoming) parts.push(part as Buffer);
  } catch {
    return null;
  }
  return Buffer.concat(parts).toString('utf8');
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
