/**
 * Rate limit: how much of what a model allows do three daemons use, and how often do they run into its limit?
 *
 * The model is a process that refills buckets of requests and of tokens continuously and answers 429 with headers, as OpenAI does. Many
 * workspaces share one key. The buckets are full at first; what they held then is subtracted from both sides, so that the share is that of
 * the minute or so after it. All runs must complete.
 */
import { setTimeout as wait } from 'node:timers/promises';
import type { RateLimits } from '../tests/peers/rate-limits.ts';
import { benchPath, Child, startDaemonChild } from './support/child.ts';
import { withDatabase } from './support/database.ts';
import type { LimitedModel, LimitedStats } from './support/limited-model-child.ts';
import { createPlatform } from './support/platform.ts';
import type { Line, Result } from './support/result.ts';

const DAEMONS = 3;
const WORKSPACES = 40;
const ANSWER_MS = 300;
const GOAL = 0.9;

type Scenario = {
  readonly name: string;
  readonly limits: RateLimits;
  readonly runs: number;
  readonly hasGoal: boolean;
};

const SCENARIOS: readonly Scenario[] = [
  {
    name: 'requests allowed that were used',
    limits: { requestsPerMinute: 600, tokensPerMinute: 10_000_000 },
    runs: 1_500,
    hasGoal: true,
  },
  {
    name: 'tokens allowed that were used',
    limits: { requestsPerMinute: 100_000, tokensPerMinute: 120_000 },
    runs: 1_500,
    hasGoal: true,
  },
  {
    name: 'the same, of a provider that counts max_tokens',
    limits: { requestsPerMinute: 100_000, tokensPerMinute: 600_000, counts: 'reserved' },
    runs: 1_500,
    hasGoal: false,
  },
];

export async function bench(): Promise<Result> {
  const chosen = process.env.BENCH_SCENARIOS?.split(',').map(Number) ?? SCENARIOS.map((_, i) => i);
  const lines: Line[] = [];
  for (const index of chosen) lines.push(await measure(SCENARIOS[index] as Scenario));
  return { bench: 'rate-limit', lines };
}

async function measure({ name, limits, runs, hasGoal }: Scenario): Promise<Line> {
  return withDatabase('rate_limit', { migrated: true }, async ({ url, pool }) => {
    const model = new Child(
      [benchPath('support/limited-model-child.ts'), JSON.stringify({ ...limits, delayMs: ANSWER_MS })],
      {},
    );
    const { url: modelUrl } = await model.json<LimitedModel>();
    const daemons: Child[] = [];
    try {
      await createPlatform(pool, { workspaces: WORKSPACES, steps: 0 });
      for (let i = 0; i < DAEMONS; i++) {
        daemons.push(await startDaemonChild(url, { OPENAI_BASE_URL: modelUrl, LOG_LEVEL: 'warn' }));
      }
      await pool.query(
        `insert into public.task_runs (task_id)
         select t.id from generate_series(1, $1::integer) n, public.agent_tasks t`,
        [Math.ceil(runs / WORKSPACES)],
      );
      const ends = await untilEnded(pool);
      model.send('stats');
      const stats = await model.json<LimitedStats>();
      const { rows } = await pool.query<{ claims: string; statements: string }>(
        'select avg(lease_epoch)::numeric(6, 2) as claims from public.task_runs',
      );
      const byTokens = (limits.requestsPerMinute ?? 0) > (limits.tokensPerMinute ?? 0) / 100;
      const bucket = (byTokens ? limits.tokensPerMinute : limits.requestsPerMinute) as number;
      const used = (byTokens ? stats.admittedTokens : stats.admitted) - bucket;
      const share = used / ((bucket / 60_000) * stats.ms);
      const failed = ends.failed ?? 0;
      return {
        measured: `${name}: ${bucket.toLocaleString('en-US')} a minute`,
        agentd: `${share.toFixed(3)}; ${stats.refused} × 429; ${failed} runs failed`,
        beside: null,
        goal: hasGoal ? `≥ ${GOAL}, no run fails` : '–',
        met: hasGoal ? share >= GOAL && failed === 0 : null,
        note: `${stats.admitted} calls in ${(stats.ms / 1000).toFixed(0)} s, the first bucket left out; ${DAEMONS} daemons, ${WORKSPACES} workspaces with one key; ${rows[0]?.claims} claims a run`,
      };
    } finally {
      await Promise.all([model, ...daemons].map((child) => child.stop()));
    }
  });
}

/** How many runs ended in which state, once all have. */
async function untilEnded(pool: {
  query<T extends object>(text: string): Promise<{ rows: T[] }>;
}): Promise<Record<string, number>> {
  for (;;) {
    const { rows } = await pool.query<{ status: string; n: number }>(
      'select status, count(*)::integer as n from public.task_runs group by status',
    );
    const counts = Object.fromEntries(rows.map((row) => [row.status, row.n]));
    if (process.env.BENCH_VERBOSE) console.error(JSON.stringify(counts));
    if (rows.every((row) => ['completed', 'failed'].includes(row.status))) return counts;
    await wait(1_000);
  }
}
