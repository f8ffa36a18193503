/** Limits: what is granted, in which period it counts, who is warned, and what subscriptions that change or end do to it. */
import { randomUUID } from 'node:crypto';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { reachedLimits } from '../../src/db/usage-limits.ts';
import { followLimits } from '../../src/services/usage-limits.ts';
import { rollUp } from '../../src/services/usage-rollup.ts';
import { silentLogger } from '../../src/telemetry/logger.ts';
import { createMetrics } from '../../src/telemetry/metrics.ts';
import { onServer, setDatabaseClock, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert } from '../support/platform.ts';
import { asUser, type Company, company, denied, outcome, value } from './schema-support.ts';

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
  await db.query('delete from public.workspaces where not is_personal');
  await db.query('delete from public.pricing_plans');
});

const deps = () => ({ db, clock: systemClock, log: silentLogger(), metrics: createMetrics() });
const pass = () => rollUp(deps());
const look = () => followLimits(deps());
const now = (time: string | number) => setDatabaseClock(db, new Date(time));
const plan = (columns: Record<string, unknown> = {}) =>
  insert(db, 'public.pricing_plans', { name: 'p', ...columns });
const monthly = (columns: Record<string, unknown> = {}) => plan({ usage_period: 'subscription', ...columns });
const subscribe = (planId: string, columns: Record<string, unknown> = {}) =>
  insert(db, 'public.workspace_subscriptions', {
    workspace_id: at.workspace,
    plan_id: planId,
    status: 'active',
    ...columns,
  });
const change = (id: string, columns: string) =>
  db.query(`update public.workspace_subscriptions set ${columns} where id = $1`, [id]);
const consume = (n = 1, key: string | null = null, metric = 'messages') =>
  value<boolean>(db.pool, 'select public.consume_usage($1, $2, $3, $4)', [at.workspace, metric, n, key]);
const settle = (key: string, n: number, metric = 'messages') =>
  value<boolean>(db.pool, 'select public.settle_usage($1, $2, $3, $4)', [at.workspace, metric, key, n]);
const record = (metric: string, quantity: number, when: string | null = null, key: string = randomUUID()) =>
  db.query('select agentd.record_usage($1, $2, $3, $4, 0, $5)', [at.workspace, metric, quantity, key, when]);
/** The counters of messages by period. */
const counters = async (metric = 'messages') =>
  Object.fromEntries(
    (
      await db.query<{ month: string; used: number }>(
        'select month::text, used::float8 from public.workspace_usage_counters where workspace_id = $1 and metric = $2 order by 1',
        [at.workspace, metric],
      )
    ).map((row) => [row.month, row.used]),
  );
const warnings = async () =>
  (
    await db.query<{ month: string; threshold: number; max: number; used: number }>(
      `select month::text, threshold, max_amount::float8 as max, used_amount::float8 as used
         from public.usage_warnings where workspace_id = $1 order by month, max_amount, threshold`,
      [at.workspace],
    )
  ).map((row) => [row.month, row.max, row.threshold, row.used]);

