/**
 * Looks at the tools of many connections whose servers take 100 ms for each answer, a few of which hang: how long until all others are
 * done, beside the same without any that hang, and beside what the answers alone take with so many looks at once?
 *
 * The servers are in a process of their own, the daemon in another, which has looked at a connection before. A workspace has 20 connections, one of
 * which hangs. A look waits for three answers: to its greeting, to the word that it was understood, and the list. All are looked at twice: the
 * first look stores ten tools, the second finds them as they were.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as wait } from 'node:timers/promises';
import { benchPath, Child, startDaemonChild } from './support/child.ts';
import { type BenchDatabase, withDatabase } from './support/database.ts';
import { createPlatform } from './support/platform.ts';
import type { Line, Result } from './support/result.ts';

const CONNECTIONS = Number(process.env.BENCH_CONNECTIONS ?? 1000);
const PER_WORKSPACE = 20;
const SHARE_HANGING = 0.05;
const DELAY_MS = 100;
const ANSWERS = 3;
/** As in config/queues.json; and so few that two processors have time to spare beside servers and database. */
const AT_ONCE = { usual: 128, few: 8 } as const;
/** Between the two looks at all. */
const PAUSE_MS = 3_000;
const PORTS = 16;
const HANGING_PORTS = 4;

type Look = { readonly seconds: number; readonly cpuMs: number; readonly failed: number };
type Looks = { readonly first: Look; readonly again: Look };

export async function bench(): Promise<Result> {
  const servers = new Child(
    [benchPath('support/mcp-child.ts'), String(PORTS), String(DELAY_MS), String(HANGING_PORTS)],
    {},
  );
  try {
    const { ports, hanging } = await servers.json<{ ports: number[]; hanging: number[] }>();
    const lines: Line[] = [];
    for (const atOnce of [AT_ONCE.usual, AT_ONCE.few]) {
      const calm = await looks(ports, [], atOnce);
      const rough = await looks(ports, hanging, atOnce);
      lines.push(...linesOf(atOnce, calm, rough));
    }
    return { bench: 'mcp-refresh', lines };
  } finally {
    await servers.stop();
  }
}

function linesOf(atOnce: number, calm: Looks, rough: Looks): Line[] {
  const good = CONNECTIONS * (1 - SHARE_HANGING);
  const ideal = (good * ANSWERS * DELAY_MS) / 1000 / atOnce;
  const show = ({ seconds, cpuMs }: Look): string =>
    `${seconds.toFixed(2)} s, ${cpuMs.toFixed(1)} ms of processor each`;
  const pair = (which: keyof Looks, measured: string): Line[] => [
    {
      measured: `${measured}, ${atOnce} at once: ${good} connections, beside ${CONNECTIONS - good} that hang`,
      agentd: show(rough[which]),
      beside: `none hangs: ${show(calm[which])}`,
      goal: '≤ 1.2 × without any that hangs',
      met: rough[which].seconds <= 1.2 * calm[which].seconds && rough[which].failed === 0,
      note: `${(rough[which].seconds / calm[which].seconds).toFixed(2)} ×; servers answer in ${DELAY_MS} ms, 10 tools each, ${PER_WORKSPACE} in a workspace`,
    },
    {
      measured: 'the same, beside what the servers’ answers alone take',
      agentd: `${rough[which].seconds.toFixed(2)} s`,
      beside: `${ideal.toFixed(2)} s`,
      goal: '≤ 1.2 ×',
      met: rough[which].seconds <= 1.2 * ideal,
      note: `${(rough[which].seconds / ideal).toFixed(2)} ×`,
    },
  ];
  return [...pair('first', 'first looks'), ...pair('again', 'looks at what is known')];
}

async function looks(ports: readonly number[], hanging: readonly number[], atOnce: number): Promise<Looks> {
  return withDatabase('mcp', { migrated: true }, async (database) => {
    await connect(database, ports, hanging);
    const hosts = [...ports, ...hanging].map((port) => `127.0.0.1:${port}`).join(',');
    const daemon = await startDaemonChild(database.url, {
      AGENTD_QUEUES: `mcp-refresh=${atOnce}`,
      AGENTD_ALLOWED_PRIVATE_HOSTS: hosts,
    });
    try {
      await database.pool.query(
        `insert into public.agent_mcp_connections (agent_id, connection_name, server_url)
         select id, 'warm up', $1 from public.agents order by id limit 1`,
        [`http://127.0.0.1:${ports[0]}/mcp`],
      );
      const isWarm = `select 1 from public.agent_mcp_connections where connection_name = 'warm up' and last_refreshed_at is not null`;
      while ((await database.pool.query(isWarm)).rowCount === 0) await wait(50);
      const first = await look(
        database,
        daemon,
        `update public.agent_mcp_connections set is_active = true where connection_name <> 'warm up'`,
      );
      await wait(PAUSE_MS);
      const again = await look(
        database,
        daemon,
        `select public.refresh_mcp_connection(id) from public.agent_mcp_connections where connection_name <> 'warm up'`,
      );
      return { first, again };
    } finally {
      await daemon.stop();
    }
  });
}

/** Has all be looked at by a statement, and waits until every good one was. */
async function look({ pool }: BenchDatabase, daemon: Child, ask: string): Promise<Look> {
  const { rows: times } = await pool.query<{ now: Date }>('select clock_timestamp() as now');
  const wanted = Math.round(CONNECTIONS * (1 - SHARE_HANGING));
  const before = await daemon.cpuSeconds();
  const began = performance.now();
  await pool.query(ask);
  for (;;) {
    const { rows } = await pool.query<{ done: number; failed: number }>(
      `select count(*) filter (where last_refreshed_at > $1)::integer as done,
              count(*) filter (where refresh_failures > 0)::integer as failed
         from public.agent_mcp_connections where connection_name = 'good'`,
      [times[0]?.now],
    );
    const { done = 0, failed = 0 } = rows[0] ?? {};
    if (done + failed >= wanted) {
      const seconds = (performance.now() - began) / 1000;
      return { seconds, cpuMs: (((await daemon.cpuSeconds()) - before) * 1000) / wanted, failed };
    }
    await wait(50);
  }
}

/** Connections that are switched off, spread over workspaces and servers; where `hanging` is empty, none is made of those. */
async function connect(
  database: BenchDatabase,
  ports: readonly number[],
  hanging: readonly number[],
): Promise<void> {
  await createPlatform(database.pool, { workspaces: Math.ceil(CONNECTIONS / PER_WORKSPACE), steps: 0 });
  const { rows: agents } = await database.pool.query<{ id: string }>('select id from public.agents');
  const rows = Array.from({ length: CONNECTIONS }, (_, i) => {
    const hangs = i % Math.round(1 / SHARE_HANGING) === 0;
    const among = hangs ? hanging : ports;
    return {
      id: randomUUID(),
      agent_id: agents[Math.floor(i / PER_WORKSPACE)]?.id,
      name: hangs ? 'hangs' : 'good',
      url: among.length === 0 ? null : `http://127.0.0.1:${among[i % among.length]}/mcp`,
    };
  }).filter(({ url }) => url !== null);
  await database.pool.query(
    `insert into public.agent_mcp_connections (id, agent_id, connection_name, server_url, is_active)
     select x.id, x.agent_id, x.name, x.url, false from jsonb_to_recordset($1::jsonb) as x (id uuid, agent_id uuid, name text, url text)`,
    [JSON.stringify(rows)],
  );
}
