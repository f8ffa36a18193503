/** What counters keep of their limits: it is used, and it never answers otherwise than the rows that it was made of. */
import fc from 'fast-check';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { foldUsage, gatherUsage } from '../../src/db/usage.ts';
import { followLimits } from '../../src/services/usage-limits.ts';
import { rollUp } from '../../src/services/usage-rollup.ts';
import { silentLogger } from '../../src/telemetry/logger.ts';
import { createMetrics } from '../../src/telemetry/metrics.ts';
import { onServer, setDatabaseClock, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert } from '../support/platform.ts';
import { type Company, company, value } from './schema-support.ts';

let db: TestDatabase;
let at: Company;

beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db?.dispose());
beforeEach(async () => {
  at = await company(db.pool);
  await now('2026-03-10T00:00:00Z');
});
afterEach(async () => {
  await setDatabaseClock(db, null);
  await db.query('delete from public.workspaces where not is_personal');
  await db.query('delete from public.pricing_plans');
});

const deps = () => ({ db, clock: systemClock, log: silentLogger(), metrics: createMetrics() });
const pass = () => rollUp(deps());
const now = (time: string | number) => setDatabaseClock(db, new Date(time));
const plan = (columns: Record<string, unknown> = {}) =>
  insert(db, 'public.pricing_plans', { name: 'p', ...columns });
const subscribe = (planId: string, columns: Record<string, unknown> = {}) =>
  insert(db, 'public.workspace_subscriptions', {
    workspace_id: at.workspace,
    plan_id: planId,
    status: 'active',
    ...columns,
  });
const CONSUME = `select agentd.consume_usage($1, 'messages', $2, null)`;
const consume = (n = 1) => value<boolean>(db.pool, CONSUME, [at.workspace, n]);
const edit = (planId: string, limit: number) =>
  db.query('update public.pricing_plans set message_limit = $2 where id = $1', [planId, limit]);
const record = (n: number) =>
  db.query(`select agentd.record_usage($1, 'message', $2, gen_random_uuid()::text)`, [at.workspace, n]);
/** The period's counter and the plan that limits it by itself, below which sum; of those that keep one at the database's time. */
const kept = () =>
  db.query<{ month: string; used: number; plan: string; below: number; until: Date }>(
    `select month::text, used::float8, limit_plan_id as plan, limit_below::float8 as below, limit_until as until
       from public.workspace_usage_counters
      where workspace_id = $1 and limit_plan_id is not null and limit_from <= agentd.now() and limit_until > agentd.now()`,
    [at.workspace],
  );
/** Whether a grant is one statement: it writes the counter and asks for nothing else. */
async function isQuick(): Promise<boolean> {
  const [row] = await db.query<{ quick: boolean }>(
    `select exists (
       select 1 from public.workspace_usage_counters c join public.pricing_plans p on p.id = c.limit_plan_id and p.xmin = c.limit_plan_xmin
        where c.workspace_id = $1 and c.metric = 'messages' and c.used < c.limit_below
          and c.limit_from <= agentd.now() and c.limit_until > agentd.now())
       and not exists (select 1 from agentd.usage_deltas d where d.workspace_id = $1 and not d.in_counter) as quick`,
    [at.workspace],
  );
  return row?.quick ?? false;
}
/** Grants something, and lets the worker keep the limit. */
async function keep(): Promise<void> {
  expect(await consume()).toBe(true);
  await pass();
  expect(await consume()).toBe(true);
  await pass();
  expect(await isQuick()).toBe(true);
}

