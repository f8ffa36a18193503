/** A tool server (MCP) over plain HTTP that behaves as a test says, path by path: well, badly, or not at all. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { setTimeout as pause } from 'node:timers/promises';
import { type Page, startWebServer } from './web-server.ts';

type Message = {
  readonly id?: unknown;
  readonly method?: string;
  readonly params?: { readonly cursor?: string; readonly protocolVersion?: string };
};

/** Answers `tools/list`; what it returns is sent as the result, unless it answers by itself and returns nothing. */
export type Lists = (asked: {
  readonly message: Message;
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
}) => unknown;

export type HostileMcp = {
  /** `http://127.0.0.1:port` */
  readonly origin: string;
  /** `127.0.0.1:port`, as AGENTD_ALLOWED_PRIVATE_HOSTS has it. */
  readonly host: string;
  /** A server at that path that shakes hands as it should; returns its URL. */
  serve(path: string, lists: Lists): string;
  /** A server at that path that does nothing but what the page does; returns its URL. */
  raw(path: string, page: Page): string;
  /** `tools/list` requests, by path. */
  readonly listings: Map<string, { readonly authorization: string | null; readonly at: number }[]>;
  [Symbol.asyncDispose](): Promise<void>;
};

export async function startHostileMcp(): Promise<HostileMcp> {
  const web = await startWebServer();
  const listings: HostileMcp['listings'] = new Map();
  return {
    origin: web.origin,
    host: `127.0.0.1:${web.port}`,
    listings,
    raw(path, page) {
      web.pages.set(path, page);
      return web.origin + path;
    },
    serve(path, lists) {
      web.pages.set(path, (request, response) => {
        void answer(request, response, (asked) => {
          const before = listings.get(path) ?? [];
          const { authorization = null } = request.headers;
          listings.set(path, [...before, { authorization, at: performance.now() }]);
          return lists(asked);
        });
      });
      return web.origin + path;
    },
    [Symbol.asyncDispose]: () => web.close(),
  };
}

async function answer(request: IncomingMessage, response: ServerResponse, lists: Lists): Promise<void> {
  if (request.method !== 'POST') {
    response.writeHead(request.method === 'DELETE' ? 200 : 405).end();
    return;
  }
  let text = '';
  for await (const part of request) text += part;
  const message = JSON.parse(text) as Message;
  if (message.id === undefined) {
    response.writeHead(202).end();
    return;
  }
  if (message.method === 'initialize') {
    return send(response, message.id, {
      protocolVersion: message.params?.protocolVersion ?? '2025-06-18',
      capabilities: { tools: { listChanged: false } },
      serverInfo: { name: 'peer', version: '1.0.0' },
    });
  }
  if (message.method !== 'tools/list') {
    const error = { code: -32601, message: 'Method not found' };
    response.writeHead(200, { 'content-type': 'application/json' });
    response.end(JSON.stringify({ jsonrpc: '2.0', id: message.id, error }));
    return;
  }
  const result = await lists({ message, request, response });
  if (result !== undefined && !response.writableEnded) send(response, message.id, result);
}

/** Sends a result as JSON. */
export function send(response: ServerResponse, id: unknown, result: unknown): void {
  response.writeHead(200, { 'content-type': 'application/json' });
  response.end(JSON.stringify({ jsonrpc: '2.0', id, result }));
}

/** A tool that nobody can object to. */
export function plainTool(
  name: string,
  more: Readonly<Record<string, unknown>> = {},
): Record<string, unknown> {
  return {
    name,
    description: `Does ${name}.`,
    inputSchema: { type: 'object', properties: { text: { type: 'string' } }, required: ['text'] },
    ...more,
  };
}

/** Never answers, and keeps the connection. */
export const hangs: Page = () => {};

/** Answers with a head and then a few bytes now and then, for ever: comments of a stream of events, or the white space before a value. */
export function dribbles(contentType: 'text/event-stream' | 'application/json'): Page {
  const piece = contentType === 'text/event-stream' ? ': still here\n\n' : ' ';
  return (_request, response) => {
    response.writeHead(200, { 'content-type': contentType });
    void (async () => {
      while (!response.closed) {
        response.write(piece);
        await pause(50);
      }
    })();
  };
}

/** A head, the beginning of a body, and the end of the connection. */
export function cutOff(status: number): Page {
  return (_request, response) => {
    response.writeHead(status, { 'content-type': 'application/json', 'content-length': 1000 });
    response.write('{"jsonrpc": ', () => response.destroy());
  };
}

/** That many bytes of a body without an end in sight. */
export function floods(contentType: string, bytes: number): Page {
  return (_request, response) => {
    response.writeHead(200, { 'content-type': contentType });
    const part = Buffer.alloc(65_536, 'a');
    let left = bytes;
    const more = (): void => {
      while (left > 0) {
        left -= part.length;
        if (!response.write(part)) {
          response.once('drain', more);
          return;
        }
      }
      response.end();
    };
    more();
  };
}
