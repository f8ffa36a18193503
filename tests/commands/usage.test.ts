/** `agentd usage`: what it prints, what it finds, what it repairs. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { bar } from '../../src/commands/usage-chart.ts';
import { rollUp } from '../../src/services/usage-rollup.ts';
import { silentLogger } from '../../src/telemetry/logger.ts';
import { createMetrics } from '../../src/telemetry/metrics.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { agentd, insertTenant, json, type Tenant } from './support.ts';

let db: TestDatabase;
let tenant: Tenant;
const usage = (...args: string[]) => agentd(['usage', ...args], { DATABASE_URL: db.url });

beforeAll(async () => {
  db = await testDatabase();
  tenant = await insertTenant(db, 'Lantern');
  for (const [day, tokens, cost] of [
    ['2026-02-03', 1_000, 4_000],
    ['2026-02-05', 500, 2_000],
  ])
    await db.query(
      `insert into public.usage_events (workspace_id, agent_id, metric, quantity, cost_micros, idempotency_key, dimensions, occurred_at, recorded_at)
       values ($1, $2, 'tokens', $3, $4, $5, '{"model": "gpt-4o-mini", "provider": "openai"}', $6, $6)`,
      [tenant.workspace, tenant.agent, tokens, cost, randomUUID(), `${day}T12:00:00Z`],
    );
  await rollUp({ db, clock: systemClock, log: silentLogger(), metrics: createMetrics() });
});
afterAll(() => db?.dispose());

test('a month of a workspace is a table, a bar for each day, its models and its agents', async () => {
  const shown = await usage('show', '--workspace', tenant.workspace.slice(0, 8), '--month', '2026-02');
  expect(shown).toMatchObject({ code: 0, stderr: '' });
  expect(shown.stdout).toMatch(/Lantern, 2026-02/);
  expect(shown.stdout).toMatch(
    /2026-02-03 +\$0\.004000 +█{50}\n2026-02-04 +\$0 *\n2026-02-05 +\$0\.002000 +█{25}\n/,
  );
  expect(shown.stdout).toMatch(/gpt-4o-mini +2 +1,500 +\$0\.006000/);
  const [period] = json<{ tokens_used: number; days: unknown[] }[]>(
    await usage('show', '--workspace', tenant.workspace, '--month', '2026-02', '--json'),
  );
  expect(period).toMatchObject({ tokens_used: 1_500, cost_micros: 6_000 });
  expect(period?.days).toHaveLength(28);
});

test('without a workspace every one has a line, and a month that is none is refused', async () => {
  expect((await usage('show', '--month', '2026-02')).stdout).toMatch(/Lantern +2026-02 +0 +0 +1,500/);
  expect((await usage('show', '--month', '2025-01')).stdout).toBe('Nothing was used.\n');
  expect((await usage('show', '--month', 'may')).code).toBe(2);
});

test('what differs from the events is said, repaired, and gone', async () => {
  expect((await usage('reconcile')).stdout).toContain('are those of their events');
  await db.query('update public.workspace_usage set tokens_used = 7 where workspace_id = $1', [
    tenant.workspace,
  ]);
  const found = await usage('reconcile');
  expect(found.code).toBe(1);
  expect(found.stdout).toMatch(/period +2026-02-01 00:00:00Z +tokens +1,500 +7/);
  expect((await agentd(['doctor'], { DATABASE_URL: db.url })).stdout).toMatch(
    /usage +1 sums differed|1 sums differed/,
  );
  expect((await usage('reconcile', '--repair')).code).toBe(0);
  expect((await usage('reconcile')).code).toBe(0);
  expect(await db.query('select 1 from agentd.usage_drifts where repaired_at is null')).toEqual([]);
  expect((await usage('rebuild')).stdout).toContain('The sums of 1 workspaces were made anew');
});

test.runIf(onServer)(
  'server-only: a rebuild gives way to who holds a period and asks for its neighbours, and comes again',
  async () => {
    const writer = await db.pool.connect();
    try {
      await writer.query('begin');
      await writer.query('update public.workspace_usage set messages = messages where workspace_id = $1', [
        tenant.workspace,
      ]);
      const rebuilt = usage('rebuild', '--workspace', tenant.workspace);
      // it has waited, and waits again
      const attempts = new Set<number>();
      await expect
        .poll(
          async () => {
            for (const { began } of await db.query<{ began: Date }>(
              `select xact_start as began from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`,
            ))
              attempts.add(began.getTime());
            return attempts.size;
          },
          { timeout: 20_000, interval: 20 },
        )
        .toBeGreaterThan(1);
      // what an update of an edge asks for
      await writer.query('select agentd.hold_usage_periods($1)', [tenant.workspace]);
      await writer.query('commit');
      expect(await rebuilt).toMatchObject({ code: 0, stderr: '' });
    } finally {
      await writer.query('rollback');
      writer.release();
    }
  },
);

test('a bar is as long as its share, and what is more than nothing is seen', () => {
  expect([bar(0, 10, 10), bar(10, 10, 4), bar(5, 10, 4), bar(0.001, 10, 4), bar(5, 10, 1)]).toEqual([
    '',
    '████',
    '██',
    '▏',
    '▌',
  ]);
});
