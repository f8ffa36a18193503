/** `agentd maintenance`: what is tidied, what would go, and doing it now. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { registerTasks, takeTask } from '../../src/db/maintenance.ts';
import { rowRules } from '../../src/db/retention-rules.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform } from '../support/platform.ts';
import { agentd, json } from './support.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
  const at = await makePlatform(db);
  await db.query(
    `insert into public.agent_logs (workspace_id, agent_id, timestamp)
     select $1, $2, now() - n * interval '50 days' from generate_series(1, 10) n`,
    [at.workspaceId, at.agentId],
  );
});
afterAll(() => db?.dispose());

const run = (...args: string[]) => agentd(args, { DATABASE_URL: db.url });
const logs = async (): Promise<number> => (await db.query('select 1 from public.agent_logs')).length;

test('a dry run counts and changes nothing; a run does what it said, and is in the list and in the log', async () => {
  const before = json<{ name: string; rows: number }[]>(
    await run('maintenance', 'run', 'all', '--dry-run', '--json'),
  );
  expect(before.find((row) => row.name === 'agent_logs')).toMatchObject({ rows: 7, keeps: '180 days' });
  expect(before.filter((row) => row.rows > 0).map((row) => row.name)).toEqual(['agent_logs']);
  expect(before).toHaveLength(rowRules.length + 3);
  expect(await logs()).toBe(10);
  expect(await db.query('select 1 from agentd.maintenance_log')).toHaveLength(0);

  const shown = await run('maintenance', 'run', 'agent_logs', '--dry-run');
  expect(shown.stdout).toMatch(/agent_logs +180 days +7 /);
  expect(shown.stdout).toContain('Nothing was changed.');

  expect(json(await run('maintenance', 'run', 'agent_logs', '--json'))).toMatchObject([
    { name: 'agent_logs', outcome: 'completed', rows: 7, held: 0 },
  ]);
  expect(await logs()).toBe(3);
  const listed = json<{ name: string }[]>(await run('maintenance', 'list', '--json'));
  expect(listed.find((row) => row.name === 'agent_logs')).toMatchObject({
    last_rows: 7,
    last_outcome: 'completed',
    failures: 0,
    worker_id: null,
  });
  const [log] = await db.query<{ worker_id: string }>('select worker_id from agentd.maintenance_log');
  expect(log?.worker_id).toMatch(/@/);
});

test('a task that another process is at is left to it, and a name that is none is answered with those that are', async () => {
  await registerTasks(db, ['agent_logs']);
  await takeTask(db, { names: ['agent_logs'], worker: 'daemon', leaseMs: 60_000, isForced: true });
  const busy = await run('maintenance', 'run', 'agent_logs');
  expect(busy.code).toBe(1);
  expect(busy.stderr).toContain('agent_logs (busy)');
  const wrong = await run('maintenance', 'run', 'everything');
  expect(wrong.code).toBe(2);
  expect(wrong.stderr).toContain('months_of_usage_events');
  expect((await run('maintenance', 'list')).stdout).toMatch(/agent_logs +180 days .* now/);
});
