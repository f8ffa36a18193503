/**
 * Takeover: a daemon is killed in the middle of its model calls. How long until another one makes the same calls again?
 * The lease of a run is 15 s, renewed every 5; nobody may look at a run before its lease has lapsed.
 */
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { startDaemonChild } from './support/child.ts';
import { withDatabase } from './support/database.ts';
import { completionJson } from './support/model-answer.ts';
import { createPlatform } from './support/platform.ts';
import type { Result } from './support/result.ts';
import { percentile } from './support/stats.ts';

const RUNS = Number(process.env.BENCH_RUNS ?? 30);
const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 3);
const LEASE_SECONDS = 15;

export async function bench(): Promise<Result> {
  const seconds: number[] = [];
  for (let round = 0; round < ROUNDS; round++) seconds.push(...(await takeovers()));
  const worst = Math.max(...seconds);
  return {
    bench: 'takeover',
    lines: [
      {
        measured: 'SIGKILL → the run’s next call elsewhere',
        agentd: `p50 ${percentile(seconds, 0.5).toFixed(1)} s, highest ${worst.toFixed(1)} s`,
        beside: null,
        goal: `≤ lease + 1 s (${LEASE_SECONDS + 1} s)`,
        met: worst <= LEASE_SECONDS + 1,
        note: `${ROUNDS} × ${RUNS} runs in a model call when their daemon was killed; lease ${LEASE_SECONDS} s`,
      },
    ],
  };
}

/** Seconds from the kill to the second request of each call. */
function takeovers(): Promise<number[]> {
  return withDatabase('takeover', { migrated: true }, async ({ url, pool }) => {
    const tasks = await createPlatform(pool, { workspaces: RUNS, steps: 1 });
    const seen = new Set<string>();
    const again: number[] = [];
    let killedAt = 0;
    const { promise: allSeen, resolve: onAllSeen } = Promise.withResolvers<void>();
    const { promise: allAgain, resolve: onAllAgain } = Promise.withResolvers<void>();
    // the first request of a call is never answered
    const server = createServer((request, response) => {
      request.resume();
      request.once('end', () => {
        const key = String(request.headers['idempotency-key']);
        if (!seen.has(key)) {
          seen.add(key);
          if (seen.size === RUNS) onAllSeen();
          return;
        }
        again.push((performance.now() - killedAt) / 1000);
        response.setHeader('content-type', 'application/json');
        response.end(completionJson());
        if (again.length === RUNS) onAllAgain();
      });
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const env = {
      OPENAI_BASE_URL: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`,
      AGENTD_QUEUES: 'task-run=64',
    };
    const first = await startDaemonChild(url, env);
    await pool.query('insert into public.task_runs (task_id) select unnest($1::uuid[])', [tasks]);
    await allSeen;
    const second = await startDaemonChild(url, env);
    try {
      killedAt = performance.now();
      first.process.kill('SIGKILL');
      await allAgain;
      return again;
    } finally {
      await second.stop();
      server.closeAllConnections();
      server.close();
    }
  });
}