describe('a counter keeps its limit', () => {
  test('until the period, the trial or the subscription ends, whichever comes first', async () => {
    const planId = await plan({ message_limit: 100 });
    const id = await subscribe(planId);
    await keep();
    expect(await kept()).toEqual([
      { month: '2026-03-01', used: 2, plan: planId, below: 80, until: new Date('2026-04-01T00:00:00Z') },
    ]);
    const until = async (columns: string) => {
      await db.query(`update public.workspace_subscriptions set ${columns} where id = $1`, [id]);
      expect(await isQuick()).toBe(false);
      await pass();
      return (await kept()).map((row) => row.until);
    };
    expect(await until(`end_date = '2026-03-12T00:00:00Z'`)).toEqual([new Date('2026-03-12T00:00:00Z')]);
    expect(await until(`status = 'trialing', current_period_end = '2026-03-11T00:00:00Z'`)).toEqual([
      new Date('2026-03-11T00:00:00Z'),
    ]);
    // how long a payment may be due is for the plan to say: nothing is kept, and nobody asks for it with each grant
    expect(await until(`status = 'past_due', end_date = null`)).toEqual([]);
    expect(await consume()).toBe(true);
    expect(await db.query('select 1 from agentd.usage_deltas')).toEqual([]);
  });

  test('of the default plan, and of a plan without a limit', async () => {
    const planId = await plan({ message_limit: 10, is_default: true });
    await keep();
    expect(await kept()).toMatchObject([{ plan: planId, below: 8 }]);
    await edit(planId, -1);
    expect([await isQuick(), await consume(1_000_000), await consume()]).toEqual([false, true, true]);
    await pass();
    expect(await kept()).toMatchObject([{ plan: planId, below: 2 ** 63 }]);
    expect([await isQuick(), await consume(1_000_000_000)]).toEqual([true, true]);
  });

  test('into the next period: that begins with nothing kept', async () => {
    await subscribe(await plan({ message_limit: 100 }));
    await keep();
    await now('2026-04-01T00:00:00Z');
    expect(await isQuick()).toBe(false);
    await keep();
    expect(await kept()).toMatchObject([{ month: '2026-04-01', used: 2 }]);
    // a clock that goes back finds the old period's counter
    await now('2026-03-31T23:59:59Z');
    expect([await isQuick(), await consume(), (await kept()).length]).toEqual([false, true, 0]);
    expect(
      await db.query(
        `select month::text, used::float8 from public.workspace_usage_counters
          where workspace_id = $1 and metric = 'messages' order by 1`,
        [at.workspace],
      ),
    ).toEqual([
      { month: '2026-03-01', used: 3 },
      { month: '2026-04-01', used: 2 },
    ]);
  });

  test('and one statement grants, warns of nothing and passes 80 of a hundred to what warns', async () => {
    await subscribe(await plan({ message_limit: 10 }));
    await keep();
    const warned = async () =>
      (await db.query<{ threshold: number }>('select threshold from public.usage_warnings order by 1')).map(
        (row) => row.threshold,
      );
    expect([await consume(5), await warned()]).toEqual([true, []]);
    expect([await consume(), await warned()]).toEqual([true, [80]]);
    expect([await consume(3), await consume(2), await warned()]).toEqual([false, true, [80, 100]]);
    expect(await consume()).toBe(false);
  });
});

