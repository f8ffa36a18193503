/** Periods of usage: they never overlap, whoever opens and cuts them at once, and one workspace that can't be summed up holds up no other. */
import { randomUUID } from 'node:crypto';
import type pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type Clock, systemClock } from '../../src/clock.ts';
import { gatherUsage, rebuildUsage, usageDrift } from '../../src/db/usage.ts';
import { foldAll, leftUsage, recutAll } from '../../src/services/usage-folding.ts';
import { followLimits } from '../../src/services/usage-limits.ts';
import { rollUp } from '../../src/services/usage-rollup.ts';
import { silentLogger } from '../../src/telemetry/logger.ts';
import { createMetrics } from '../../src/telemetry/metrics.ts';
import { onServer, setDatabaseClock, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert } from '../support/platform.ts';
import { type Company, company, value } from './schema-support.ts';

/** A POSIX rule by which clocks are set by 160 hours in the year: no zone, but PostgreSQL takes it for one. */
const RULE = 'A0B-160,J1/0,J337/16';

let db: TestDatabase;
let at: Company;

beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db?.dispose());
beforeEach(async () => {
  at = await company(db.pool);
});
afterEach(async () => {
  await setDatabaseClock(db, null);
  await db.query('drop trigger if exists fail_here on public.workspace_usage');
  await db.query('delete from public.workspaces where not is_personal');
  await db.query('delete from public.pricing_plans');
  await db.query('delete from agentd.usage_recuts');
  await pass();
});

const deps = (clock: Clock = systemClock) => ({
  db,
  clock,
  log: silentLogger(),
  metrics: createMetrics(),
});
const pass = () => rollUp(deps());
const now = (time: string) => setDatabaseClock(db, new Date(time));
const record = (
  metric: string,
  quantity: number,
  when: string | null = null,
  workspace: string = at.workspace,
) =>
  db.query('select agentd.record_usage($1, $2, $3, $4, 0, $5)', [
    workspace,
    metric,
    quantity,
    randomUUID(),
    when,
  ]);
const consume = (n: number, client: Pick<pg.Pool, 'query'> = db.pool, key: string | null = null) =>
  value<boolean>(client, `select agentd.consume_usage($1, 'messages', $2, $3)`, [at.workspace, n, key]);
const plan = (columns: Record<string, unknown> = {}) =>
  insert(db, 'public.pricing_plans', { name: 'p', usage_period: 'subscription', ...columns });
const subscribe = (planId: string, from: string, to: string) =>
  insert(db, 'public.workspace_subscriptions', {
    workspace_id: at.workspace,
    plan_id: planId,
    status: 'active',
    current_period_start: from,
    current_period_end: to,
  });
const periods = async (workspace = at.workspace) =>
  (
    await db.query<{ kind: string; from: string; to: string; messages: number }>(
      `select period_kind as kind, to_char(period_start at time zone 'UTC', 'MM-DD HH24:MI') as from,
              to_char(period_end at time zone 'UTC', 'MM-DD HH24:MI') as to, messages
         from public.workspace_usage where workspace_id = $1 order by period_start, period_end`,
      [workspace],
    )
  ).map((row) => [row.kind, row.from, row.to, row.messages]);
const counters = async (metric = 'messages') =>
  Object.fromEntries(
    (
      await db.query<{ month: string; used: number }>(
        `select month::text, used::float8 from public.workspace_usage_counters
          where workspace_id = $1 and metric = $2 and used <> 0 order by 1`,
        [at.workspace, metric],
      )
    ).map((row) => [row.month, row.used]),
  );
/** Makes every write of a workspace's sums fail with a code. */
const failFor = (workspace: string, code: string) =>
  db.query(`
    create or replace function public.fail_here() returns trigger language plpgsql as
      $$ begin raise exception 'not this one' using errcode = '${code}'; end $$;
    create trigger fail_here before insert or update on public.workspace_usage
      for each row when (new.workspace_id = '${workspace}') execute function public.fail_here();`);
const waits = (client: pg.PoolClient) =>
  expect
    .poll(
      () =>
        value(db.pool, 'select wait_event_type from pg_stat_activity where pid = $1', [
          (client as unknown as { processID: number }).processID,
        ]),
      { timeout: 15_000 },
    )
    .toBe('Lock');

