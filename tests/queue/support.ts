/** A queue of a test's own, and consumers on it. */
import { PgBoss } from 'pg-boss';
import { systemClock } from '../../src/clock.ts';
import type { QueueConfig } from '../../src/config.ts';
import { bossOptions } from '../../src/db/boss.ts';
import type { Database } from '../../src/db/database.ts';
import { Consumer } from '../../src/queue/consumer.ts';
import { defineJob, type Handler } from '../../src/queue/job.ts';
import { silentLogger } from '../../src/telemetry/logger.ts';
import { createMetrics } from '../../src/telemetry/metrics.ts';

export const queueConfig: QueueConfig = {
  concurrency: 4,
  retryLimit: 2,
  retryDelaySeconds: 0,
  retryDelayMaxSeconds: 1,
  expireSeconds: 900,
  heartbeatSeconds: null,
  deleteAfterSeconds: 3600,
  workspaceCeiling: 16,
  workspaceBuffer: 0,
};

export type Payload = { key: string };

/** pg-boss on a test database, with one queue and its dead letters. */
export async function startBoss(db: Database, queue: string, options: object = {}): Promise<PgBoss> {
  const boss = new PgBoss({ ...bossOptions(db), supervise: false });
  boss.on('error', () => {});
  await boss.start();
  await boss.createQueue(`${queue}-failed`, { retryLimit: 0 });
  await boss.createQueue(queue, {
    policy: 'exclusive',
    deadLetter: `${queue}-failed`,
    retryLimit: queueConfig.retryLimit,
    retryDelay: 0,
    ...options,
  });
  return boss;
}

export function consumer(
  db: Database,
  boss: PgBoss,
  queue: string,
  handler: Handler<Payload>,
  config: Partial<QueueConfig> = {},
  pollMs = 50,
  lends = 0,
): Consumer {
  return new Consumer({
    job: defineJob<Payload>({
      queue,
      parse: (data) => {
        const key = (data as Partial<Payload>).key;
        if (typeof key !== 'string') throw new Error('no key');
        return { key };
      },
      key: ({ key }) => key,
      handler,
      lends,
    }),
    config: { ...queueConfig, ...config },
    db,
    boss,
    clock: systemClock,
    log: silentLogger(),
    metrics: createMetrics(),
    workerId: `test-${queue}`,
    pollMs,
  });
}

/** Enqueues by the function that triggers use. */
export async function enqueue(db: Database, queue: string, key: string): Promise<string | null> {
  const [row] = await db.query<{ id: string | null }>('select agentd.enqueue($1, $2, $3, null, null) as id', [
    queue,
    { key },
    key,
  ]);
  return row?.id ?? null;
}

/** Outcomes of a queue's attempts in agentd.job_runs, oldest first. */
export function outcomes(db: Database, queue: string): Promise<string[]> {
  return db
    .query<{ outcome: string }>('select outcome from agentd.job_runs where queue = $1 order by id', [queue])
    .then((rows) => rows.map((row) => row.outcome));
}
