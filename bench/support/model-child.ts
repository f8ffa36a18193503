/** A model server that answers at once, in a process of its own: prints its port, ends with its input. */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { completionJson } from './model-answer.ts';

const delayMs = Number(process.argv[2] ?? 0);
const body = completionJson();
const server = createServer((request, response) => {
  request.resume();
  request.on('end', () => {
    const answer = (): void => {
      response.writeHead(200, {
        'content-type': 'application/json',
        'content-length': Buffer.byteLength(body),
      });
      response.end(body);
    };
    if (delayMs > 0) setTimeout(answer, delayMs);
    else answer();
  });
});
server.keepAliveTimeout = 60_000;
server.listen(0, '127.0.0.1', () => {
  console.log(JSON.stringify({ port: (server.address() as AddressInfo).port }));
});
process.on('SIGTERM', () => process.exit(0));
