import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { type Database, openDatabase } from '../../src/db/database.ts';
import { schedulePass } from '../../src/services/scheduler.ts';
import { silentLogger } from '../../src/telemetry/logger.ts';
import { createMetrics } from '../../src/telemetry/metrics.ts';
import { setDatabaseClock, type TestDatabase, testDatabase } from '../support/database.ts';
import {
  type Columns,
  makeAgent,
  makePlatform,
  makeTask,
  type Platform,
  startRun,
} from '../support/platform.ts';

let db: TestDatabase;
let platform: Platform;

beforeAll(async () => {
  db = await testDatabase();
  platform = await makePlatform(db);
});

afterAll(() => db?.dispose());

beforeEach(async () => {
  await db.query('delete from public.agent_tasks');
  await db.query('delete from public.task_runs');
});

const parts = { clock: systemClock, log: silentLogger(), metrics: createMetrics() };

/** Makes it a time (UTC) and lets a scheduler do all that is due. */
async function at(time: string | Date, on: Database = db): Promise<void> {
  await setDatabaseClock(on, typeof time === 'string' ? new Date(`${time}Z`) : time);
  while ((await schedulePass({ db: on, ...parts })) > 0);
}

function scheduled(columns: Columns, agentId = platform.agentId): Promise<string> {
  return makeTask(db, { ...platform, agentId }, columns);
}

type Occurrence = { scheduled_for: Date; status: string; trigger: string; reason_code: string | null };

function occurrences(taskId: string): Promise<Occurrence[]> {
  return db.query<Occurrence>(
    'select * from public.task_runs where task_id = $1 and scheduled_for is not null order by scheduled_for',
    [taskId],
  );
}

const short = (time: Date): string => time.toISOString().replace(/(:00)?\.000Z$/, '');

/** The occurrences as 'time status reason'. */
async function rows(taskId: string): Promise<string[]> {
  return (await occurrences(taskId)).map((row) =>
    [short(row.scheduled_for), row.trigger, row.status, row.reason_code].filter(Boolean).join(' '),
  );
}

type Task = {
  status: string;
  reason_code: string | null;
  reason: string | null;
  next_run_at: Date | null;
  last_run_at: Date | null;
  total_executions: number;
};

async function task(taskId: string): Promise<Task> {
  const [row] = await db.query<Task>('select * from public.agent_tasks where id = $1', [taskId]);
  if (!row) throw new Error(`Task ${taskId} is gone.`);
  return row;
}

async function nextOf(taskId: string): Promise<string | null> {
  const { next_run_at } = await task(taskId);
  return next_run_at && short(next_run_at);
}

/** Ends whatever runs the tasks have, as a worker would. */
function endRuns(): Promise<unknown> {
  return db.query(
    `update public.task_runs set status = 'completed', finished_at = agentd.now() where status in ('queued', 'running')`,
  );
}

describe('many schedulers on one database', () => {
  test('start every occurrence exactly once', async () => {
    const others = [1, 2].map(() => openDatabase({ url: db.url, embedded: db.embedded }));
    const schedulers = [db, ...others];
    const tasks = await Promise.all(
      Array.from({ length: 40 }, () => scheduled({ cron_expression: '* * * * *', overlap_policy: 'allow' })),
    );
    await at('2026-05-01T10:00:30');
    for (let minute = 1; minute <= 4; minute++) {
      await setDatabaseClock(db, new Date(`2026-05-01T10:0${minute}:05Z`));
      await Promise.all(schedulers.flatMap((one) => [0, 1].map(() => schedulePass({ db: one, ...parts }))));
      // What one of them skipped because another had it locked is done by now.
      expect(await schedulePass({ db, ...parts })).toBe(0);
    }
    await Promise.all(others.map((one) => one.close()));
    for (const id of tasks) {
      expect(await rows(id)).toEqual(
        [1, 2, 3, 4].map((minute) => `2026-05-01T10:0${minute} schedule queued`),
      );
      // The unique index hides a second start; the count would not.
      expect((await task(id)).total_executions).toBe(4);
    }
  });
});

