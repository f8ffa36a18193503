/** What one batch of maintenance may do: nothing by a clock that was set, and nothing that holds all other rows up. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { type Database, openDatabase } from '../../src/db/database.ts';
import { registerTasks, takeTask } from '../../src/db/maintenance.ts';
import { workOn } from '../../src/db/maintenance-run.ts';
import { type HeldRow, type MaintenanceTask, monthTask, rowTask } from '../../src/db/maintenance-tasks.ts';
import { loadRetention, type RowRule, rowRules } from '../../src/db/retention-rules.ts';
import { type MaintenanceDeps, maintenance, tidyOnce } from '../../src/services/maintenance.ts';
import { createLogger, silentLogger } from '../../src/telemetry/logger.ts';
import { createMetrics } from '../../src/telemetry/metrics.ts';
import { onServer, shiftDatabaseClock, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform } from '../support/platform.ts';
import { until } from '../support/runs.ts';

const YEARS_MS = 3 * 365 * 86_400_000;
const rule = (name: string): RowRule => rowRules.find((each) => each.name === name) as RowRule;

let db: TestDatabase;
let at: Platform;
beforeEach(async () => {
  db = await testDatabase();
  at = await makePlatform(db);
});
afterEach(() => db?.dispose());

const logRows = async (): Promise<number> =>
  (await db.query<{ n: number }>('select count(*) as n from public.agent_logs'))[0]?.n ?? -1;
const deps = (tasks: readonly MaintenanceTask[], log = silentLogger()): MaintenanceDeps => ({
  db,
  clock: systemClock,
  log,
  metrics: createMetrics(),
  workerId: 'w',
  tasks,
});

/** The first hundred have had their time; the others have not. */
const logs = () =>
  db.query(
    `insert into public.agent_logs (workspace_id, agent_id, timestamp)
     select $1, $2, now() - case when n <= 100 then interval '400 days' else interval '1 day' end + n * interval '1 second'
       from generate_series(1, 500) n`,
    [at.workspaceId, at.agentId],
  );

/** The same task, after whose batches something happens. */
const after = (task: MaintenanceTask, act: () => Promise<void>): MaintenanceTask => ({
  ...task,
  async batch(context, place) {
    const result = await task.batch(context, place);
    await act();
    return result;
  },
});

test('a clock that is set between two batches ends the pass before the next removes anything, and another time it goes on', async () => {
  await logs();
  const task = rowTask(rule('agent_logs'), 180);
  let isSet = false;
  const interrupted = after(task, async () => {
    if (!isSet) await shiftDatabaseClock(db, YEARS_MS);
    isSet = true;
  });
  await registerTasks(db, [task.name]);
  await db.query(`update agentd.maintenance_tasks set due_at = agentd.now() - interval '1 second'`);
  const lines: string[] = [];
  const log = createLogger({
    level: 'error',
    destination: { write: (line: string) => void lines.push(line) },
  });
  const service = maintenance(deps([interrupted], log));
  service.start();
  await until('it has said so', () => lines.length === 1);
  await service.stop();
  expect(lines[0]).toContain('maintenance_clock_doubtful');
  expect(await logRows()).toBe(400);
  await shiftDatabaseClock(db, 0);
  // nobody has it, and nothing failed
  expect(
    await db.query('select lease_expires_at, failures from agentd.maintenance_tasks where name = $1', [
      task.name,
    ]),
  ).toEqual([{ lease_expires_at: null, failures: 0 }]);
  while (await tidyOnce(deps([task])));
  expect(await logRows()).toBe(400);
  expect(await db.query('select rows, outcome from agentd.maintenance_log')).toEqual([
    { rows: 100, outcome: 'completed' },
  ]);
});

test('a batch that finds its clock set undoes what it removed; a month is not dropped at all', async () => {
  await logs();
  await db.query(
    `insert into agentd.job_runs (queue, job_id, attempt, worker_id, outcome, started_at, duration_ms) values ('q', gen_random_uuid(), 1, 'w', 'completed', now(), 1)`,
  );
  const tasks = [rowTask(rule('agent_logs'), 180), monthTask('job_runs', loadRetention())];
  await registerTasks(
    db,
    tasks.map((task) => task.name),
  );
  for (const task of tasks) {
    const taken = await takeTask(db, { names: [task.name], worker: 'w', leaseMs: 60_000, isForced: true });
    if (taken === null) throw new Error('not taken');
    await shiftDatabaseClock(db, YEARS_MS);
    const batch = task.batch(
      {
        db,
        task: taken,
        leaseMs: 60_000,
        elapsed: () => systemClock.elapsed(),
        now: () => systemClock.now(),
        signal: new AbortController().signal,
      },
      null,
    );
    expect([task.name, await batch.catch((error: Error) => error.name)]).toEqual([task.name, 'ClocksApart']);
    await shiftDatabaseClock(db, 0);
  }
  expect(await logRows()).toBe(500);
  expect(await db.query('select 1 from agentd.job_runs')).toHaveLength(1);
});

test.runIf(onServer)(
  'a row on which too much hangs for one statement is stepped over and named, and the others go',
  async () => {
    const conversation = await insert(db, 'public.conversations', {
      workspace_id: at.workspaceId,
      user_id: at.userId,
      agent_id: at.agentId,
    });
    const ids: string[] = [];
    for (let days = 40; days < 60; days++) {
      ids.push(
        await insert(db, 'public.agent_messages', {
          workspace_id: at.workspaceId,
          conversation_id: conversation,
          user_id: at.userId,
          agent_id: at.agentId,
          role: 'user',
          content: 'x',
          metadata: '{"temporary": true}',
          created_at: new Date(Date.now() - days * 86_400_000),
        }),
      );
    }
    const large = ids[12] as string;
    await insert(db, 'public.agent_feedback', { message_id: large, user_id: at.userId, rating: 5 });
    // as much as would keep a statement busy beyond its limit
    await db.query(
      `create function public.much() returns trigger language plpgsql as $$ begin perform pg_sleep(60); return old; end $$`,
    );
    await db.query(
      `create trigger much before delete on public.agent_feedback for each row execute function public.much()`,
    );
    const limited: Database = openDatabase({
      url: db.url,
      embedded: false,
      max: 2,
      limits: { lockMs: 250, statementMs: 400, answerMs: 20_000 },
    });
    const task = rowTask(rule('temporary_agent_messages'), 30);
    await registerTasks(db, [task.name]);
    const taken = await takeTask(db, { names: [task.name], worker: 'w', leaseMs: 60_000, isForced: true });
    const held: HeldRow[] = [];
    const { row, error } = await workOn(
      { db: limited, clock: systemClock, leaseMs: 60_000, onHeld: (one) => held.push(one) },
      task,
      taken as NonNullable<typeof taken>,
      { sliceMs: 120_000, signal: new AbortController().signal },
    );
    await limited.close();
    expect(error).toBeNull();
    expect(row).toMatchObject({ outcome: 'completed', rows: 19, held: 1 });
    expect(held).toEqual([{ task: task.name, key: large, reason: 'too_slow' }]);
    expect(await db.query('select id from public.agent_messages')).toEqual([{ id: large }]);
  },
);
