/**
 * Tool servers (MCP) of the revisions with sessions on so many ports, in a process of their own: prints the ports, ends with SIGTERM. Whatever they
 * answer takes DELAY_MS.
 *
 *     node mcp-child.ts PORTS DELAY_MS PORTS_THAT_HANG
 */
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as wait } from 'node:timers/promises';

const [ports, delayMs, hanging] = process.argv.slice(2).map(Number) as [number, number, number];
const tools = Array.from({ length: 10 }, (_, i) => ({
  name: `tool_${i}`,
  description: `Does the ${i}th thing that a tool may do, and says how it went.`,
  inputSchema: {
    type: 'object',
    properties: {
      query: { type: 'string', description: 'What to look for' },
      limit: { type: 'integer', minimum: 1, maximum: 100 },
      tags: { type: 'array', items: { type: 'string' } },
    },
    required: ['query'],
  },
}));

type Message = {
  readonly id?: unknown;
  readonly method?: string;
  readonly params?: { readonly protocolVersion?: string };
};

function serve(hangs: boolean): Promise<number> {
  const server: Server = createServer(async (request, response) => {
    if (request.method !== 'POST') return void response.writeHead(405).end();
    let text = '';
    for await (const part of request) text += part;
    const { id, method, params } = JSON.parse(text) as Message;
    if (hangs && method === 'tools/list') return;
    await wait(delayMs);
    if (id === undefined) return void response.writeHead(202).end();
    const send = (body: object): void => {
      response.writeHead(200, { 'content-type': 'application/json' });
      response.end(JSON.stringify({ jsonrpc: '2.0', id, ...body }));
    };
    if (method === 'initialize') {
      return send({
        result: {
          protocolVersion: params?.protocolVersion ?? '2025-06-18',
          capabilities: { tools: {} },
          serverInfo: { name: 'bench', version: '1' },
        },
      });
    }
    if (method !== 'tools/list') return send({ error: { code: -32601, message: 'Method not found' } });
    send({ result: { tools } });
  });
  server.keepAliveTimeout = 60_000;
  return new Promise((resolve) => {
    server.listen(0, '127.0.0.1', () => resolve((server.address() as AddressInfo).port));
  });
}

const list = (howMany: number, hangs: boolean): Promise<number[]> =>
  Promise.all(Array.from({ length: howMany }, () => serve(hangs)));
console.log(JSON.stringify({ ports: await list(ports, false), hanging: await list(hanging, true) }));
process.on('SIGTERM', () => process.exit(0));