describe('a change of the clocks', () => {
  /** What | expression | zone | from | to | the instants at which it runs. */
  test.each([
    [
      'New York, spring',
      '30 2 * * *',
      'America/New_York',
      '2026-03-07T12:00',
      '2026-03-09T12:00',
      '2026-03-08T07:00 2026-03-09T06:30',
    ],
    [
      'New York, autumn',
      '30 1 * * *',
      'America/New_York',
      '2026-10-31T12:00',
      '2026-11-02T12:00',
      '2026-11-01T05:30 2026-11-02T06:30',
    ],
    [
      'London, spring',
      '15 1 * * *',
      'Europe/London',
      '2026-03-28T12:00',
      '2026-03-30T12:00',
      '2026-03-29T01:00 2026-03-30T00:15',
    ],
    [
      'London, autumn',
      '30 1 * * *',
      'Europe/London',
      '2026-10-24T12:00',
      '2026-10-26T12:00',
      '2026-10-25T00:30 2026-10-26T01:30',
    ],
    [
      'Lord Howe, autumn',
      '45 1 * * *',
      'Australia/Lord_Howe',
      '2026-04-04T00:00',
      '2026-04-06T00:00',
      '2026-04-04T14:45 2026-04-05T15:15',
    ],
    [
      'Lord Howe, spring',
      '15 2 * * *',
      'Australia/Lord_Howe',
      '2026-10-03T00:00',
      '2026-10-05T00:00',
      '2026-10-03T15:30 2026-10-04T15:15',
    ],
    [
      'Apia, a day that was not',
      '0 9 * * *',
      'Pacific/Apia',
      '2011-12-29T00:00',
      '2011-12-31T00:00',
      '2011-12-29T19:00 2011-12-30T10:00 2011-12-30T19:00',
    ],
    [
      'São Paulo, spring',
      '0 0 * * *',
      'America/Sao_Paulo',
      '2018-11-03T12:00',
      '2018-11-05T12:00',
      '2018-11-04T03:00 2018-11-05T02:00',
    ],
    [
      'São Paulo, autumn',
      '30 23 * * *',
      'America/Sao_Paulo',
      '2019-02-16T12:00',
      '2019-02-18T12:00',
      '2019-02-17T01:30 2019-02-18T02:30',
    ],
  ])(
    '%s: each day once, whether the daemon is on time or late',
    async (_, cron, zone, from, to, expected) => {
      for (const lateMs of [5_000, 35 * 60_000]) {
        const id = await scheduled({ cron_expression: cron, timezone: zone, overlap_policy: 'allow' });
        const end = new Date(`${to}Z`);
        await at(from);
        for (
          let next = (await task(id)).next_run_at;
          next && next < end;
          next = (await task(id)).next_run_at
        ) {
          await at(new Date(next.getTime() + lateMs));
        }
        const found = await occurrences(id);
        expect(found.map((row) => short(row.scheduled_for)).join(' ')).toBe(expected);
        expect(found.every((row) => row.status === 'queued')).toBe(true);
        await db.query(`update public.agent_tasks set status = 'paused' where id = $1`, [id]);
      }
    },
  );

  test('an interval runs through the repeated hour in real time', async () => {
    const id = await scheduled({
      cron_expression: '*/30 * * * *',
      timezone: 'America/New_York',
      overlap_policy: 'allow',
    });
    for (const time of ['04:45', '05:00', '05:30', '06:00', '06:30', '07:00'])
      await at(`2026-11-01T${time}:10`);
    expect((await occurrences(id)).map((row) => short(row.scheduled_for).slice(11))).toEqual([
      '05:00',
      '05:30',
      '06:00',
      '06:30',
      '07:00',
    ]);
  });
});

