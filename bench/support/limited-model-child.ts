/**
 * A model server that enforces limits, in a process of its own. Its argument is the limits as JSON, with `delayMs` of an answer.
 * Prints its address; for every line of input, what it has let through and refused so far.
 */
import { createInterface } from 'node:readline';
import { setTimeout as wait } from 'node:timers/promises';
import { startModelServer } from '../../tests/peers/model-server.ts';
import type { RateLimits } from '../../tests/peers/rate-limits.ts';

export type LimitedModel = { readonly url: string };
export type LimitedStats = {
  readonly admitted: number;
  readonly admittedTokens: number;
  readonly refused: number;
  /** Milliseconds between the first request that was let through and the last. */
  readonly ms: number;
};

const { delayMs, ...limits } = JSON.parse(process.argv[2] ?? '{}') as RateLimits & { delayMs: number };
const server = await startModelServer({ apiKeys: ['bench-key'], limits, forgets: true });
let first: number | null = null;
let last = 0;
server.respond(async (_request, index) => {
  last = performance.now();
  first ??= last;
  await wait(delayMs);
  // of 20 to 220 tokens, always the same ones
  return { content: 'word '.repeat(16 + ((index * 7919) % 160)) };
});
createInterface({ input: process.stdin }).on('line', () => {
  const { admitted, admittedTokens, refused } = server.limits;
  console.log(
    JSON.stringify({ admitted, admittedTokens, refused, ms: last - (first ?? last) } satisfies LimitedStats),
  );
});
console.log(JSON.stringify({ url: server.url } satisfies LimitedModel));
process.on('SIGTERM', () => process.exit(0));