describe('what changes the answer is seen at once', () => {
  const changes: Record<string, (planId: string, subscription: string) => Promise<unknown>> = {
    'a smaller plan': async (_, subscription) =>
      db.query('update public.workspace_subscriptions set plan_id = $2 where id = $1', [
        subscription,
        await plan({ message_limit: 2 }),
      ]),
    'a limit that is lowered': (planId) => edit(planId, 2),
    'a subscription that is cancelled': async (_, subscription) => {
      await plan({ message_limit: 2, is_default: true });
      await db.query(`update public.workspace_subscriptions set status = 'canceled' where id = $1`, [
        subscription,
      ]);
    },
    'a newer subscription': async () =>
      subscribe(await plan({ message_limit: 2 }), { created_at: '2026-03-10T00:00:01Z' }),
    'a newer subscription that longer days of grace revive': async () => {
      const other = await plan({ message_limit: 2, grace_days: 0 });
      await subscribe(other, {
        status: 'past_due',
        past_due_since: '2026-03-09T00:00:00Z',
        created_at: '2026-03-05T00:00:00Z',
      });
      await pass();
      expect(await isQuick()).toBe(true);
      await db.query('update public.pricing_plans set grace_days = 7 where id = $1', [other]);
    },
    'an older subscription that becomes the newest': async () => {
      const other = await subscribe(await plan({ message_limit: 2 }), { created_at: '2026-02-01T00:00:00Z' });
      await pass();
      expect(await isQuick()).toBe(true);
      await db.query('update public.workspace_subscriptions set created_at = agentd.now() where id = $1', [
        other,
      ]);
    },
    'subscriptions that are cut off all at once': async () => {
      await plan({ message_limit: 2, is_default: true });
      await db.query('truncate public.workspace_subscriptions');
    },
    'usage that is on its way': async () => {
      await record(98);
      await gatherUsage(db, null);
    },
    'usage that is there': async () => {
      await record(98);
      await pass();
    },
  };
  test.each(Object.keys(changes))('%s', async (name) => {
    const planId = await plan({ message_limit: 100 });
    const subscription = await subscribe(planId, { created_at: '2026-03-01T00:00:00Z' });
    await keep();
    await changes[name]?.(planId, subscription);
    expect(await consume()).toBe(false);
  });

  test('also to what follows in the same statement', async () => {
    const id = await subscribe(await plan({ message_limit: 100 }));
    const tiny = await plan({ message_limit: 2 });
    await keep();
    const [row] = await db.query<{ granted: boolean }>(
      `with changed as (update public.workspace_subscriptions set plan_id = $2 where id = $1 returning workspace_id)
       select agentd.consume_usage(c.workspace_id, 'messages', 1, null) as granted from changed c`,
      [id, tiny],
    );
    expect(row?.granted).toBe(false);
  });

  test('by a statement that began before a subscription ended', async () => {
    await plan({ message_limit: 100, is_default: true });
    await subscribe(await plan({ message_limit: 2 }), { end_date: '2026-03-10T00:00:10Z' });
    await now('2026-03-10T00:00:11Z');
    await keep();
    await now('2026-03-10T00:00:09Z');
    expect(await consume()).toBe(false);
    await now('2026-03-10T00:00:10Z');
    expect([await isQuick(), await consume(50)]).toEqual([true, true]);
  });

  test('a default plan where there was none: within the hour', async () => {
    expect(await consume()).toBe(true);
    await pass();
    expect([
      await consume(),
      await isQuick(),
      (await db.query('select 1 from agentd.usage_deltas')).length,
    ]).toEqual([true, false, 0]);
    await plan({ message_limit: 2, is_default: true });
    expect(await consume()).toBe(false);
    await db.query('update public.pricing_plans set message_limit = 100');
    await now('2026-03-10T01:00:00Z');
    await keep();
  });

  test('another default plan', async () => {
    await plan({ message_limit: 100, is_default: true });
    await keep();
    await db.query('update public.pricing_plans set is_default = false');
    await plan({ message_limit: 2, is_default: true });
    expect(await consume()).toBe(false);
    // and grants are quick again under the new one, once somebody is granted something
    await db.query('update public.pricing_plans set message_limit = 50 where is_default');
    await keep();
  });

  test('a period whose edges are moved by hand', async () => {
    await subscribe(await plan({ message_limit: 100 }));
    await keep();
    await db.query(
      `update public.workspace_usage set period_end = '2026-03-05T00:00:00Z' where workspace_id = $1`,
      [at.workspace],
    );
    expect(await isQuick()).toBe(false);
    expect(await consume()).toBe(true);
    await db.query('delete from public.workspace_usage where workspace_id = $1', [at.workspace]);
    expect(await isQuick()).toBe(false);
  });
});

