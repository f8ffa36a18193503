/** A server that answers nothing but errors, and repeats in each what it was sent: headers, body and address. */
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

export type EchoServer = {
  /** `http://127.0.0.1:<port>` */
  readonly url: string;
  /** Its host and port. */
  readonly host: string;
  /** Addresses that were asked for, with the method before them. */
  readonly asked: readonly string[];
  /** Everything that was sent. */
  readonly heard: readonly string[];
  close(): Promise<void>;
};

const STATUSES = [400, 401, 500, 403, 429, 422, 404, 503, 200];

export async function startEchoServer(): Promise<EchoServer> {
  const asked: string[] = [];
  const heard: string[] = [];
  const server = createServer(async (request, response) => {
    const parts: Buffer[] = [];
    for await (const part of request) parts.push(part as Buffer);
    const said = `${request.method} ${request.url} ${JSON.stringify(request.headers)} ${Buffer.concat(parts)}`;
    const status = STATUSES[asked.length % STATUSES.length] as number;
    asked.push(`${request.method} ${request.url}`);
    heard.push(said);
    response.writeHead(status, {
      'content-type': asked.length % 2 === 0 ? 'application/json' : 'text/plain',
      'x-echo': encodeURI(request.headers.authorization ?? request.headers['api-key']?.toString() ?? ''),
      'retry-after': '1',
    });
    const error = { message: said, code: -32_602, type: said };
    response.end(
      JSON.stringify(
        asked.length % 3 === 0
          ? { error: 'invalid_grant', error_description: said }
          : { jsonrpc: '2.0', id: 1, error, message: said, detail: said },
      ),
    );
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    url: `http://${host}`,
    host,
    asked,
    heard,
    async close() {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}