describe('no two periods of a workspace overlap', () => {
  test('a row that an application inserts has what is left between its neighbours, or nothing', async () => {
    await now('2026-11-25T00:00:00Z');
    await subscribe(await plan(), '2026-11-20T00:00:00Z', '2026-12-20T00:00:00Z');
    await record('message', 3);
    await pass();
    const add = (month: string, from: string | null = null, to: string | null = null) =>
      db.query(
        'insert into public.workspace_usage (workspace_id, month, messages, period_start, period_end) values ($1, $2, 100, $3, $4)',
        [at.workspace, month, from, to],
      );
    await add('2026-11-01');
    await add('2026-12-01');
    await add('2026-11-26', '2026-11-26T00:00:00Z', '2026-11-27T00:00:00Z');
    await record('message', 4);
    await pass();
    expect(await periods()).toEqual([
      ['month', '11-01 00:00', '11-20 00:00', 100],
      ['subscription', '11-20 00:00', '12-20 00:00', 7],
      ['month', '12-20 00:00', '12-20 00:00', 100],
      ['month', '12-20 00:00', '01-01 00:00', 100],
    ]);
    expect(await usageDrift(db, at.workspace)).toEqual([]);
  });

  test('where two overlap nevertheless, the comparison says so, and a rebuild parts them', async () => {
    await now('2026-11-25T00:00:00Z');
    await record('message', 3, '2026-11-10T00:00:00Z');
    await record('message', 4);
    await pass();
    await db.query('alter table public.workspace_usage disable trigger fill_3_apart');
    await db.query(
      `insert into public.workspace_usage (workspace_id, month, period_kind, period_start, period_end, messages, rolled_up_at)
       values ($1, '2026-11-20', 'subscription', '2026-11-20Z', '2026-12-20Z', 4, agentd.now())`,
      [at.workspace],
    );
    await db.query('alter table public.workspace_usage enable trigger fill_3_apart');
    expect(await usageDrift(db, at.workspace)).toMatchObject([
      { level: 'overlap', at: new Date('2026-11-20T00:00:00Z'), metric: 'periods', expected: 1, found: 2 },
    ]);
    await rebuildUsage(db, at.workspace);
    expect(await periods()).toEqual([
      ['month', '11-01 00:00', '11-20 00:00', 3],
      ['subscription', '11-20 00:00', '12-20 00:00', 4],
    ]);
    expect(await usageDrift(db, at.workspace)).toEqual([]);
  });

  test.runIf(onServer)(
    'server-only: who names the edges of a period and leaves them as they are does not wait for a rebuild',
    async () => {
      await record('message', 3);
      await pass();
      const [rebuilder, writer] = [await db.pool.connect(), await db.pool.connect()];
      try {
        await rebuilder.query('begin');
        await rebuilder.query('select agentd.hold_usage_periods($1)', [at.workspace]);
        await writer.query(`set lock_timeout = '200ms'`);
        await writer.query(
          `update public.workspace_usage set workspace_id = workspace_id, month = month, period_start = period_start, period_end = period_end
            where workspace_id = $1`,
          [at.workspace],
        );
        await expect(
          writer.query(
            `update public.workspace_usage set period_end = period_end + interval '1 day' where workspace_id = $1`,
            [at.workspace],
          ),
        ).rejects.toMatchObject({ code: '55P03' });
      } finally {
        await writer.query('reset lock_timeout');
        await rebuilder.query('rollback');
        rebuilder.release();
        writer.release();
      }
    },
  );

  test.runIf(onServer)(
    'server-only: a cut waits for who is opening a period, and each event counts once',
    async () => {
      await now('2026-11-25T00:00:00Z');
      const first = await db.pool.connect();
      await first.query('begin');
      await consume(1, first);
      await subscribe(await plan(), '2026-11-20T00:00:00Z', '2026-12-20T00:00:00Z');
      await pass();
      expect(await periods()).toEqual([]);
      await first.query('commit');
      first.release();
      await record('message', 4);
      await pass();
      expect(await periods()).toEqual([
        ['month', '11-01 00:00', '11-20 00:00', 0],
        ['subscription', '11-20 00:00', '12-20 00:00', 4],
      ]);
      expect(await usageDrift(db, at.workspace)).toEqual([]);
    },
  );
});