test('whatever happens in whatever order, a grant is what the rows say, and counts once', async () => {
  const DAY = 86_400_000;
  const begin = Date.parse('2026-03-28T00:00:00Z');
  const small = fc.integer({ min: 0, max: 12 });
  const action = fc.oneof(
    { weight: 6, arbitrary: fc.record({ kind: fc.constant('consume' as const), n: small }) },
    { weight: 3, arbitrary: fc.record({ kind: fc.constant('pass' as const) }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('gather' as const), n: small }) },
    {
      weight: 1,
      arbitrary: fc.record({ kind: fc.constant('time' as const), hours: fc.integer({ min: -30, max: 90 }) }),
    },
    {
      weight: 1,
      arbitrary: fc.record({
        kind: fc.constant('limit' as const),
        plan: fc.nat(2),
        limit: fc.integer({ min: -1, max: 60 }),
      }),
    },
    {
      weight: 1,
      arbitrary: fc.record({ kind: fc.constant('grace' as const), plan: fc.nat(2), days: fc.nat(3) }),
    },
    {
      weight: 1,
      arbitrary: fc.record({ kind: fc.constant('renumber' as const), days: fc.integer({ min: -9, max: 9 }) }),
    },
    {
      weight: 1,
      arbitrary: fc.record({ kind: fc.constant('until' as const), hours: fc.integer({ min: -24, max: 72 }) }),
    },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('default' as const), plan: fc.nat(2) }) },
    {
      weight: 1,
      arbitrary: fc.record({
        kind: fc.constant('subscribe' as const),
        plan: fc.nat(2),
        status: fc.constantFrom('active', 'trialing', 'past_due'),
        days: fc.integer({ min: 1, max: 5 }),
      }),
    },
    {
      weight: 1,
      arbitrary: fc.record({
        kind: fc.constant('end' as const),
        status: fc.constantFrom('canceled', 'past_due', 'active'),
      }),
    },
    {
      weight: 1,
      arbitrary: fc.record({
        kind: fc.constant('zone' as const),
        zone: fc.constantFrom('UTC', 'Asia/Kolkata', 'Pacific/Apia'),
      }),
    },
  );
  let quick = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(action, { minLength: 10, maxLength: 40 }), async (actions) => {
      at = await company(db.pool);
      let time = begin;
      await now(time);
      await db.query(
        'delete from public.pricing_plans p where not exists (select 1 from public.workspace_subscriptions s where s.plan_id = p.id)',
      );
      await db.query('update public.pricing_plans set is_default = false');
      const plans = [
        await plan({ message_limit: 20, is_default: true, grace_days: 1 }),
        await plan({ message_limit: 40, grace_days: 0 }),
        await plan({ message_limit: 60, usage_period: 'subscription' }),
      ];
      for (const act of actions) {
        if (act.kind === 'pass') await pass();
        else if (act.kind === 'gather') {
          await record(act.n);
          await gatherUsage(db, null);
        } else if (act.kind === 'time') {
          time += act.hours * 3_600_000;
          await now(time);
          await followLimits(deps());
        } else if (act.kind === 'limit') await edit(plans[act.plan] as string, act.limit);
        else if (act.kind === 'grace') {
          await db.query('update public.pricing_plans set grace_days = $2 where id = $1', [
            plans[act.plan],
            act.days,
          ]);
        } else if (act.kind === 'renumber') {
          await db.query(
            `update public.workspace_subscriptions set created_at = $2
              where id = (select s.id from public.workspace_subscriptions s where s.workspace_id = $1 order by s.id limit 1)`,
            [at.workspace, new Date(time + act.days * DAY)],
          );
        } else if (act.kind === 'until') {
          await db.query(
            `update public.workspace_subscriptions set end_date = $2
              where id = (select s.id from public.workspace_subscriptions s where s.workspace_id = $1 order by s.id desc limit 1)`,
            [at.workspace, new Date(time + act.hours * 3_600_000)],
          );
        } else if (act.kind === 'default') {
          await db.query('update public.pricing_plans set is_default = false where is_default');
          await db.query('update public.pricing_plans set is_default = true where id = $1', [
            plans[act.plan],
          ]);
        } else if (act.kind === 'subscribe') {
          await subscribe(plans[act.plan] as string, {
            status: act.status,
            created_at: new Date(time),
            current_period_start: new Date(time),
            current_period_end: new Date(time + act.days * DAY),
          });
        } else if (act.kind === 'end') {
          await db.query('update public.workspace_subscriptions set status = $2 where workspace_id = $1', [
            at.workspace,
            act.status,
          ]);
        } else if (act.kind === 'zone') {
          await db.query('update public.workspaces set timezone = $2 where id = $1', [
            at.workspace,
            act.zone,
          ]);
        } else {
          // by functions that look at no kept limit; who opens the period with a grant is asked after it
          const [said] = await db.query<{ limit: number | null; used: number; total: number }>(
            `select agentd.usage_limit($1, 'messages')::float8 as limit,
                    (coalesce((select c.used from public.workspace_usage_counters c join agentd.usage_period($1, agentd.now()) p on p.month = c.month
                                where c.workspace_id = $1 and c.metric = 'messages'), 0) + agentd.pending_usage($1, 'messages'))::float8 as used,
                    coalesce((select sum(c.used) from public.workspace_usage_counters c where c.workspace_id = $1 and c.metric = 'messages'), 0)::float8 as total`,
            [at.workspace],
          );
          if (!said) throw new Error('no answer');
          if (await isQuick()) quick += 1;
          const expected = said.limit === null || said.used + act.n <= said.limit;
          expect([act, await consume(act.n)]).toEqual([act, expected]);
          const total = await value<number>(
            db.pool,
            `select coalesce(sum(used), 0)::float8 from public.workspace_usage_counters where workspace_id = $1 and metric = 'messages'`,
            [at.workspace],
          );
          expect(total).toBe(said.total + (expected ? act.n : 0));
        }
      }
    }),
    { numRuns: 40 },
  );
  expect(quick).toBeGreaterThan(3);
});