describe('what is granted', () => {
  test('managers and the application may ask, nobody else; only the application gives back', async () => {
    await subscribe(await plan({ message_limit: 5 }));
    const ask = (user: string) =>
      asUser(db.pool, user, async (client) => [
        await outcome(client, `select public.consume_usage($1, 'messages')`, [at.workspace]),
        await outcome(client, `select public.settle_usage($1, 'messages', 'k', 0)`, [at.workspace]),
        await outcome(client, `select agentd.settle_usage($1, 'messages', 'k', 0)`, [at.workspace]),
        await outcome(client, `select agentd.consume_usage($1, 'messages', 1, null)`, [at.workspace]),
      ]);
    expect(await ask(at.manager)).toEqual(['ok', denied, denied, denied]);
    expect(await ask(at.viewer)).toEqual([denied, denied, denied, denied]);
    expect(await ask((await company(db.pool)).owner)).toEqual([denied, denied, denied, denied]);
    expect(await consume()).toBe(true);
  });

  test('a grant comes to what was really used, once, and one that is given back can be asked for anew', async () => {
    await now('2026-03-10T00:00:00Z');
    await subscribe(await plan({ message_limit: 10 }));
    expect([await consume(8, 'a'), await consume(8, 'b')]).toEqual([true, false]);
    expect([await settle('a', 3), await settle('a', 3), await settle('never', 3)]).toEqual([
      true,
      true,
      false,
    ]);
    expect(await counters()).toEqual({ '2026-03-01': 3 });
    expect([await consume(7, 'b'), await consume(1, 'c')]).toEqual([true, false]);
    expect([await settle('b', 0), await settle('b', 0)]).toEqual([true, false]);
    expect([await consume(7, 'b'), await counters()]).toEqual([true, { '2026-03-01': 10 }]);
    // what was used beyond is used
    await settle('b', 20);
    expect([await counters(), await consume(1)]).toEqual([{ '2026-03-01': 23 }, false]);
  });

  test('a key that is asked again in the next period, or settled there, stays in its own', async () => {
    await now('2026-03-31T23:59:59Z');
    await subscribe(await plan({ message_limit: 10 }));
    await consume(10, 'a');
    await now('2026-04-01T00:00:00Z');
    expect([await consume(10, 'a'), await counters()]).toEqual([true, { '2026-03-01': 10 }]);
    await settle('a', 4);
    expect([await consume(10), await counters()]).toEqual([true, { '2026-03-01': 4, '2026-04-01': 10 }]);
  });

  test('amounts and keys have bounds, and a metric has a name', async () => {
    for (const [metric, n, key] of [
      ['messages', -1, null],
      ['messages', 1e12 + 1, null],
      ['messages', 1, 'x'.repeat(501)],
      ['wishes', 1, null],
    ])
      expect(
        await outcome(db.pool, 'select public.consume_usage($1, $2, $3, $4)', [at.workspace, metric, n, key]),
      ).not.toBe('ok');
    expect(await counters()).toEqual({});
  });

  test.runIf(onServer)(
    'server-only: 64 clients with crashes never pass a limit of 1,000 and never stop short of it',
    async () => {
      await subscribe(await plan({ message_limit: 1_000 }));
      const keys = Array.from({ length: 1_400 }, (_, n) => `key-${n}`);
      const granted = new Set<string>();
      let crashes = 0;
      let most = 0;
      const ask = (client: pg.Client, key: string) =>
        client
          .query<{ ok: boolean }>(`select public.consume_usage($1, 'messages', 1, $2) as ok`, [
            at.workspace,
            key,
          ])
          .then(({ rows }) => rows[0]?.ok === true);
      const connect = async () => {
        const client = new pg.Client({ connectionString: db.url });
        client.on('error', () => {});
        await client.connect();
        return client;
      };
      const work = async () => {
        let client = await connect();
        for (let key = keys.pop(); key !== undefined; key = keys.pop()) {
          for (;;) {
            const fate = Math.random();
            if (fate < 0.04) {
              // dies before it commits: nothing was granted
              await client.query('begin');
              await ask(client, key);
            } else if (fate < 0.08) {
              // dies after it was granted, before it knows: it asks again by its key
              await ask(client, key);
            } else {
              const ok = await ask(client, key);
              if (ok && fate < 0.15) {
                // what it was for has failed: it is given back, and asked for anew
                await client.query(`select public.settle_usage($1, 'messages', $2, 0)`, [at.workspace, key]);
                continue;
              }
              if (ok) granted.add(key);
              break;
            }
            crashes++;
            // the process is gone, without a word to the server
            (
              client as unknown as { connection: { stream: { destroy(): void } } }
            ).connection.stream.destroy();
            client = await connect();
          }
        }
        await client.end();
      };
      let done = false;
      const watcher = (async () => {
        while (!done) most = Math.max(most, ...Object.values(await counters()));
      })();
      await Promise.all(Array.from({ length: 64 }, work));
      done = true;
      await watcher;
      expect(crashes).toBeGreaterThan(20);
      expect(granted.size).toBe(1_000);
      expect(Math.max(most, ...Object.values(await counters()))).toBe(1_000);
      expect(
        await value(
          db.pool,
          'select sum(quantity)::integer from agentd.usage_reservations where workspace_id = $1',
          [at.workspace],
        ),
      ).toBe(1_000);
      expect((await warnings()).map((row) => row[2])).toEqual([80, 100]);
    },
    120_000,
  );
});