describe('a daemon that comes late', () => {
  async function fiveDaysLate(misfire: string): Promise<string> {
    const id = await scheduled({
      cron_expression: '0 9 * * *',
      misfire_policy: misfire,
      overlap_policy: 'allow',
    });
    await at('2026-01-04T12:00');
    await at('2026-01-09T12:00');
    expect(await nextOf(id)).toBe('2026-01-10T09:00');
    return id;
  }

  test('run_once makes the latest missed occurrence up and accounts for the others', async () => {
    const id = await fiveDaysLate('run_once');
    expect(await rows(id)).toEqual([
      '2026-01-05T09:00 catch_up skipped missed',
      '2026-01-09T09:00 catch_up queued',
    ]);
    const [skipped] = await db.query<{ reason: string }>(
      `select reason from public.task_runs where task_id = $1 and status = 'skipped'`,
      [id],
    );
    expect(skipped?.reason).toMatch(/^4 occurrences/);
    expect((await task(id)).total_executions).toBe(1);
  });

  test('skip makes none up and says so', async () => {
    const id = await fiveDaysLate('skip');
    expect(await rows(id)).toEqual(['2026-01-05T09:00 catch_up skipped missed']);
    expect((await task(id)).total_executions).toBe(0);
  });

  test('run_all makes all of them up, one after the other', async () => {
    const id = await fiveDaysLate('run_all');
    expect(await rows(id)).toEqual([5, 6, 7, 8, 9].map((day) => `2026-01-0${day}T09:00 catch_up queued`));
    const admitted = await db.query<{ scheduled_for: Date }>(
      'select scheduled_for from public.task_runs where task_id = $1 and job_id is not null',
      [id],
    );
    expect(admitted.map((row) => short(row.scheduled_for))).toEqual(['2026-01-05T09:00']);
  });

  test('run_all under the overlap policy skip makes all of them up as well', async () => {
    const id = await scheduled({ cron_expression: '0 9 * * *', misfire_policy: 'run_all' });
    await at('2026-01-04T12:00');
    await at('2026-01-07T12:00');
    expect(await rows(id)).toEqual([5, 6, 7].map((day) => `2026-01-0${day}T09:00 catch_up queued`));
  });
});

describe('an occurrence while the run before has not ended', () => {
  async function twice(overlap: string): Promise<string> {
    const id = await scheduled({ cron_expression: '0 * * * *', overlap_policy: overlap });
    await at('2026-01-01T08:30');
    await at('2026-01-01T09:00:01');
    await at('2026-01-01T10:00:01');
    return id;
  }

  test('skip: it is a row that names the run in its way', async () => {
    const id = await twice('skip');
    expect(await rows(id)).toEqual([
      '2026-01-01T09:00 schedule queued',
      '2026-01-01T10:00 schedule skipped overlap',
    ]);
    const [first, second] = await db.query<{ id: string; reason: string | null }>(
      'select id, reason from public.task_runs where task_id = $1 order by scheduled_for',
      [id],
    );
    expect(second?.reason).toContain(first?.id);
    expect((await task(id)).total_executions).toBe(1);
    await endRuns();
    await at('2026-01-01T11:00:01');
    expect((await rows(id)).at(-1)).toBe('2026-01-01T11:00 schedule queued');
  });

  test('skip: occurrences that fall due together do not run together', async () => {
    const id = await scheduled({ cron_expression: '*/20 * * * * *', overlap_policy: 'skip' });
    await at('2026-01-01T08:59:50');
    await at('2026-01-01T09:00:45');
    expect(await rows(id)).toEqual([
      '2026-01-01T09:00 schedule queued',
      '2026-01-01T09:00:20 schedule skipped overlap',
      '2026-01-01T09:00:40 schedule skipped overlap',
    ]);
  });

  test('queue: it waits for its turn', async () => {
    const id = await twice('queue');
    const found = await db.query<{ status: string; admitted: boolean }>(
      'select status, job_id is not null as admitted from public.task_runs where task_id = $1 order by scheduled_for',
      [id],
    );
    expect(found).toEqual([
      { status: 'queued', admitted: true },
      { status: 'queued', admitted: false },
    ]);
  });

  test('allow: both run', async () => {
    const id = await twice('allow');
    const found = await db.query<{ status: string; admitted: boolean }>(
      'select status, job_id is not null as admitted from public.task_runs where task_id = $1',
      [id],
    );
    expect(found).toEqual(Array(2).fill({ status: 'queued', admitted: true }));
  });

  test.each(['skip', 'queue'])('%s: a run that a person asked for is not held back', async (overlap) => {
    const id = await twice(overlap);
    const manual = await startRun(db, id);
    const [run] = await db.query<{ status: string; job_id: string | null }>(
      'select status, job_id from public.task_runs where id = $1',
      [manual],
    );
    expect(run?.status).toBe('queued');
    expect(run?.job_id).not.toBeNull();
  });
});