describe('zones', () => {
  test('a month begins when its midnight first comes, and the hour that comes twice is folded', async () => {
    await now('2026-11-01T12:00:00Z');
    await db.query(`update public.workspaces set timezone = 'America/Havana' where id = $1`, [at.workspace]);
    for (const time of ['03:59:59', '04:00:00', '04:30:00', '05:30:00'])
      await record('message', 1, `2026-11-01T${time}Z`);
    await pass();
    expect(await periods()).toEqual([
      ['month', '10-01 04:00', '11-01 04:00', 1],
      ['month', '11-01 04:00', '12-01 05:00', 3],
    ]);
  });

  test('a rule of one’s own is no zone; names are, also those with digits', async () => {
    const zones = [RULE, 'A0B-160', 'UTC+3', '<+03>-3', 'Etc/GMT+99', 'right/UTC', 'Nowhere/None'];
    for (const zone of zones)
      expect([zone, await value(db.pool, 'select agentd.valid_time_zone($1)', [zone])]).toEqual([
        zone,
        'UTC',
      ]);
    expect(
      await db.query(
        'select z.name from pg_timezone_names z where agentd.valid_time_zone(z.name) <> z.name limit 5',
      ),
    ).toEqual([]);
  });

  test('whatever zone a session is in, the periods are the same', async () => {
    await now('2026-05-10T00:00:00Z');
    await subscribe(await plan(), '2026-01-31T08:00:05Z', '2026-02-28T08:00:05Z');
    const ask = async (zone: string) => {
      const client = await db.pool.connect();
      try {
        await client.query(`select set_config('timezone', $1, false)`, [zone]);
        return await value(
          client,
          `select jsonb_agg(to_jsonb(array[extract(epoch from p.period_start), extract(epoch from p.period_end)]) order by t)
             from generate_series(timestamptz '2026-01-01 00:00:00+00', '2027-01-10 00:00:00+00', interval '97 hours') t,
                  agentd.natural_usage_period($1, t) p`,
          [at.workspace],
        );
      } finally {
        await client.query('reset timezone');
        client.release();
      }
    };
    const expected = await ask('UTC');
    expect([await ask(RULE), await ask('America/St_Johns')]).toEqual([expected, expected]);
  });
});

describe('what a subscription leaves', () => {
  test('a year’s period ends with its subscription: the default plan’s limit is not measured on it', async () => {
    await now('2026-02-10T00:00:00Z');
    await plan({ usage_period: 'month', message_limit: 100, is_default: true });
    const id = await subscribe(await plan(), '2026-02-01T00:00:00Z', '2027-02-01T00:00:00Z');
    expect(await consume(5_000, db.pool, 'february')).toBe(true);
    await pass();
    await now('2026-03-15T00:00:00Z');
    await db.query(`update public.workspace_subscriptions set status = 'canceled' where id = $1`, [id]);
    await now('2026-03-16T00:00:00Z');
    await pass();
    await now('2026-09-01T00:00:00Z');
    expect([await consume(101), await consume(100)]).toEqual([false, true]);
    await pass();
    expect((await periods())[0]).toEqual(['subscription', '02-01 00:00', '03-15 00:00', 0]);
    expect(await counters()).toEqual({ '2026-02-01': 5_000, '2026-09-01': 100 });
  });

  test('a corrected beginning does not warn of the same usage again', async () => {
    await now('2026-02-15T00:00:00Z');
    const id = await subscribe(
      await plan({ message_limit: 10 }),
      '2026-02-10T00:00:00Z',
      '2026-03-10T00:00:00Z',
    );
    await consume(9, db.pool, 'a');
    await pass();
    await db.query(
      `update public.workspace_subscriptions set current_period_start = '2026-02-09Z', current_period_end = '2026-03-09Z' where id = $1`,
      [id],
    );
    await pass();
    expect((await followLimits(deps())).warnings).toBe(0);
    expect(
      await db.query(
        'select month::text, threshold from public.usage_warnings where workspace_id = $1 order by 1',
        [at.workspace],
      ),
    ).toEqual([{ month: '2026-02-09', threshold: 80 }]);
  });

  test('a run that waits at a limit looks again when the renewal has been cut, not only when it came', async () => {
    await now('2026-02-15T00:00:00Z');
    const id = await subscribe(
      await plan({ token_limit: 10 }),
      '2026-01-10T00:00:00Z',
      '2026-02-20T00:00:00Z',
    );
    const task = await insert(db, 'public.agent_tasks', {
      workspace_id: at.workspace,
      agent_id: at.agent,
      name: 't',
    });
    const run = await insert(db, 'public.task_runs', { workspace_id: at.workspace, task_id: task });
    await pass();
    const wakes = () =>
      value(db.pool, 'select wake_at = agentd.now() from public.task_runs where id = $1', [run]);
    const sleep = () =>
      db.query(
        `update public.task_runs set status = 'waiting', reason_code = 'usage_limit_reached', wake_at = '2030-01-01' where id = $1`,
        [run],
      );
    await db.query(
      `update public.workspace_subscriptions set current_period_start = '2026-02-14Z', current_period_end = '2026-03-14Z' where id = $1`,
      [id],
    );
    // it has looked, and found the limit where it was
    await sleep();
    expect(await wakes()).toBe(false);
    await pass();
    expect(await wakes()).toBe(true);
  });
});