describe('the period of a subscription', () => {
  test('begins at its second: what is granted and what has happened on both sides is counted on its side', async () => {
    await now('2026-01-31T09:00:00Z');
    const id = await subscribe(await monthly({ message_limit: 10 }), {
      current_period_start: '2026-01-31T08:00:05Z',
      current_period_end: '2026-02-28T08:00:05Z',
    });
    await now('2026-02-28T08:00:04.999Z');
    expect([await consume(6, 'a'), await consume(5, 'b')]).toEqual([true, false]);
    await record('message', 2);
    await now('2026-02-28T08:00:05Z');
    expect([await consume(7, 'b')]).toEqual([true]);
    await record('message', 1);
    await record('message', 1, '2026-02-28T08:00:04Z');
    await pass();
    expect(await counters()).toEqual({ '2026-01-31': 9, '2026-02-28': 8 });
    await change(
      id,
      `current_period_start = '2026-02-28T08:00:05Z', current_period_end = '2026-03-31T08:00:05Z'`,
    );
    await pass();
    expect(await counters()).toEqual({ '2026-01-31': 9, '2026-02-28': 8 });
    expect([await consume(3), await consume(2)]).toEqual([false, true]);
  });

  test('a renewal that comes late and begins later cuts what had gone on; what was after it is in the new period', async () => {
    await now('2026-01-10T00:00:00Z');
    const id = await subscribe(await monthly({ message_limit: 100 }), {
      current_period_start: '2026-01-10T00:00:00Z',
      current_period_end: '2026-02-10T00:00:00Z',
    });
    await consume(1, 'first');
    await now('2026-02-11T00:00:00Z');
    await consume(10, 'before');
    await record('message', 20);
    await pass();
    await now('2026-02-12T12:00:00Z');
    await consume(30, 'after');
    await record('message', 5);
    await pass();
    expect(await counters()).toEqual({ '2026-01-10': 1, '2026-02-10': 65 });
    await now('2026-02-13T00:00:00Z');
    await change(
      id,
      `current_period_start = '2026-02-12T00:00:00Z', current_period_end = '2026-03-12T00:00:00Z'`,
    );
    await pass();
    expect(await counters()).toEqual({ '2026-01-10': 1, '2026-02-10': 30, '2026-02-12': 35 });
    // settled where it now is
    await settle('after', 3);
    expect(await counters()).toEqual({ '2026-01-10': 1, '2026-02-10': 30, '2026-02-12': 8 });
    expect([await consume(93), await consume(92)]).toEqual([false, true]);
  });

  test('an upgrade in mid-month gives the rest at once, and one that begins a period a whole one', async () => {
    await now('2026-05-10T00:00:00Z');
    const id = await subscribe(await plan({ message_limit: 10 }));
    await consume(10, 'a');
    await consume(0, 'nothing');
    expect(await consume(1)).toBe(false);
    await change(id, `plan_id = '${await plan({ message_limit: 15 })}'`);
    expect([await consume(6), await consume(5), await counters()]).toEqual([
      false,
      true,
      { '2026-05-01': 15 },
    ]);
    await now('2026-05-20T00:00:00Z');
    await change(
      id,
      `plan_id = '${await monthly({ message_limit: 20 })}', current_period_start = '2026-05-20T00:00:00Z', current_period_end = '2026-06-20T00:00:00Z'`,
    );
    await pass();
    expect([await consume(21), await consume(20)]).toEqual([false, true]);
    expect(await counters()).toEqual({ '2026-05-01': 15, '2026-05-20': 20 });
  });

  const seeds = process.env.TEST_SEED ? [Number(process.env.TEST_SEED)] : [256188336, 665753910, 3];
  test.each(seeds)(
    'whatever the order of usage, renewals, changes of plan and roll-ups, each counts once, in its period (seed %i)',
    async (seed) => {
      const random = generator(seed);
      const zones = ['UTC', 'Asia/Kolkata', 'America/St_Johns'];
      const plans = [await monthly(), await plan(), await monthly()];
      const hour = 3_600_000;
      let time = Date.parse('2026-01-07T05:00:00Z');
      await now(time);
      const id = await subscribe(plans[0] as string, {
        current_period_start: new Date(time),
        current_period_end: new Date(time + 30 * 24 * hour),
      });
      const facts: { at: number; amount: number }[] = [];
      for (let step = 0; step < 120; step++) {
        time += Math.floor(random() * 30 * hour);
        if (step % 10 === 0) time = Math.ceil(time / 1000) * 1000;
        await now(time);
        const chance = random();
        const amount = 1 + Math.floor(random() * 9);
        if (chance < 0.35) {
          expect(await consume(amount, `grant-${step}`)).toBe(true);
          facts.push({ at: time, amount });
          // an event under the key of a grant is that grant
          if (random() < 0.3) await record('message', amount, null, `grant-${step}`);
        } else if (chance < 0.6) {
          await record('message', amount);
          facts.push({ at: time, amount });
        } else if (chance < 0.7) {
          // renewed late, or early, or redelivered
          const from = new Date(time - Math.floor((random() * 2 - 0.5) * 40) * hour);
          const renew = `current_period_start = '${from.toISOString()}', current_period_end = '${new Date(from.getTime() + 30 * 24 * hour).toISOString()}'`;
          await change(id, renew);
          if (random() < 0.5) await change(id, renew);
        } else if (chance < 0.76) await change(id, `plan_id = '${plans[step % 3]}'`);
        else if (chance < 0.8)
          await db.query('update public.workspaces set timezone = $2 where id = $1', [
            at.workspace,
            zones[step % 3],
          ]);
        else await pass();
      }
      await pass();
      await pass();
      const periods = await db.query<{ month: string; start: number; end: number }>(
        `select month::text, extract(epoch from period_start)::float8 * 1000 as start, extract(epoch from period_end)::float8 * 1000 as end
         from public.workspace_usage where workspace_id = $1 order by period_start`,
        [at.workspace],
      );
      const expected: Record<string, number> = {};
      for (const fact of facts) {
        const own = periods.filter((period) => period.start <= fact.at && fact.at < period.end);
        expect(own, `seed ${seed}`).toHaveLength(1);
        const month = own[0]?.month ?? '';
        expected[month] = (expected[month] ?? 0) + fact.amount;
      }
      // a period that everything has moved out of keeps a counter of nothing
      const counted = Object.fromEntries(Object.entries(await counters()).filter(([, used]) => used !== 0));
      expect(counted, `seed ${seed}`).toEqual(expected);
    },
  );
});

