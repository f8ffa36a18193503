/**
 * OAuth: are ten thousand tokens that expire within ten minutes all refreshed before their margin is used up, and what does a daemon with
 * nothing due cost?
 *
 * One daemon, a provider of 100 ms that rotates, workspaces with a hundred credentials each. The tokens become due evenly over the time;
 * how late each is, is the time from next_refresh_at to the stored answer. Idle is the daemon's processor time over a minute afterwards, when the next one is due in
 * an hour, beside that of the same daemon without the queue.
 */
import { setTimeout as wait } from 'node:timers/promises';
import { benchPath, Child, startDaemonChild } from './support/child.ts';
import { withDatabase } from './support/database.ts';
import { createPlatform } from './support/platform.ts';
import type { Line, Result } from './support/result.ts';
import type { TokenAsked } from './support/token-child.ts';

const CREDENTIALS = Number(process.env.BENCH_CREDENTIALS ?? 10_000);
const SECONDS = Number(process.env.BENCH_SECONDS ?? 600);
const IDLE_SECONDS = Number(process.env.BENCH_IDLE_SECONDS ?? 60);
const PER_WORKSPACE = 100;
const ANSWER_MS = 100;
const KEY = '5a'.repeat(32);

type Reading = {
  readonly count: number;
  readonly late: readonly number[];
  readonly asked: TokenAsked;
  readonly cpuShare: number;
};

export async function bench(): Promise<Result> {
  const provider = new Child([benchPath('support/token-child.ts'), String(ANSWER_MS)], {});
  try {
    const { port } = await provider.json<{ port: number }>();
    return await withDatabase('oauth', { migrated: true }, async ({ url, pool }) => {
      await createPlatform(pool, { workspaces: Math.ceil(CREDENTIALS / PER_WORKSPACE), steps: 0 });
      await pool.query(
        `insert into public.service_providers (name, display_name, provider_type, token_endpoint, configuration_metadata)
         values ('bench', 'Bench', 'oauth', $1, '{"client_id": "bench", "client_secret": "bench-secret"}')`,
        [`http://127.0.0.1:${port}/token`],
      );
      await pool.query(
        `insert into public.user_integration_credentials (user_id, workspace_id, service_provider_id, credential_type,
           vault_access_token_id, vault_refresh_token_id, token_expires_at)
         select w.owner_user_id, w.id, s.id, 'oauth', 'access-' || w.id || n, 'refresh-' || w.id || '-' || n, now() + interval '1 hour'
           from public.workspaces w, public.service_providers s, generate_series(1, $1::integer) n
          where w.is_personal and s.name = 'bench' limit $2`,
        [PER_WORKSPACE, CREDENTIALS],
      );
      const env = {
        ENCRYPTION_KEY: KEY,
        AGENTD_ALLOWED_PRIVATE_HOSTS: `127.0.0.1:${port}`,
        AGENTD_EMBEDDING_MODEL: 'feature-hash-v1',
      };
      const daemon = await startDaemonChild(url, env);
      let reading: Reading;
      let idle: number;
      try {
        await pool.query(
          `create table bench_due as
           select id, now() + interval '2 seconds' + random() * make_interval(secs => $1) as due_at from public.user_integration_credentials`,
          [SECONDS],
        );
        await pool.query(
          `update public.user_integration_credentials c set next_refresh_at = d.due_at from bench_due d where d.id = c.id`,
        );
        const cpu = await daemon.cpuSeconds();
        const began = performance.now();
        await wait(SECONDS * 1000);
        for (;;) {
          const { rows } = await pool.query<{ left: number }>(
            'select count(*)::integer as left from public.user_integration_credentials where token_version = 1',
          );
          if (rows[0]?.left === 0) break;
          if (performance.now() - began > (SECONDS + 300) * 1000)
            throw new Error(`${rows[0]?.left} are left.`);
          await wait(200);
        }
        const seconds = (performance.now() - began) / 1000;
        const cpuShare = ((await daemon.cpuSeconds()) - cpu) / seconds;
        const { rows } = await pool.query<{ late: number }>(
          `select extract(epoch from c.last_refreshed_at - d.due_at)::float8 as late
             from public.user_integration_credentials c join bench_due d using (id) order by 1`,
        );
        provider.send('say');
        reading = {
          count: rows.length,
          late: rows.map((row) => row.late),
          asked: await provider.json<TokenAsked>(),
          cpuShare,
        };
        idle = await idleShare(daemon);
      } finally {
        await daemon.stop();
      }
      const without = await startDaemonChild(url, { ...env, AGENTD_QUEUES: 'task-run,document-ingest' });
      try {
        return { bench: 'oauth', lines: linesOf(reading, idle, await idleShare(without)) };
      } finally {
        await without.stop();
      }
    });
  } finally {
    await provider.stop();
  }
}

async function idleShare(daemon: Child): Promise<number> {
  await wait(3_000);
  const before = await daemon.cpuSeconds();
  await wait(IDLE_SECONDS * 1000);
  return ((await daemon.cpuSeconds()) - before) / IDLE_SECONDS;
}

function linesOf({ count, late, asked, cpuShare }: Reading, idle: number, without: number): Line[] {
  const at = (share: number): string =>
    `${(late[Math.min(late.length - 1, Math.floor(late.length * share))] ?? 0).toFixed(2)} s`;
  const most = late.at(-1) ?? 0;
  const percent = (share: number): string => `${(share * 100).toFixed(2)} % of a core`;
  return [
    {
      measured: `${count} tokens due within ${SECONDS} s, refreshed after their time`,
      agentd: `p50 ${at(0.5)}, p99 ${at(0.99)}, most ${at(1)}`,
      beside: null,
      goal: 'all within their margin of 12 minutes',
      met: most < 720,
      note: `one daemon, provider of ${ANSWER_MS} ms, ${PER_WORKSPACE} credentials a workspace; ${percent(cpuShare)}`,
    },
    {
      measured: 'requests, and those that came twice',
      agentd: `${asked.asked}, ${asked.twice}`,
      beside: null,
      goal: 'one for each token',
      met: asked.asked === count && asked.twice === 0,
    },
    {
      measured: `processor time with ${count} credentials and nothing due`,
      agentd: percent(idle),
      beside: `${percent(without)} without the queue`,
      goal: 'less than 1 % of a core for refreshing',
      met: idle - without < 0.01,
    },
  ];
}