describe('beside each other', () => {
  /** A session with a transaction under way. */
  async function open(): Promise<pg.Client> {
    const client = new pg.Client({ connectionString: db.url });
    await client.connect();
    await client.query('begin');
    return client;
  }

  test.runIf(onServer)(
    'server-only: a smaller plan that is being written while the worker keeps the larger one holds from its commit on',
    async () => {
      const large = await plan({ message_limit: 100 });
      const tiny = await plan({ message_limit: 2 });
      const id = await subscribe(large);
      await keep();
      const owner = await open();
      const fold = await open();
      try {
        // the fold keeps the old plan's limit: it cannot know better, and what the change leaves is not its to take
        await db.query('select agentd.renew_limits($1)', [at.workspace]);
        await owner.query('update public.workspace_subscriptions set plan_id = $2 where id = $1', [id, tiny]);
        await fold.query('select agentd.fold_usage($1)', [[at.workspace]]);
        await fold.query('commit');
        expect(await kept()).toMatchObject([{ plan: large }]);
        expect(await consume()).toBe(true);
        await owner.query('commit');
        expect(await consume()).toBe(false);
        await pass();
        expect(await kept()).toMatchObject([{ plan: tiny }]);
        expect(await consume()).toBe(false);
      } finally {
        await owner.end();
        await fold.end();
      }
    },
  );

  test.runIf(onServer)(
    'server-only: a smaller plan that is written while the fold is at the counters holds from its commit on',
    async () => {
      const large = await plan({ message_limit: 100 });
      const tiny = await plan({ message_limit: 2 });
      const id = await subscribe(large);
      await keep();
      await db.query(`
        create table public.may_go_on (yes boolean);
        create function public.wait_here() returns trigger language plpgsql as $$
          begin
            while not exists (select 1 from public.may_go_on) loop perform pg_sleep(0.01); end loop;
            return new;
          end $$;
        create trigger wait_here before update of limit_until on public.workspace_usage_counters
          for each row execute function public.wait_here()`);
      try {
        await db.query('select agentd.renew_limits($1)', [at.workspace]);
        const folded = foldUsage(db, [at.workspace]);
        await untilWaiting('PgSleep');
        await db.query('update public.workspace_subscriptions set plan_id = $2 where id = $1', [id, tiny]);
        await db.query('insert into public.may_go_on values (true)');
        await folded;
        expect(await kept()).toMatchObject([{ plan: large }]);
        expect(await consume()).toBe(false);
      } finally {
        await db.query('drop function public.wait_here cascade; drop table public.may_go_on');
      }
    },
  );

  test.runIf(onServer)('server-only: a quick grant asks no subscription, and another does', async () => {
    await subscribe(await plan({ message_limit: 100 }));
    await keep();
    const owner = await open();
    const asking = await open();
    try {
      await owner.query(
        'lock table public.workspace_subscriptions, public.workspace_usage in access exclusive mode',
      );
      await asking.query(`set local lock_timeout = '100ms'`);
      expect((await asking.query(CONSUME, [at.workspace, 1])).rows).toEqual([{ consume_usage: true }]);
      await asking.query('commit');
      await db.query('select agentd.renew_limits($1)', [at.workspace]);
      await asking.query('begin');
      await asking.query(`set local lock_timeout = '100ms'`);
      await expect(asking.query(CONSUME, [at.workspace, 1])).rejects.toMatchObject({ code: '55P03' });
    } finally {
      await owner.end();
      await asking.end();
    }
  });

  test.runIf(onServer)(
    'server-only: a grant that waited for the fold leaves nothing to be done again',
    async () => {
      await subscribe(await plan({ message_limit: 100 }));
      await keep();
      const fold = await open();
      try {
        await db.query('select agentd.renew_limits($1)', [at.workspace]);
        await fold.query('select agentd.fold_usage($1)', [[at.workspace]]);
        const granted = consume();
        await untilWaiting();
        await fold.query('commit');
        expect([await granted, await isQuick()]).toEqual([true, true]);
      } finally {
        await fold.end();
      }
    },
  );

  test.runIf(onServer)(
    'server-only: the roll-up waits a moment for a workspace that is asked all the time, beside others',
    async () => {
      await subscribe(await plan({ message_limit: 100 }));
      const other = await company(db.pool);
      await keep();
      const application = await open();
      // as long as the moment is, on a busy machine
      await db.query(`alter function agentd.fold_usage(uuid[]) set lock_timeout = '30s'`);
      try {
        await application.query(CONSUME, [at.workspace, 1]);
        await record(1);
        await db.query(`select agentd.record_usage($1, 'message', 1, 'key')`, [other.workspace]);
        const passed = pass();
        await untilWaiting();
        await application.query('commit');
        expect(await passed).toMatchObject({ events: 2 });
        expect(await db.query('select 1 from agentd.usage_deltas where events > 0')).toEqual([]);
      } finally {
        await application.end();
        await db.query(`alter function agentd.fold_usage(uuid[]) set lock_timeout = '10ms'`);
      }
    },
  );

  test.runIf(onServer)(
    'server-only: a counter that somebody holds stays as it is kept, and is asked anew after that',
    async () => {
      const large = await plan({ message_limit: 100 });
      const tiny = await plan({ message_limit: 3 });
      const id = await subscribe(large);
      await keep();
      const application = await open();
      try {
        await application.query(CONSUME, [at.workspace, 1]);
        await db.query('update public.workspace_subscriptions set plan_id = $2 where id = $1', [id, tiny]);
        expect(await foldUsage(db, [at.workspace])).toEqual({ deltas: 0, held: 1 });
        expect(await kept()).toMatchObject([{ plan: large }]);
        await application.query('commit');
        expect(await consume()).toBe(false);
        await pass();
        expect(await kept()).toMatchObject([{ plan: tiny, used: 3 }]);
      } finally {
        await application.end();
      }
    },
  );

  test.runIf(onServer)(
    'server-only: a grant that waits for a counter whose period is cut meanwhile counts in the new one',
    async () => {
      const id = await subscribe(await plan({ message_limit: 100, usage_period: 'subscription' }), {
        current_period_start: '2026-03-01T00:00:00Z',
        current_period_end: '2026-04-01T00:00:00Z',
      });
      await keep();
      await db.query(
        `update public.workspace_subscriptions
            set current_period_start = '2026-03-10T00:00:00Z', current_period_end = '2026-04-10T00:00:00Z' where id = $1`,
        [id],
      );
      await foldUsage(db, [at.workspace]);
      expect(await isQuick()).toBe(true);
      const cutting = await open();
      const waiting = await open();
      try {
        await cutting.query('select agentd.recut_requested_usage($1)', [at.workspace]);
        const granted = waiting.query<{ consume_usage: boolean }>(CONSUME, [at.workspace, 1]);
        await untilWaiting();
        await cutting.query('commit');
        expect((await granted).rows).toEqual([{ consume_usage: true }]);
        await waiting.query('commit');
        const counters = await db.query(
          `select month::text, used::float8 from public.workspace_usage_counters
            where workspace_id = $1 and metric = 'messages' order by 1`,
          [at.workspace],
        );
        expect(counters).toEqual([
          { month: '2026-03-01', used: 2 },
          { month: '2026-03-10', used: 1 },
        ]);
      } finally {
        await cutting.end();
        await waiting.end();
      }
    },
  );

  test.runIf(onServer)(
    'server-only: sixteen sessions without keys, and the worker beside them, grant exactly the limit',
    async () => {
      await subscribe(await plan({ message_limit: 1_000 }));
      await keep();
      let granted = 2;
      let atWork = 16;
      const sessions = Array.from({ length: 16 }, async () => {
        for (let refused = 0; refused < 3; ) {
          if (await consume()) granted += 1;
          else refused += 1;
        }
        atWork -= 1;
      });
      while (atWork > 0) {
        // each renewal makes the next grants slow ones, and then quick ones again
        await db.query('select agentd.renew_limits($1)', [at.workspace]);
        await pass();
      }
      await Promise.all(sessions);
      expect(granted).toBe(1_000);
    },
  );

  /** Until some session waits, for another's lock unless told otherwise. */
  async function untilWaiting(event = 'Lock'): Promise<void> {
    for (;;) {
      const rows = await db.query(
        `select 1 from pg_catalog.pg_stat_activity where datname = current_database() and $1 in (wait_event_type, wait_event)`,
        [event],
      );
      if (rows.length > 0) return;
    }
  }
});