describe('a subscription gives its allowance', () => {
  const gives = () =>
    consume(0).then(
      async () =>
        (await value(db.pool, `select agentd.usage_limit($1, 'messages')`, [at.workspace])) as string | null,
    );

  test.each([
    ['past_due', { current_period_end: '2026-03-02Z' }, '2026-03-10T00:00:00Z'],
    ['trialing', { current_period_end: '2026-03-05Z' }, '2026-03-10T00:00:00Z'],
    ['active', { end_date: '2026-03-05Z' }, '2026-03-05T00:00:00Z'],
  ])(
    '%s until its end or grace is over; then the default plan, and each is followed once',
    async (status, columns, end) => {
      await now('2026-03-05T00:00:00Z');
      if (status === 'active') await now('2026-03-04T00:00:00Z');
      await plan({ message_limit: 1, is_default: true });
      const id = await subscribe(await plan({ message_limit: 50, grace_days: 5 }), { status, ...columns });
      expect(await gives()).toBe('50');
      await now(Date.parse(end) - 1);
      // what is delivered again changes nothing: the days of grace are those of the first
      await change(id, `status = '${status}', updated_at = agentd.now()`);
      expect([await gives(), (await look()).plans]).toEqual(['50', 0]);
      await now(end);
      expect(await gives()).toBe('1');
      expect([(await look()).plans, (await look()).plans]).toEqual([1, 0]);
      // it is paid after all
      await change(id, `status = 'active', end_date = null, current_period_end = '2026-04-02Z'`);
      expect(await gives()).toBe('50');
    },
  );

  test('a subscription by whose periods usage is summed up, and that ends, ends its open period: the rest of the month is another', async () => {
    await now('2026-03-05T00:00:00Z');
    await plan({ message_limit: 3, is_default: true });
    await subscribe(await monthly({ message_limit: 50 }), {
      current_period_start: '2026-03-05Z',
      current_period_end: '2026-04-05Z',
      end_date: '2026-03-20Z',
    });
    await consume(2, 'a');
    await pass();
    await now('2026-03-20T00:00:00Z');
    expect((await look()).plans).toBe(1);
    await pass();
    expect([await consume(4), await consume(3), await counters()]).toEqual([
      false,
      true,
      { '2026-03-01': 3, '2026-03-05': 2 },
    ]);
    await now('2026-04-01T00:00:00Z');
    expect([await consume(3), await counters()]).toEqual([
      true,
      { '2026-03-01': 3, '2026-03-05': 2, '2026-04-01': 3 },
    ]);
  });

  test('the same update again, by key, is no change: no cut, no new grace, no warning', async () => {
    await now('2026-03-05T00:00:00Z');
    const planId = await monthly({ message_limit: 10 });
    const deliver = () =>
      db.query(
        `insert into public.workspace_subscriptions (workspace_id, plan_id, stripe_subscription_id, status, current_period_start, current_period_end)
         values ($1, $2, 'sub_1', 'past_due', '2026-03-01Z', '2026-04-01Z')
         on conflict (stripe_subscription_id) do update
            set status = excluded.status, plan_id = excluded.plan_id, current_period_start = excluded.current_period_start,
                current_period_end = excluded.current_period_end`,
        [at.workspace, planId],
      );
    await deliver();
    await consume(9);
    await pass();
    const state = () =>
      db.query(
        `select s.past_due_since, (select count(*)::integer from agentd.usage_recuts) as recuts,
                (select jsonb_agg(u.* order by u.month) from public.workspace_usage u) as periods
           from public.workspace_subscriptions s where s.workspace_id = $1`,
        [at.workspace],
      );
    const before = await state();
    await now('2026-03-06T00:00:00Z');
    await deliver();
    await deliver();
    expect(await state()).toEqual(before);
    expect(await look()).toEqual({ plans: 0, warnings: 0 });
    expect(await warnings()).toHaveLength(1);
  });
});

