/**
 * A token endpoint in a process of its own: rotates every refresh token, answers after so many milliseconds, and counts. Prints its port; on
 * a line of input, what it was asked so far. Ends with SIGTERM.
 */
import { randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

export type TokenAsked = {
  readonly asked: number;
  /** Refresh tokens that came more than once. */
  readonly twice: number;
  /** Milliseconds since the epoch of the last request; 0: there was none. */
  readonly lastAt: number;
};

const delayMs = Number(process.argv[2] ?? 100);
const lifetimeSeconds = Number(process.argv[3] ?? 3_600);
const seen = new Set<string>();
let asked = 0;
let twice = 0;
let lastAt = 0;
const server = createServer((request, response) => {
  let body = '';
  request.setEncoding('utf8').on('data', (text: string) => {
    body += text;
  });
  request.on('end', () => {
    const token = new URLSearchParams(body).get('refresh_token') ?? '';
    asked++;
    lastAt = Date.now();
    if (seen.has(token)) twice++;
    seen.add(token);
    setTimeout(() => {
      response.writeHead(200, { 'content-type': 'application/json' });
      response.end(
        JSON.stringify({
          access_token: randomUUID(),
          refresh_token: randomUUID(),
          expires_in: lifetimeSeconds,
          token_type: 'Bearer',
        }),
      );
    }, delayMs);
  });
});
server.keepAliveTimeout = 60_000;
server.listen(0, '127.0.0.1', () => {
  console.log(JSON.stringify({ port: (server.address() as AddressInfo).port }));
});
process.stdin.on('data', () => console.log(JSON.stringify({ asked, twice, lastAt } satisfies TokenAsked)));
process.on('SIGTERM', () => process.exit(0));
