import { describe, expect, test } from 'vitest';
import { loadConfig } from '../../src/config.ts';
import { openDatabase } from '../../src/db/database.ts';
import { migrateUp } from '../../src/db/migrate.ts';
import { type ChaosPlan, type ChaosReport, runChaos } from '../chaos/chaos.ts';
import { findPostgres, startServer } from '../chaos/server.ts';
import { windows } from '../chaos/windows.ts';
import { onServer, testDatabase } from '../support/database.ts';

/** Small enough for a suite; `npm run chaos` does all of it, many times over. */
const small: Omit<ChaosPlan, 'databaseUrl'> = {
  seed: 7,
  runs: 60,
  kills: 0,
  stalls: 0,
  drains: 0,
  longestDrainSeconds: 2,
  cuts: 0,
  cutsAtOnce: 10,
  restarts: 0,
  daemons: 3,
  concurrency: 6,
  leaseSeconds: 2,
  modelMs: [20, 120],
  toolMs: [5, 40],
  betweenKills: { ms: 300, calls: 30 },
  ageJobs: true,
  say: () => {},
};

async function chaos(plan: Partial<ChaosPlan>): Promise<ChaosReport> {
  const db = await testDatabase();
  try {
    return await runChaos({ ...small, ...plan, databaseUrl: db.url });
  } finally {
    await db.dispose();
  }
}

describe.skipIf(!onServer)('server-only: daemons that die', () => {
  test('in every window lose no run, repeat no write and count every call once; neither does a frozen one', {
    timeout: 300_000,
  }, async () => {
    const report = await chaos({ kills: 20, stalls: 1 });
    expect(report.violations).toEqual([]);
    expect(report.kills).toBe(20);
    // more than two where a daemon died of an order that was just being taken back
    for (const window of windows)
      expect(report.history.tallies.get(window)?.ends, window).toBeGreaterThanOrEqual(2);
    expect(report.stalls).toBe(1);
    // the kills hit something: there were calls to repeat and runs to take over
    expect(report.history.repeats).toBeGreaterThan(0);
    expect(report.history.tallies.get('claimed')?.takeovers.length).toBeGreaterThan(0);
  });

  test('of SIGTERM under load spend no attempt and fail no run', { timeout: 300_000 }, async () => {
    const report = await chaos({ drains: 6, longestDrainSeconds: 0 });
    expect(report.violations).toEqual([]);
    expect(report.drains).toHaveLength(6);
    expect(report.history.tallies.get('SIGTERM')?.handedBack).toBeGreaterThan(0);
  });
});

const postgres = onServer ? findPostgres(process.env) : null;

describe.skipIf(!postgres)('server-only: a server that is restarted and cuts connections under load', () => {
  test('ends no daemon and loses nothing', { timeout: 300_000 }, async () => {
    const server = await startServer(postgres ?? '');
    try {
      const db = openDatabase({ url: server.url, embedded: false });
      await migrateUp(db, loadConfig({}).queues);
      await db.close();
      const report = await runChaos({
        ...small,
        databaseUrl: server.url,
        cuts: 40,
        restarts: 2,
        restart: server.restart,
      });
      expect(report.violations).toEqual([]);
      expect([report.cuts, report.restarts]).toEqual([40, 2]);
    } finally {
      await server.stop();
    }
  });
});