describe('warnings', () => {
  test('come with the grant that reaches 80 and 100 of a hundred, once a period and limit', async () => {
    await now('2026-03-10T00:00:00Z');
    const id = await subscribe(await plan({ message_limit: 7 }));
    await consume(5, 'a');
    expect(await warnings()).toEqual([]);
    await consume(1, 'b');
    expect(await warnings()).toEqual([['2026-03-01', 7, 80, 6]]);
    await settle('b', 0);
    await consume(1, 'b');
    await consume(1, 'c');
    expect([await consume(1, 'd'), await look()]).toEqual([false, { plans: 0, warnings: 0 }]);
    const march = [
      ['2026-03-01', 7, 80, 6],
      ['2026-03-01', 7, 100, 7],
    ];
    expect(await warnings()).toEqual(march);
    await change(id, `plan_id = '${await plan({ message_limit: 8 })}'`);
    expect(await look()).toEqual({ plans: 0, warnings: 1 });
    expect(await warnings()).toEqual([...march, ['2026-03-01', 8, 80, 7]]);
    await now('2026-04-01T00:00:00Z');
    await consume(8);
    expect((await warnings()).slice(3)).toEqual([
      ['2026-04-01', 8, 80, 8],
      ['2026-04-01', 8, 100, 8],
    ]);
  });

  test('come within a look for what the roll-up has counted, and members read them', async () => {
    await now('2026-03-10T00:00:00Z');
    await plan({ token_limit: 1000, is_default: true });
    await record('tokens', 799);
    await pass();
    expect((await look()).warnings).toBe(0);
    await record('tokens', 1);
    await pass();
    expect([(await look()).warnings, (await look()).warnings]).toEqual([1, 0]);
    const read = (user: string) =>
      asUser(db.pool, user, (client) => value(client, 'select count(*)::integer from public.usage_warnings'));
    expect([await read(at.viewer), await read((await company(db.pool)).owner)]).toEqual([1, 0]);
  });

  test('come to all in one look, however many of each counter there are', async () => {
    await now('2026-03-10T00:00:00Z');
    await plan({ token_limit: 10, message_limit: 10, conversation_limit: 10, is_default: true });
    await db.query(
      `with made as (
         insert into public.workspaces (name, owner_user_id) select 'w' || n, $1 from generate_series(1, 140) n returning id
       ),
       opened as (
         insert into public.workspace_usage (workspace_id, month) select id, '2026-03-01' from made
       )
       insert into public.workspace_usage_counters (workspace_id, month, metric, used)
       select id, '2026-03-01', m, case m when 'tokens' then 8 else 10 end from made, unnest(array['conversations', 'messages', 'tokens']) m`,
      [at.owner],
    );
    expect([(await look()).warnings, (await look()).warnings]).toEqual([140 * 5, 0]);
  });

  test.runIf(onServer)(
    'server-only: many looks at once warn once, wake who listens, and wait for nobody',
    async () => {
      await plan({ token_limit: 10, is_default: true });
      await record('tokens', 10);
      await pass();
      const holder = await db.pool.connect();
      const listener = await db.pool.connect();
      try {
        const heard = new Promise((resolve) => listener.once('notification', resolve));
        await listener.query('listen agentd_usage');
        await holder.query('begin');
        await holder.query(`select public.consume_usage($1, 'tokens', 0)`, [at.workspace]);
        expect((await look()).warnings).toBe(0);
        await holder.query('rollback');
        const looks = await Promise.all(Array.from({ length: 8 }, look));
        expect(looks.reduce((sum, { warnings: count }) => sum + count, 0)).toBe(2);
        expect(await heard).toMatchObject({ channel: 'agentd_usage', payload: '' });
        expect(await warnings()).toHaveLength(2);
      } finally {
        await listener.query('unlisten *');
        holder.release();
        listener.release();
      }
    },
  );
});

