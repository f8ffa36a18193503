/** A scripted tool server (MCP over Streamable HTTP) that writes down everything that it is sent. */
import { once } from 'node:events';
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export type McpRequest = {
  readonly method: string;
  readonly id: number | string | null;
  // biome-ignore lint/suspicious/noExplicitAny: whatever the client sends; tests look into it
  readonly params: any;
  readonly headers: IncomingHttpHeaders;
};

/** A result, a JSON-RPC error, or an HTTP answer. `hang` never answers. */
export type McpAnswer =
  | { readonly result: unknown }
  | { readonly error: { readonly code: number; readonly message: string } }
  | { readonly status: number; readonly headers?: Record<string, string>; readonly body?: string }
  | { readonly hang: true };

export type McpServer = {
  readonly url: string;
  readonly port: number;
  readonly origin: string;
  /** Listed from now on. */
  tools: unknown[];
  /** Answers calls of tools; the default says their name. */
  call: (request: McpRequest) => McpAnswer | Promise<McpAnswer>;
  /** Answers anything before the usual answers do; null leaves it to them. */
  before: (request: McpRequest) => McpAnswer | null;
  /** Everything that came, in order. */
  readonly requests: McpRequest[];
  /** Calls of tools that came. */
  calls(): McpRequest[];
  /** The `count`th request that fits, whether it has come or will. */
  waitFor(fits: (request: McpRequest) => boolean, count?: number): Promise<McpRequest>;
  /** Sends a notification to all who listen; resolves when somebody does. */
  notify(method: string): Promise<void>;
  /** Those that were begun and not ended. */
  readonly sessions: ReadonlySet<string>;
  /** Forgets all sessions. */
  forget(): void;
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
};

/** A tool of a server, without arguments unless given. */
export function serverTool(name: string, more: Record<string, unknown> = {}): Record<string, unknown> {
  return { name, description: `The tool ${name}.`, inputSchema: { type: 'object', properties: {} }, ...more };
}

export const textResult = (text: string): McpAnswer => ({ result: { content: [{ type: 'text', text }] } });

export async function startMcpServer(tools: unknown[] = []): Promise<McpServer> {
  const requests: McpRequest[] = [];
  const waiting = new Set<() => void>();
  const streams = new Set<ServerResponse>();
  const sessions = new Set<string>();
  const changed = (): void => {
    for (const wake of waiting) wake();
  };
  let made = 0;

  const http = createServer((incoming, response) => {
    exchange(incoming, response).catch(() => response.destroy());
  });

  async function exchange(incoming: IncomingMessage, response: ServerResponse): Promise<void> {
    if (incoming.method === 'GET') {
      response.writeHead(200, { 'content-type': 'text/event-stream' }).flushHeaders();
      streams.add(response);
      response.once('close', () => streams.delete(response));
      changed();
      return;
    }
    if (incoming.method === 'DELETE') {
      sessions.delete(String(incoming.headers['mcp-session-id']));
      response.writeHead(204).end();
      return;
    }
    let text = '';
    for await (const piece of incoming) text += String(piece);
    const message = JSON.parse(text) as { id?: number | string; method?: string; params?: unknown };
    const request: McpRequest = {
      method: message.method ?? '',
      id: message.id ?? null,
      params: message.params ?? {},
      headers: incoming.headers,
    };
    requests.push(request);
    changed();
    const answer = server.before(request) ?? (await usual(request, response));
    if (answer === null) return void response.writeHead(202).end();
    if ('hang' in answer) return;
    if ('status' in answer) {
      response
        .writeHead(answer.status, { 'content-type': 'text/plain', ...answer.headers })
        .end(answer.body ?? '');
      return;
    }
    response
      .writeHead(200, { 'content-type': 'application/json' })
      .end(JSON.stringify({ jsonrpc: '2.0', id: request.id, ...answer }));
  }

  async function usual(request: McpRequest, response: ServerResponse): Promise<McpAnswer | null> {
    if (request.id === null) return null;
    if (request.method === 'initialize') {
      const session = `session-${++made}`;
      sessions.add(session);
      response.setHeader('mcp-session-id', session);
      return {
        result: {
          protocolVersion: request.params.protocolVersion,
          capabilities: { tools: { listChanged: true } },
          serverInfo: { name: 'scripted', version: '1' },
        },
      };
    }
    if (request.method === 'server/discover') return { error: { code: -32601, message: 'Method not found' } };
    if (!sessions.has(String(request.headers['mcp-session-id']))) return { status: 404 };
    if (request.method === 'tools/list') return { result: { tools: server.tools } };
    if (request.method === 'tools/call') return server.call(request);
    return { error: { code: -32601, message: 'Method not found' } };
  }

  http.listen(0, '127.0.0.1');
  await once(http, 'listening');
  const { port } = http.address() as AddressInfo;
  const close = async (): Promise<void> => {
    if (!http.listening) return;
    http.close();
    http.closeAllConnections();
    await once(http, 'close');
  };
  const server: McpServer = {
    url: `http://127.0.0.1:${port}/mcp`,
    origin: `http://127.0.0.1:${port}`,
    port,
    tools,
    call: ({ params }) => textResult(`called ${params.name}`),
    before: () => null,
    requests,
    sessions,
    calls: () => requests.filter(({ method }) => method === 'tools/call'),
    async waitFor(fits, count = 1) {
      for (;;) {
        const found = requests.filter(fits)[count - 1];
        if (found) return found;
        await woken();
      }
    },
    async notify(method) {
      while (streams.size === 0) await woken();
      for (const stream of streams) stream.write(`data: ${JSON.stringify({ jsonrpc: '2.0', method })}\n\n`);
    },
    forget: () => sessions.clear(),
    close,
    [Symbol.asyncDispose]: close,
  };
  return server;

  function woken(): Promise<void> {
    return new Promise((resolve) => {
      const wake = (): void => {
        waiting.delete(wake);
        resolve();
      };
      waiting.add(wake);
    });
  }
}