describe('one workspace', () => {
  const other = async () => (await company(db.pool)).workspace;

  test('whose usage can’t be folded keeps its deltas, and all others are folded', async () => {
    const second = await other();
    await failFor(at.workspace, '22000');
    await record('message', 1);
    await record('message', 2, null, second);
    await pass();
    expect([(await periods()).length, (await periods(second)).length]).toEqual([0, 1]);
    await db.query('drop trigger fail_here on public.workspace_usage');
    await pass();
    expect((await periods()).length).toBe(1);
  });

  test('whose cut takes too long is left for a growing pause: others are cut, and usage is gathered', async () => {
    await record('message', 1);
    await pass();
    const mine = at.workspace;
    const second = await other();
    await record('message', 2, null, second);
    await pass();
    let elapsed = 0;
    const clock = { ...systemClock, elapsed: () => elapsed };
    await failFor(mine, '57014');
    for (const id of [mine, second])
      await db.query(`update public.workspaces set timezone = 'Asia/Kolkata' where id = $1`, [id]);
    await record('message', 4, null, second);
    const left = leftUsage(clock);
    const waiting = () => db.query('select workspace_id as id from agentd.usage_recuts');
    await rollUp(deps(clock), null, left);
    expect(await waiting()).toEqual([{ id: mine }]);
    expect((await periods(second)).map((row) => row[3])).toEqual([6]);
    expect(left.recuts.waiting()).toEqual([mine]);
    await db.query('drop trigger fail_here on public.workspace_usage');
    elapsed = 59_000;
    await recutAll(deps(clock), left.recuts);
    expect(await waiting()).toHaveLength(1);
    elapsed = 61_000;
    await recutAll(deps(clock), left.recuts);
    expect([await waiting(), left.recuts.all()]).toEqual([[], []]);
  });

  test.runIf(onServer)(
    'server-only: whose cut finds another pass under way is not left for a pause',
    async () => {
      await record('message', 1);
      await pass();
      const waiting = () => db.query('select 1 from agentd.usage_recuts');
      for (const name of ['usage', 'fold']) {
        await db.query('insert into agentd.usage_recuts (workspace_id) values ($1)', [at.workspace]);
        const left = leftUsage(systemClock);
        const other = await db.pool.connect();
        try {
          await other.query('begin');
          await other.query('select 1 from agentd.usage_rollup_state where name = $1 for update', [name]);
          await recutAll(deps(), left.recuts);
          expect([left.recuts.all(), await waiting()]).toEqual([[], [{ '?column?': 1 }]]);
        } finally {
          await other.query('rollback');
          other.release();
        }
        await recutAll(deps(), left.recuts);
        expect(await waiting()).toEqual([]);
      }
    },
  );

  test.runIf(onServer)(
    'server-only: whose first row somebody inserts is asked again after a pause, not in every pass',
    async () => {
      let elapsed = 0;
      const clock = { ...systemClock, elapsed: () => elapsed };
      const left = leftUsage(clock);
      const holder = await db.pool.connect();
      await holder.query('begin');
      await consume(1, holder);
      await record('message', 1);
      await gatherUsage(db, null);
      expect(await foldAll(deps(clock), left.folds)).toBe(0);
      expect(left.folds.waiting()).toEqual([at.workspace]);
      await holder.query('commit');
      holder.release();
      expect(await foldAll(deps(clock), left.folds)).toBe(0);
      elapsed = 1_001;
      expect(await foldAll(deps(clock), left.folds)).toBe(1);
      expect(left.folds.all()).toEqual([]);
    },
  );

  test.runIf(onServer)(
    'server-only: whose owner holds it keeps nobody from ending its subscription or changing the plan',
    async () => {
      const planId = await plan();
      const id = await subscribe(planId, '2026-11-20T00:00:00Z', '2026-12-20T00:00:00Z');
      await pass();
      const [owner, backend] = [await db.pool.connect(), await db.pool.connect()];
      await owner.query('begin');
      await owner.query('select 1 from public.workspaces where id = $1 for update', [at.workspace]);
      await owner.query(`update public.workspaces set timezone = 'Asia/Kolkata' where id = $1`, [
        at.workspace,
      ]);
      await backend.query(`set lock_timeout = '200ms'`);
      await backend.query(`update public.pricing_plans set usage_period = 'month' where id = $1`, [planId]);
      await backend.query(`update public.workspace_subscriptions set status = 'canceled' where id = $1`, [
        id,
      ]);
      await backend.query('reset lock_timeout');
      await owner.query('rollback');
      owner.release();
      backend.release();
      await pass();
      expect(await db.query('select 1 from agentd.usage_recuts')).toEqual([]);
    },
  );
});