describe('what conversations are counted by', () => {
  const way = () =>
    value(db.pool, `select settings ->> 'count_conversations' from public.workspaces where id = $1`, [
      at.workspace,
    ]);
  const open = () => insert(db, 'public.conversations', { workspace_id: at.workspace, agent_id: at.agent });

  test('is the application’s to say: a member’s call counts and changes nothing, nor does an owner’s edit', async () => {
    await now('2026-03-10T00:00:00Z');
    const as = async (user: string, text: string) => {
      const client = await db.pool.connect();
      try {
        await client.query('begin');
        await client.query(`select set_config('app.current_user_id', $1, true)`, [user]);
        await client.query('set local role authenticated');
        await client.query(text, [at.workspace]);
        await client.query('commit');
      } finally {
        client.release();
      }
    };
    await as(at.viewer, 'select public.increment_conversation_count($1)');
    await as(
      at.owner,
      `update public.workspaces set settings = settings || '{"count_conversations": "calls", "theme": 1}' where id = $1`,
    );
    expect(await way()).toBeNull();
    await open();
    await open();
    await pass();
    expect(await counters('conversations')).toEqual({ '2026-03-01': 3 });
    // the call was about one of the rows
    await look();
    await look();
    await pass();
    expect(await counters('conversations')).toEqual({ '2026-03-01': 2 });
    await as(at.viewer, 'select public.increment_conversation_count($1)');
    expect(await counters('conversations')).toEqual({ '2026-03-01': 2 });
    // and one beyond the rows counts for itself
    await as(at.viewer, 'select public.increment_conversation_count($1)');
    await look();
    await pass();
    expect(await counters('conversations')).toEqual({ '2026-03-01': 3 });

    await db.query('select public.increment_conversation_count($1)', [at.workspace]);
    expect(await way()).toBe('calls');
    // its rows are taken back already, each once
    expect(await counters('conversations')).toEqual({ '2026-03-01': 4 });
    await as(at.owner, `update public.workspaces set settings = '{"theme": 2}' where id = $1`);
    expect(await way()).toBe('calls');
    await open();
    await pass();
    expect(await counters('conversations')).toEqual({ '2026-03-01': 4 });
  });
});

test('a workspace is at its limit by its counter and by what is on its way into it', async () => {
  await now('2026-03-10T00:00:00Z');
  await plan({ token_limit: 100, is_default: true, limit_policy: 'fail' });
  await record('tokens', 99);
  await pass();
  expect(await reachedLimits(db, [at.workspace])).toEqual([null]);
  await db.query(
    `insert into agentd.usage_deltas (workspace_id, at, metric, in_counter, events, quantity, cost_micros)
     values ($1, agentd.now(), 'tokens', false, 1, 1, 0)`,
    [at.workspace],
  );
  expect(await reachedLimits(db, [at.workspace])).toMatchObject([
    { max_amount: 100, used_amount: 100, policy: 'fail', ends_in_ms: 22 * 24 * 3_600_000 },
  ]);
  await db.query(
    `update public.workspaces set settings = settings || '{"limit_policy": "wait"}' where id = $1`,
    [at.workspace],
  );
  expect(await reachedLimits(db, [at.workspace])).toMatchObject([{ policy: 'wait' }]);
  await now('2026-04-01T00:00:00Z');
  expect(await reachedLimits(db, [at.workspace])).toEqual([null]);
});

/** Numbers from 0 to 1 that a seed gives again. */
function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
}
