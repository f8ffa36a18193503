/**
 * An embeddings server as strict as the real one: what that would refuse this one does, before any script is asked. It counts what is
 * paid for. Its vectors are made from the text alone.
 */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { loadEmbeddingCatalog } from '../../src/providers/embedding-models.ts';
import { type EmbeddingBody, embeddingRequestFault, tokensOf } from './embedding-rules.ts';
import { type EmbeddingItem, embeddingItem } from './embedding-vectors.ts';
import { EnforcedLimits, type RateLimits } from './rate-limits.ts';

export { vectorOf } from './embedding-vectors.ts';

/** One answer. Without any field: the right one. */
export type ScriptedEmbedding = {
  /** An HTTP error in OpenAI's shape with `error` as its fields. */
  status?: number;
  error?: { message?: string; type?: string; code?: string | null; param?: string | null };
  headers?: Record<string, string>;
  /** Sent raw. */
  body?: string;
  /** Changes the list of `{ object, index, embedding }` before it is sent. */
  data?: (items: EmbeddingItem[]) => unknown;
  /** Vectors of so many dimensions, whatever was asked for. */
  dimensions?: number;
  /** Changes the text's vector. */
  vector?: (text: string, numbers: number[]) => (number | null)[];
  usage?: null;
  /** Answer when it resolves. */
  delay?: Promise<void>;
  /** Never answer; ends with close() or the client. */
  hang?: boolean;
  /** Cut the connection without an answer. */
  drop?: boolean;
};

export type EmbeddingRequest = {
  /** The bearer token, or null. */
  readonly apiKey: string | null;
  /** As parsed; of a refused request it may have any shape. */
  readonly body: EmbeddingBody;
  readonly texts: readonly string[];
  readonly tokens: number;
};

export type EmbeddingHandler = (
  request: EmbeddingRequest,
  index: number,
) => ScriptedEmbedding | Promise<ScriptedEmbedding>;

export type EmbeddingServer = {
  /** `http://127.0.0.1:<port>/v1` */
  readonly url: string;
  readonly apiKey: string;
  /** Every request in order of arrival, refused ones among them. */
  readonly requests: readonly EmbeddingRequest[];
  /** What it answered with vectors: what a provider sends a bill for. */
  readonly paid: { requests: number; items: number; tokens: number; readonly times: Map<string, number> };
  /** What it refused by its own rules (400, 401, 404), never what a script or a limit did: tests assert that it stays empty. */
  readonly rejected: { status: number; message: string }[];
  readonly limits: EnforcedLimits;
  /** Requests that are being answered now, and the most there were at once. */
  readonly open: number;
  readonly mostOpen: number;
  /** Answers all further requests; `index` counts the accepted requests since this call, from 0. */
  respond(handler: EmbeddingHandler): void;
  /** Resolves when so many requests have come. */
  waitForRequests(count: number): Promise<void>;
  close(): Promise<void>;
};

export type EmbeddingServerOptions = {
  /** Keys that are taken; the first is {@link EmbeddingServer.apiKey}. */
  readonly apiKeys?: string[];
  /** Models beside those that are known, with the dimensions that they make. */
  readonly models?: Readonly<Record<string, number>>;
  /** A compatible server that knows only lists of numbers: it ignores `encoding_format`, or refuses it. */
  readonly base64?: 'ignored' | 'refused';
  /** Whether models beside the known ones take `dimensions`: taken (the default), or refused with a 400. */
  readonly refusesDimensions?: boolean;
  readonly limits?: RateLimits;
  /** Of the limits; milliseconds. */
  readonly now?: () => number;
  /** Forget requests and texts: for measurements of many. */
  readonly forgets?: boolean;
};