test('when an event was recorded has bounds, so that no event stops the roll-up', async () => {
  for (const time of ['4713-01-01 00:00:00+00 BC', '1899-12-31T00:00:00Z', '3000-01-01T00:00:00Z'])
    await expect(
      db.query(
        `insert into public.usage_events (workspace_id, metric, recorded_at) values ($1, 'message', $2)`,
        [at.workspace, time],
      ),
    ).rejects.toMatchObject({ code: expect.stringMatching(/^23514$/) });
});

describe.runIf(onServer)('server-only: what waits for a cut', () => {
  /** A renewal that began on the 20th, cut by a transaction that is held until `then` waits for it. */
  const beside = async (then: (client: pg.PoolClient) => Promise<unknown>) => {
    await now('2026-11-25T00:00:00Z');
    await consume(10, db.pool, 'first');
    await db.query('select public.increment_conversation_count($1)', [at.workspace]);
    await subscribe(await plan(), '2026-11-20T00:00:00Z', '2026-12-20T00:00:00Z');
    const [cutter, waiter] = [await db.pool.connect(), await db.pool.connect()];
    try {
      await cutter.query('begin');
      await cutter.query('select agentd.recut_requested_usage($1)', [at.workspace]);
      const waiting = then(waiter);
      await waits(waiter);
      await cutter.query('commit');
      await waiting;
    } finally {
      cutter.release();
      waiter.release();
    }
  };

  test('counts in the period that there is afterwards: a grant', async () => {
    await beside((client) => consume(5, client, 'second'));
    expect(await counters()).toEqual({ '2026-11-20': 15 });
  });

  test('counts in the period that there is afterwards: a call', async () => {
    await beside((client) => client.query('select public.increment_conversation_count($1)', [at.workspace]));
    expect(await counters('conversations')).toEqual({ '2026-11-20': 2 });
  });

  test('keeps its difference: what a grant has come to', async () => {
    await now('2026-11-25T00:00:00Z');
    await consume(10, db.pool, 'first');
    await subscribe(await plan(), '2026-11-20T00:00:00Z', '2026-12-20T00:00:00Z');
    await pass();
    expect(await counters()).toEqual({ '2026-11-20': 10 });
    await db.query(
      `update public.workspace_subscriptions set current_period_end = '2026-12-21T00:00:00Z' where workspace_id = $1`,
      [at.workspace],
    );
    const [cutter, waiter] = [await db.pool.connect(), await db.pool.connect()];
    await cutter.query('begin');
    await cutter.query('select agentd.recut_requested_usage($1)', [at.workspace]);
    const waiting = waiter.query(`select agentd.settle_usage($1, 'messages', 'first', 4)`, [at.workspace]);
    await waits(waiter);
    await cutter.query('commit');
    await waiting;
    cutter.release();
    waiter.release();
    expect(await counters()).toEqual({ '2026-11-20': 4 });
  });
});
