/**
 * Pickup: how long after a run's insert does its first model request arrive, on an idle daemon?
 *
 * The model server is in this process, the daemon in another; graphile-worker's worker is in another process too and
 * reports the instant at which its task began. Both are measured from the sending of the insert (which includes its
 * commit) and from the commit's acknowledgement. `performance.timeOrigin + performance.now()` is drawn from the same clock in
 * every process of a machine.
 */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as wait } from 'node:timers/promises';
import { makeWorkerUtils } from 'graphile-worker';
import { benchPath, Child, startDaemonChild } from './support/child.ts';
import { withDatabase } from './support/database.ts';
import { completionJson } from './support/model-answer.ts';
import { createPlatform } from './support/platform.ts';
import type { Result } from './support/result.ts';
import { ms, percentile, seeded } from './support/stats.ts';

const SAMPLES = Number(process.env.BENCH_SAMPLES ?? 1000);
const WARM_UP = 100;

type Samples = { sent: number[]; committed: number[] };

const now = (): number => performance.timeOrigin + performance.now();

export async function bench(): Promise<Result> {
  const random = seeded(1);
  const gaps = Array.from({ length: SAMPLES + WARM_UP }, () => 20 + random() * 40);
  const worker = await graphileWorker(gaps);
  const ours = await agentd(gaps);
  const show = (s: number[]): string =>
    `p50 ${ms(percentile(s, 0.5))}, p95 ${ms(percentile(s, 0.95))}, p99 ${ms(percentile(s, 0.99))}`;
  const ratio = percentile(ours.sent, 0.5) / percentile(worker.sent, 0.5);
  return {
    bench: 'pickup',
    lines: [
      {
        measured: 'run committed → model request received',
        agentd: show(ours.committed),
        beside: `graphile-worker, task begun: ${show(worker.committed)}`,
        goal: 'p50 ≤ 5 ms, p99 ≤ 20 ms',
        met: percentile(ours.committed, 0.5) <= 5 && percentile(ours.committed, 0.99) <= 20,
        note: `${SAMPLES.toLocaleString('en-US')} samples, 20–60 ms apart`,
      },
      {
        measured: 'insert sent → model request received',
        agentd: show(ours.sent),
        beside: `graphile-worker: ${show(worker.sent)}`,
        goal: 'ratio of the medians ≤ 3.5',
        met: ratio <= 3.5,
        note: `ratio ${ratio.toFixed(2)}`,
      },
    ],
  };
}

async function agentd(gaps: readonly number[]): Promise<Samples> {
  const body = completionJson();
  let arrived: (at: number) => void = () => {};
  const server = createServer((request, response) => {
    arrived(now());
    request.resume();
    request.on('end', () => {
      response.writeHead(200, { 'content-type': 'application/json' });
      response.end(body);
    });
  });
  server.keepAliveTimeout = 60_000;
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const port = (server.address() as AddressInfo).port;
  try {
    return await withDatabase('pickup', { migrated: true }, async ({ url, pool }) => {
      const tasks = await createPlatform(pool, { workspaces: 20, steps: 1 });
      const daemon = await startDaemonChild(url, { OPENAI_BASE_URL: `http://127.0.0.1:${port}/v1` });
      const client = await pool.connect();
      try {
        return await sample(gaps, async (i) => {
          const arrival = new Promise<number>((resolve) => {
            arrived = resolve;
          });
          const sent = now();
          await client.query({
            name: 'insert_run',
            text: 'insert into public.task_runs (task_id) values ($1)',
            values: [tasks[i % tasks.length]],
          });
          return { sent, committed: now(), started: await arrival };
        });
      } finally {
        client.release();
        await daemon.stop();
      }
    });
  } finally {
    server.close();
    server.closeAllConnections();
  }
}

async function graphileWorker(gaps: readonly number[]): Promise<Samples> {
  return withDatabase('pickup_peer', {}, async ({ url, pool }) => {
    const utils = await makeWorkerUtils({ pgPool: pool });
    await utils.migrate();
    const worker = new Child([benchPath('peers/graphile-worker.ts')], { DATABASE_URL: url });
    await worker.line('ready');
    const client = await pool.connect();
    try {
      return await sample(gaps, async (i) => {
        const begun = worker.line(`"id":${i},`);
        const sent = now();
        await client.query({
          name: 'add_job',
          text: `select graphile_worker.add_job('pickup', json_build_object('id', $1::integer))`,
          values: [i],
        });
        const committed = now();
        return { sent, committed, started: (JSON.parse(await begun) as { at: number }).at };
      });
    } finally {
      client.release();
      await utils.release();
      await worker.stop();
    }
  });
}

async function sample(
  gaps: readonly number[],
  once: (i: number) => Promise<{ sent: number; committed: number; started: number }>,
): Promise<Samples> {
  const samples: Samples = { sent: [], committed: [] };
  for (const [i, gap] of gaps.entries()) {
    const { sent, committed, started } = await once(i);
    if (i >= WARM_UP) {
      samples.sent.push(started - sent);
      samples.committed.push(started - committed);
    }
    await wait(gap);
  }
  return samples;
}