export async function startEmbeddingServer(options: EmbeddingServerOptions = {}): Promise<EmbeddingServer> {
  const keys = options.apiKeys ?? ['sk-test-8Zk2mQx7Vb4Lr9TcN1wY'];
  const catalog = loadEmbeddingCatalog();
  const requests: EmbeddingRequest[] = [];
  const rejected: EmbeddingServer['rejected'] = [];
  const paid = { requests: 0, items: 0, tokens: 0, times: new Map<string, number>() };
  const limits = new EnforcedLimits(options.limits ?? {}, options.now);
  const waiting = new Set<() => void>();
  let handler: EmbeddingHandler = () => ({});
  let accepted = 0;
  let arrived = 0;
  let open = 0;
  let mostOpen = 0;

  const server = createServer((incoming, response) => {
    open++;
    mostOpen = Math.max(mostOpen, open);
    response.once('close', () => open--);
    exchange(incoming, response).catch((error: unknown) => {
      // a mistake of the test: it must be seen there
      rejected.push({ status: 500, message: `The test's handler threw: ${String(error)}` });
      response.destroy();
    });
  });

  async function exchange(incoming: IncomingMessage, response: ServerResponse): Promise<void> {
    const text = await readText(incoming);
    if (text === null) return;
    const request = record(incoming, text);
    arrived++;
    if (!options.forgets) requests.push(request);
    for (const look of waiting) look();
    const refusal = refuse(request, incoming);
    if (refusal) {
      rejected.push(refusal);
      sendError(response, refusal.status, refusal);
      return;
    }
    if (limit(request, response)) return;
    const limitHeaders = limits.headers();
    const script = await handler(request, accepted++);
    if (script.delay) await script.delay;
    if (script.hang) return;
    if (script.drop) {
      incoming.socket.destroy();
      return;
    }
    const headers = { 'content-type': 'application/json', ...limitHeaders, ...script.headers };
    if (script.status !== undefined && script.status >= 300) {
      sendError(response, script.status, { message: `Scripted ${script.status}`, ...script.error }, headers);
      return;
    }
    const body = script.body ?? answer(request, script);
    paid.requests++;
    paid.items += request.texts.length;
    paid.tokens += request.tokens;
    if (!options.forgets)
      for (const one of request.texts) paid.times.set(one, (paid.times.get(one) ?? 0) + 1);
    response.writeHead(200, headers);
    response.end(body);
  }

  function refuse(
    request: EmbeddingRequest,
    incoming: IncomingMessage,
  ): { status: number; message: string; param?: string | null; code?: string | null } | null {
    const path = `${incoming.method} ${incoming.url}`;
    if (path !== 'POST /v1/embeddings') return { status: 404, message: `Invalid URL (${path})` };
    if (request.apiKey === null || !keys.includes(request.apiKey)) {
      const shown = `${request.apiKey?.slice(0, 8)}****${request.apiKey?.slice(-4)}`;
      return { status: 401, message: `Incorrect API key provided: ${shown}.`, code: 'invalid_api_key' };
    }
    if (!/^application\/json\b/.test(incoming.headers['content-type'] ?? '')) {
      return { status: 400, message: 'Send the body with content-type application/json.' };
    }
    const fault = embeddingRequestFault(request.body, catalog);
    if (fault) return { status: 400, ...fault };
    const { model, encoding_format: format, dimensions } = request.body;
    if (!catalog.model(model) && !(options.models && model in options.models)) {
      const message = `The model \`${model}\` does not exist or you do not have access to it.`;
      return { status: 404, message, code: 'model_not_found' };
    }
    if (options.base64 === 'refused' && format === 'base64') {
      return { status: 400, message: "Invalid value for 'encoding_format': 'base64' is not supported." };
    }
    if (options.refusesDimensions && dimensions !== undefined) {
      return { status: 400, message: 'Model does not support matryoshka representation.' };
    }
    return null;
  }

  /** Whether the limits have refused it. */
  function limit(request: EmbeddingRequest, response: ServerResponse): boolean {
    const perMinute = options.limits?.tokensPerMinute;
    const headers = limits.headers();
    if (perMinute !== undefined && request.tokens > perMinute) {
      limits.refused++;
      const said = `Request too large for ${request.body.model} on tokens per min (TPM): Limit ${perMinute}, Requested ${request.tokens}.`;
      sendError(response, 429, { message: said, type: 'tokens', code: 'rate_limit_exceeded' }, headers);
      return true;
    }
    const wait = limits.take(request.tokens);
    if (wait === null) return false;
    const said = `Rate limit reached for ${request.body.model}. Please try again in ${wait}ms.`;
    const after = { 'retry-after-ms': String(wait), 'retry-after': String(Math.ceil(wait / 1000)) };
    sendError(
      response,
      429,
      { message: said, type: 'tokens', code: 'rate_limit_exceeded' },
      { ...after, ...limits.headers() },
    );
    return true;
  }

  function answer(request: EmbeddingRequest, script: ScriptedEmbedding): string {
    const { model, encoding_format: format, dimensions } = request.body;
    const size =
      script.dimensions ?? dimensions ?? catalog.model(model)?.dimensions ?? options.models?.[model] ?? 8;
    const isBase64 = format === 'base64' && options.base64 !== 'ignored';
    const items = request.texts.map((text, index) =>
      embeddingItem(text, index, size, isBase64, script.vector),
    );
    return JSON.stringify({
      object: 'list',
      data: script.data ? script.data(items) : items,
      model,
      ...(script.usage === null
        ? {}
        : { usage: { prompt_tokens: request.tokens, total_tokens: request.tokens } }),
    });
  }

  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}/v1`,
    apiKey: keys[0] ?? '',
    requests,
    paid,
    rejected,
    limits,
    get open() {
      return open;
    },
    get mostOpen() {
      return mostOpen;
    },
    respond(next) {
      handler = next;
      accepted = 0;
    },
    waitForRequests(count) {
      return new Promise((resolve) => {
        const look = (): void => {
          if (arrived < count) return;
          waiting.delete(look);
          resolve();
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

function record(incoming: IncomingMessage, text: string): EmbeddingRequest {
  const authorization = incoming.headers.authorization;
  let body: EmbeddingBody | null = null;
  try {
    body = JSON.parse(text) as EmbeddingBody;
  } catch {
    // refused as what it is
  }
  const input: unknown = body?.input;
  const texts = (Array.isArray(input) ? input : [input]).filter((one) => typeof one === 'string');
  return {
    apiKey: authorization?.startsWith('Bearer ') ? authorization.slice(7) : null,
    body: body as EmbeddingBody,
    texts,
    tokens: texts.reduce((sum, one) => sum + tokensOf(one), 0),
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