describe('the bounds of a task', () => {
  test('start and end dates are days in its zone, both inclusive; after the last one it is completed', async () => {
    const id = await scheduled({
      cron_expression: '0 0,23 * * *',
      timezone: 'Pacific/Auckland',
      start_date: '2026-06-10',
      end_date: '2026-06-11',
      overlap_policy: 'allow',
    });
    await at('2026-06-01T00:00');
    // Midnight of the 10th in Auckland (+12).
    expect(await nextOf(id)).toBe('2026-06-09T12:00');
    for (const time of [
      '2026-06-09T12:00:01',
      '2026-06-10T11:00:01',
      '2026-06-10T12:00:01',
      '2026-06-11T11:00:01',
    ])
      await at(time);
    expect((await occurrences(id)).map((row) => short(row.scheduled_for))).toEqual([
      '2026-06-09T12:00',
      '2026-06-10T11:00',
      '2026-06-10T12:00',
      '2026-06-11T11:00',
    ]);
    expect(await task(id)).toMatchObject({
      status: 'completed',
      reason_code: 'end_date_passed',
      next_run_at: null,
    });
  });

  test('max_executions counts what was started, and completes the task with the last one', async () => {
    const id = await scheduled({ cron_expression: '0 * * * *', max_executions: 2, overlap_policy: 'skip' });
    await at('2026-01-01T08:30');
    await at('2026-01-01T09:00:01');
    // Skipped for its overlap: not an execution.
    await at('2026-01-01T10:00:01');
    expect(await task(id)).toMatchObject({ status: 'active', total_executions: 1 });
    await endRuns();
    await at('2026-01-01T11:00:01');
    await at('2026-01-01T12:00:01');
    expect(await task(id)).toMatchObject({
      status: 'completed',
      reason_code: 'max_executions_reached',
      total_executions: 2,
    });
    expect((await rows(id)).map((row) => row.slice(11))).toEqual([
      '09:00 schedule completed',
      '10:00 schedule skipped overlap',
      '11:00 schedule queued',
    ]);
  });

  test('a task with one date runs once and is completed', async () => {
    const id = await scheduled({ next_run_at: '2026-02-03T04:05:06Z' });
    await at('2026-02-03T04:05:05');
    expect(await rows(id)).toEqual([]);
    await at('2026-02-03T04:05:07');
    await at('2026-02-03T04:06:00');
    expect(await rows(id)).toEqual(['2026-02-03T04:05:06 schedule queued']);
    expect(await task(id)).toMatchObject({ status: 'completed', next_run_at: null, total_executions: 1 });
  });
});

