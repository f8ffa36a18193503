/**
 * An embeddings server that enforces limits, in a process of its own. Its argument is the limits as JSON, with `delayMs` of an answer.
 * Prints its address; for every line of input, what it has let through and refused so far.
 */
import { createInterface } from 'node:readline';
import { setTimeout as wait } from 'node:timers/promises';
import { startEmbeddingServer } from '../../tests/peers/embedding-server.ts';
import type { RateLimits } from '../../tests/peers/rate-limits.ts';
import type { LimitedModel, LimitedStats } from './limited-model-child.ts';

const { delayMs, ...limits } = JSON.parse(process.argv[2] ?? '{}') as RateLimits & { delayMs: number };
const server = await startEmbeddingServer({ apiKeys: ['bench-key'], limits, forgets: true });
let first: number | null = null;
let last = 0;
server.respond(async () => {
  last = performance.now();
  first ??= last;
  await wait(delayMs);
  return {};
});
createInterface({ input: process.stdin }).on('line', () => {
  const { admitted, admittedTokens, refused } = server.limits;
  console.log(
    JSON.stringify({ admitted, admittedTokens, refused, ms: last - (first ?? last) } satisfies LimitedStats),
  );
});
console.log(JSON.stringify({ url: server.url } satisfies LimitedModel));
process.on('SIGTERM', () => process.exit(0));
