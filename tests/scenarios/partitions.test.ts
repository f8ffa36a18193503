/** Tables that are partitioned by month: their partitions are there before the rows. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import { ensurePartitions } from '../../src/db/reconcile.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { testDaemon } from '../support/daemon.ts';
import { shiftDatabaseClock, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform, startTask } from '../support/platform.ts';
import { jobOutcomes, until, waitForRun } from '../support/runs.ts';

const DAY_MS = 86_400_000;

let db: TestDatabase;
let model: ModelServer;
let platform: Platform;

beforeEach(async () => {
  db = await testDatabase();
  model = await startModelServer();
  platform = await makePlatform(db);
});

afterEach(async () => {
  await model.close();
  await db.dispose();
});

async function expectBooked(id: string): Promise<void> {
  expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', lease_epoch: 1 });
  const usage = await db.query<{ metric: string; part: string }>(
    `select metric, tableoid::regclass::text as part from public.usage_events where run_id = $1 order by metric`,
    [id],
  );
  expect(usage.map((row) => row.metric)).toEqual(['task_run', 'tokens']);
  await until('the job is settled', async () => (await jobOutcomes(db, id)).length > 0);
  // By a clock that is years ahead the job of a run that has just ended is a stale one, and may be swept before it is settled.
  const outcomes = await jobOutcomes(db, id);
  expect(outcomes).toHaveLength(1);
  expect(['completed', 'lost']).toContain(outcomes[0]);
}

test('a worker makes the months ahead by itself, long before they begin', async () => {
  await shiftDatabaseClock(db, 200 * DAY_MS);
  await using _daemon = await testDaemon(db, model);
  const ahead = await until('the months ahead are there', async () => {
    const rows = await db.query<{ parent: string; last: string }>(
      `select inhparent::regclass::text as parent, max(right(inhrelid::regclass::text, 7)) as last
         from pg_inherits where right(inhrelid::regclass::text, 7) ~ '^[0-9]{4}_' and inhparent in ('public.usage_events'::regclass, 'agentd.job_runs'::regclass)
        group by 1 order by 1`,
    );
    const [{ month } = { month: '' }] = await db.query<{ month: string }>(
      `select to_char(agentd.now() at time zone 'UTC' + interval '12 months', 'YYYY_MM') as month`,
    );
    return rows.every((row) => row.last === month) ? rows : null;
  });
  expect(ahead).toHaveLength(2);
  await expectBooked(await startTask(db, platform, 'x'));
});

test('a server whose clock is suddenly years ahead of every partition loses nothing that was paid', async () => {
  const { promise: held, resolve: release } = Promise.withResolvers<void>();
  model.respond(() => ({ content: 'answer', delay: held }));
  await using _daemon = await testDaemon(db, model);
  const id = await startTask(db, platform, 'x');
  await model.waitForRequest();
  await shiftDatabaseClock(db, 3 * 365 * DAY_MS);
  release();
  await expectBooked(id);
  expect(model.requests).toHaveLength(1);
  expect(await ensurePartitions(db)).toBe(0);
});

test('an application’s events of any time have a place: the months are those in which they are recorded', async () => {
  for (const at of ['2001-01-01T00:00:00Z', '2999-01-01T00:00:00Z']) {
    await insert(db, 'public.usage_events', {
      workspace_id: platform.workspaceId,
      metric: 'tokens',
      quantity: 1,
      occurred_at: at,
    });
  }
  expect(await db.query('select 1 from public.usage_events')).toHaveLength(2);
  expect(await ensurePartitions(db)).toBe(0);
});