describe('a task that is changed', () => {
  test('an edited expression counts from now: nothing of the old one is made up for', async () => {
    const id = await scheduled({ cron_expression: '0 9 * * *', overlap_policy: 'allow' });
    await at('2026-01-01T08:00');
    await at('2026-01-01T09:00:01');
    // While that run is under way and the old expression's next time passes unnoticed.
    await setDatabaseClock(db, new Date('2026-01-02T09:30:00Z'));
    await db.query(`update public.agent_tasks set cron_expression = '45 * * * *' where id = $1`, [id]);
    await at('2026-01-02T09:30:01');
    expect(await nextOf(id)).toBe('2026-01-02T09:45');
    await at('2026-01-02T09:45:01');
    expect(await rows(id)).toEqual(['2026-01-01T09:00 schedule queued', '2026-01-02T09:45 schedule queued']);
  });

  test('a next_run_at that the application sets is kept, and the schedule goes on after it', async () => {
    const id = await scheduled({
      cron_expression: '0 9 * * *',
      next_run_at: '2026-01-01T07:13:00Z',
      overlap_policy: 'allow',
    });
    await at('2026-01-01T07:13:02');
    expect(await nextOf(id)).toBe('2026-01-01T09:00');
    await db.query(`update public.agent_tasks set next_run_at = '2026-01-01T08:30:00Z' where id = $1`, [id]);
    await at('2026-01-01T08:30:02');
    expect(await rows(id)).toEqual(['2026-01-01T07:13 schedule queued', '2026-01-01T08:30 schedule queued']);
    expect(await nextOf(id)).toBe('2026-01-01T09:00');
  });

  test('while it is paused nothing runs, and what passed meanwhile is not made up for', async () => {
    const id = await scheduled({ cron_expression: '0 * * * *', overlap_policy: 'allow' });
    await at('2026-01-01T08:30');
    await db.query(`update public.agent_tasks set status = 'paused' where id = $1`, [id]);
    await at('2026-01-01T11:30');
    expect(await rows(id)).toEqual([]);
    await db.query(`update public.agent_tasks set status = 'active' where id = $1`, [id]);
    await at('2026-01-01T11:31');
    expect(await nextOf(id)).toBe('2026-01-01T12:00');
    await at('2026-01-01T12:00:01');
    expect(await rows(id)).toEqual(['2026-01-01T12:00 schedule queued']);
  });

  test.each([
    ['agent_draft', { status: 'draft' }],
    ['agent_inactive', { is_active: false }],
  ])(
    '%s: its occurrences are rows that say why they did not run, and count for nothing',
    async (code, columns) => {
      const agentId = await makeAgent(db, platform, columns);
      const id = await scheduled({ cron_expression: '0 * * * *', max_executions: 1 }, agentId);
      await at('2026-01-01T08:30');
      await at('2026-01-01T09:00:01');
      expect(await rows(id)).toEqual([`2026-01-01T09:00 schedule skipped ${code}`]);
      expect(await task(id)).toMatchObject({ status: 'active', total_executions: 0 });
      await db.query(`update public.agents set status = 'live', is_active = true where id = $1`, [agentId]);
      await at('2026-01-01T10:00:01');
      expect((await rows(id)).at(-1)).toBe('2026-01-01T10:00 schedule queued');
    },
  );
});

describe('a schedule that can’t be computed', () => {
  test.each([
    ['invalid_cron', { cron_expression: 'every day' }],
    ['invalid_cron', { cron_expression: '*/70 * * * *' }],
    ['invalid_cron', { cron_expression: '* * * *' }],
    ['invalid_cron', { cron_expression: '' }],
    ['invalid_zone', { cron_expression: '0 9 * * *', timezone: 'Mars/Olympus' }],
    ['invalid_dates', { cron_expression: '0 9 * * *', start_date: '2026-02-02', end_date: '2026-02-01' }],
    ['never_fires', { cron_expression: '0 0 30 2 *' }],
  ])('%s %o: the task is paused with a sentence, and the other tasks go on', async (code, columns) => {
    const bad = await scheduled(columns);
    const good = await scheduled({ cron_expression: '0 * * * *' });
    await at('2026-01-01T08:30');
    await at('2026-01-01T09:00:01');
    const found = await task(bad);
    expect(found).toMatchObject({ status: 'paused', reason_code: code });
    expect(found.reason).toMatch(/\w.*[.]$/);
    expect(await rows(bad)).toEqual([]);
    expect(await rows(good)).toEqual(['2026-01-01T09:00 schedule queued']);
  });

  test('corrected and resumed it runs again, and the reason is gone', async () => {
    const id = await scheduled({ cron_expression: '0 25 * * *' });
    await at('2026-01-01T08:30');
    expect((await task(id)).status).toBe('paused');
    await db.query(
      `update public.agent_tasks set cron_expression = '0 9 * * *', status = 'active' where id = $1`,
      [id],
    );
    await at('2026-01-01T08:31');
    expect(await task(id)).toMatchObject({ status: 'active', reason_code: null, reason: null });
    expect(await nextOf(id)).toBe('2026-01-01T09:00');
  });

  test('a due task whose zone was broken since is paused and not started', async () => {
    const id = await scheduled({ next_run_at: '2026-01-01T09:00:00Z', timezone: 'Nowhere/Else' });
    await at('2026-01-01T09:00:01');
    expect(await task(id)).toMatchObject({ status: 'paused', reason_code: 'invalid_zone' });
    expect(await rows(id)).toEqual([]);
  });
});
