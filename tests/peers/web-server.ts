/** A web site on loopback: what it answers is the test's to say, request by request. */
import { once } from 'node:events';
import {
  createServer as createPlain,
  type IncomingMessage,
  type RequestListener,
  type ServerResponse,
} from 'node:http';
import { createServer as createSecure, type ServerOptions } from 'node:https';
import type { AddressInfo } from 'node:net';

export type Page = (request: IncomingMessage, response: ServerResponse) => void;

export type WebServer = {
  /** `http://127.0.0.1:port`, or with https. */
  readonly origin: string;
  readonly port: number;
  /** By path; what is not here is a 404, robots.txt among it. */
  readonly pages: Map<string, Page>;
  readonly requests: { readonly path: string; readonly headers: IncomingMessage['headers'] }[];
  /** Connections that were ever made to it. */
  readonly connections: number;
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
};

export async function startWebServer(
  options: { readonly host?: string; readonly port?: number; readonly tls?: ServerOptions } = {},
): Promise<WebServer> {
  const listener: RequestListener = (request, response) => {
    response.on('error', () => {});
    const path = request.url ?? '';
    server.requests.push({ path, headers: request.headers });
    const page = server.pages.get(path.split('?')[0] ?? '');
    if (page) page(request, response);
    else response.writeHead(404).end('no such page');
  };
  const http = options.tls ? createSecure(options.tls, listener) : createPlain(listener);
  let connections = 0;
  http.on('connection', (socket) => {
    connections++;
    socket.on('error', () => {});
  });
  const host = options.host ?? '127.0.0.1';
  http.listen(options.port ?? 0, host);
  await once(http, 'listening');
  const { port } = http.address() as AddressInfo;
  const server: WebServer = {
    origin: `${options.tls ? 'https' : 'http'}://${host}:${port}`,
    port,
    pages: new Map(),
    requests: [],
    get connections() {
      return connections;
    },
    async close() {
      const closed = once(http, 'close');
      http.close();
      http.closeAllConnections();
      await closed;
    },
    [Symbol.asyncDispose]: () => server.close(),
  };
  return server;
}

/** A page of fixed bytes. */
export function page(body: string | Uint8Array, headers: Record<string, string> = {}, status = 200): Page {
  return (_request, response) => {
    response.writeHead(status, { 'content-type': 'text/html; charset=utf-8', ...headers }).end(body);
  };
}

export function redirect(location: string, status = 302): Page {
  // Headers are bytes: what is beyond ASCII goes out as UTF-8.
  const bytes = Buffer.from(location).toString('latin1');
  return (_request, response) => void response.writeHead(status, { location: bytes }).end('moved');
}
