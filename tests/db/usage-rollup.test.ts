/** The roll-up of usage, step by step: what counts, when, in which period, and that a recomputation says the same. */
import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { openDatabase, WORKER_LIMITS } from '../../src/db/database.ts';
import {
  adoptRestoredUsage,
  closeUsagePeriods,
  gatherUsage,
  rebuildUsage,
  takeReconciliation,
  usageDrift,
  voidCountedRows,
} from '../../src/db/usage.ts';
import { reconcileWorkspace } from '../../src/services/usage-reconcile.ts';
import { keepPeriods, restAfter, rollUp } from '../../src/services/usage-rollup.ts';
import { silentLogger } from '../../src/telemetry/logger.ts';
import { createMetrics } from '../../src/telemetry/metrics.ts';
import { onServer, setDatabaseClock, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform } from '../support/platform.ts';

let db: TestDatabase;
let at: Platform;

beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db?.dispose());
beforeEach(async () => {
  at = await makePlatform(db, { shared: true });
});
afterEach(async () => {
  await setDatabaseClock(db, null);
  await db.query('delete from public.workspaces where not is_personal');
  await pass();
});

const deps = () => ({ db, clock: systemClock, log: silentLogger(), metrics: createMetrics() });
const pass = () => rollUp(deps());
const now = (time: string) => setDatabaseClock(db, new Date(time));

async function record(
  metric: string,
  when: string | null,
  quantity = 1,
  more: { cost?: number; key?: string } = {},
) {
  const [row] = await db.query<{ fresh: boolean }>(
    'select agentd.record_usage($1, $2, $3, $4, $5, $6, $7) as fresh',
    [at.workspaceId, metric, quantity, more.key ?? randomUUID(), more.cost ?? 0, when, at.agentId],
  );
  return row?.fresh;
}
const zone = (name: string) =>
  db.query('update public.workspaces set timezone = $2 where id = $1', [at.workspaceId, name]);

type Row = {
  month: string;
  kind: string;
  from: string;
  to: string;
  messages: number;
  tokens: number;
  cost: number;
  closed: boolean;
};
/** The periods of the workspace, in their order. */
const periods = () =>
  db.query<Row>(
    `select month::text, period_kind as kind, to_char(period_start at time zone 'UTC', 'MM-DD HH24:MI:SS') as from,
            to_char(period_end at time zone 'UTC', 'MM-DD HH24:MI:SS') as to, messages, tokens_used as tokens, cost_micros as cost,
            closed_at is not null as closed
       from public.workspace_usage where workspace_id = $1 order by period_start`,
    [at.workspaceId],
  );
const messages = async () => (await periods()).map((row) => [row.month, row.messages]);
const used = async (metric: string) => {
  const [row] = await db.query<{ used: number }>(
    'select coalesce(sum(used), 0)::integer as used from public.workspace_usage_counters where workspace_id = $1 and metric = $2',
    [at.workspaceId, metric],
  );
  return row?.used;
};
const sums = async () =>
  Object.fromEntries(
    (
      await db.query<{ metric: string; sum: number }>(
        'select metric, sum(quantity)::integer as sum from public.usage_quarter_hours where workspace_id = $1 group by metric order by 1',
        [at.workspaceId],
      )
    ).map((row) => [row.metric, row.sum]),
  );
/** Every test ends with this: the sums are what a recomputation says. */
const expectTrue = async () => expect(await usageDrift(db, null)).toEqual([]);

describe('what counts', () => {
  test('a message counts once, also when it is deleted and inserted again', async () => {
    const channel = await insert(db, 'public.chat_channels', {
      workspace_id: at.workspaceId,
      name: 'general',
    });
    const id = randomUUID();
    const post = () =>
      insert(db, 'public.chat_messages', {
        id,
        workspace_id: at.workspaceId,
        channel_id: channel,
        content: 'Hello',
      });
    await post();
    await db.query('delete from public.chat_messages where id = $1', [id]);
    await post();
    await pass();
    expect(await sums()).toEqual({ message: 1 });
    expect(await used('messages')).toBe(1);
    await expectTrue();
  });

  test('what is rolled back does not count, and its message is there to be counted later', async () => {
    const channel = await insert(db, 'public.chat_channels', {
      workspace_id: at.workspaceId,
      name: 'general',
    });
    await db
      .transaction(async (tx) => {
        await insert(tx, 'public.chat_messages', {
          workspace_id: at.workspaceId,
          channel_id: channel,
          content: 'No',
        });
        throw new Error('back');
      })
      .catch(() => {});
    await pass();
    expect(await sums()).toEqual({});
    await expectTrue();
  });

  test('a conversation counts by its row; a session of the same id is the same conversation', async () => {
    const id = randomUUID();
    await insert(db, 'public.conversations', {
      id,
      workspace_id: at.workspaceId,
      agent_id: at.agentId,
      user_id: at.userId,
    });
    await insert(db, 'public.chat_sessions', { id, workspace_id: at.workspaceId, agent_id: at.agentId });
    await pass();
    expect(await sums()).toEqual({ conversation: 1 });
  });

  test('an application that inserts rows and calls is counted once, from its first conversation on', async () => {
    const session = () =>
      insert(db, 'public.chat_sessions', { workspace_id: at.workspaceId, agent_id: at.agentId });
    const call = () => db.query('select public.increment_conversation_count($1)', [at.workspaceId]);
    await session();
    await session();
    await pass();
    await call();
    await call();
    for (let i = 0; i < 3; i++) {
      await session();
      await call();
    }
    // what was in the counter before the first call has gone from it with that call
    expect(await used('conversations')).toBe(5);
    expect(await voidCountedRows(db, at.workspaceId, 100)).toBe(0);
    await pass();
    expect(await sums()).toEqual({ conversation: 5 });
    expect(await used('conversations')).toBe(5);
    await expectTrue();
  });

  test('a row whose transaction had begun before the first call is taken back when it is there', async () => {
    await db.query('select public.increment_conversation_count($1)', [at.workspaceId]);
    // as that transaction saw it
    await record('conversation', null, 1, { key: `conversation:${randomUUID()}` });
    await pass();
    expect(await used('conversations')).toBe(2);
    expect(await voidCountedRows(db, at.workspaceId, 100)).toBe(1);
    await pass();
    expect(await sums()).toEqual({ conversation: 1 });
    expect(await used('conversations')).toBe(1);
    await expectTrue();
  });

  test('rows of more than an hour before the first call were conversations of their own', async () => {
    await now('2026-05-10T08:00:00Z');
    await insert(db, 'public.chat_sessions', { workspace_id: at.workspaceId, agent_id: at.agentId });
    await now('2026-05-10T09:30:00Z');
    await db.query('select public.increment_conversation_count($1)', [at.workspaceId]);
    expect(await voidCountedRows(db, at.workspaceId, 100)).toBe(0);
    await pass();
    expect(await sums()).toEqual({ conversation: 2 });
  });

  test('the counter is moved once for what was granted or called, and by the roll-up for everything else', async () => {
    await db.query('select public.increment_conversation_count($1)', [at.workspaceId]);
    await db.query(`select agentd.consume_usage($1, 'messages', 1, 'granted')`, [at.workspaceId]);
    await record('message', null, 1, { key: 'granted' });
    await record('message', null, 1, { key: 'another' });
    await pass();
    expect([await used('conversations'), await used('messages')]).toEqual([1, 2]);
    expect(await sums()).toEqual({ conversation: 1, message: 2 });
  });

  test('tokens of an application without a cost have the price of the time at which they were used', async () => {
    const model = `m-${randomUUID()}`;
    await now('2026-03-01T00:00:00Z');
    const id = await insert(db, 'public.llm_models', {
      provider: 'p',
      name: 'm',
      model_id: model,
      input_cost_per_1k: 0.001,
      output_cost_per_1k: 0.002,
    });
    await now('2026-04-01T00:00:00Z');
    await db.query('update public.llm_models set input_cost_per_1k = 0.01 where id = $1', [id]);
    const use = (when: string, dimensions: unknown, quantity = 3000) =>
      db.query(`select agentd.record_usage($1, 'tokens', $5, $2, 0, $3, null, null, $4)`, [
        at.workspaceId,
        randomUUID(),
        when,
        JSON.stringify(dimensions),
        quantity,
      ]);
    const split = { provider: 'p', model, prompt_tokens: 1000, completion_tokens: 2000 };
    await use('2026-03-15T00:00:00Z', split);
    await use('2026-04-15T00:00:00Z', split);
    await use('2026-02-15T00:00:00Z', { model });
    await use('2026-02-15T00:00:00Z', { model: 'unknown' });
    await use('2026-02-15T00:00:00Z', { model, prompt_tokens: '1e400', completion_tokens: 1 });
    const costs = await db.query<{ cost: number }>(
      'select cost_micros as cost from public.usage_events where workspace_id = $1 order by occurred_at desc, cost_micros desc',
      [at.workspaceId],
    );
    expect(costs.map((row) => row.cost)).toEqual([14_000, 5_000, 3_000, 2, 0]);
  });

  test('a pass needs one snapshot', async () => {
    await expect(db.transaction((tx) => tx.query('select agentd.gather_usage()'))).rejects.toMatchObject({
      code: '25000',
    });
  });

  test('a backlog that is taken in parts is the same sum', async () => {
    for (let i = 0; i < 7; i++) await record('message', null);
    const parts: boolean[] = [];
    for (let more = true; more; ) {
      const gathered = await gatherUsage(db, 2);
      more = gathered?.isComplete === false;
      parts.push(more);
    }
    expect(parts.length).toBeGreaterThan(2);
    await pass();
    expect(await sums()).toEqual({ message: 7 });
    await expectTrue();
  });

  test('a workspace that is deleted takes what was on its way with it', async () => {
    await record('message', null);
    await gatherUsage(db, null);
    await db.query('delete from public.workspaces where id = $1', [at.workspaceId]);
    await pass();
    expect(await db.query('select 1 from agentd.usage_deltas')).toEqual([]);
  });

  test('times that cannot be are those of the recording, and sums that no column holds stop at its end', async () => {
    await now('2026-05-10T08:00:00Z');
    await record('message', '-infinity');
    await record('message', '2031-01-01T00:00:00Z', 900_000_000_000);
    await pass();
    expect(await messages()).toEqual([['2026-05-01', 2_147_483_647]]);
    await expect(record('message', null, 2_000_000_000_000)).rejects.toMatchObject({ code: '23514' });
  });
});

describe('periods', () => {
  test.each([
    ['Asia/Kolkata', '2026-01-31T18:30:00Z'],
    ['America/St_Johns', '2026-02-01T03:30:00Z'],
    ['Pacific/Apia', '2026-01-31T11:00:00Z'],
  ])('a month in %s ends at its midnight', async (name, midnight) => {
    await zone(name);
    await now('2026-02-02T00:00:00Z');
    const end = new Date(midnight).getTime();
    await record('message', new Date(end - 1).toISOString());
    await record('message', midnight, 10);
    await pass();
    expect(await messages()).toEqual([
      ['2026-01-01', 1],
      ['2026-02-01', 10],
    ]);
    expect(
      (
        await db.query<{ n: number }>('select messages as n from public.get_workspace_usage($1)', [
          at.workspaceId,
        ])
      )[0]?.n,
    ).toBe(10);
    await expectTrue();
  });

  test('what comes for a closed period is a correction of the open one, and its own quarter of an hour', async () => {
    await now('2026-01-20T12:00:00Z');
    await record('message', null);
    await record('tokens', null, 100, { cost: 7 });
    await pass();
    await now('2026-02-10T12:00:00Z');
    expect(await closeUsagePeriods(db, 72, 100)).toBe(1);
    await record('message', '2026-01-31T23:59:59Z', 5);
    await record('tokens', '2026-01-02T00:00:00Z', 50, { cost: 3 });
    await pass();
    expect(await periods()).toMatchObject([
      { month: '2026-01-01', messages: 1, tokens: 100, cost: 7, closed: true },
      { month: '2026-02-01', messages: 5, tokens: 50, cost: 3, closed: false },
    ]);
    expect(
      await db.query(
        'select metric, quantity from agentd.usage_corrections where workspace_id = $1 order by 1',
        [at.workspaceId],
      ),
    ).toEqual([
      { metric: 'message', quantity: 5 },
      { metric: 'tokens', quantity: 50 },
    ]);
    await expectTrue();
    await rebuildUsage(db, at.workspaceId);
    expect((await periods()).map((row) => row.messages)).toEqual([1, 5]);
    await expectTrue();
  });

  test('a zone that moves to the east ends the month at its own midnight', async () => {
    await now('2026-01-20T00:00:00Z');
    await record('message', null);
    await pass();
    await zone('Asia/Kolkata');
    await record('message', '2026-01-20T12:00:00Z', 2);
    await pass();
    await now('2026-02-02T00:00:00Z');
    await record('message', '2026-01-31T18:29:59Z', 10);
    await record('message', '2026-01-31T18:30:00Z', 100);
    await pass();
    expect(await periods()).toMatchObject([
      { month: '2026-01-01', from: '01-01 00:00:00', to: '01-31 18:30:00', messages: 13 },
      { month: '2026-02-01', from: '01-31 18:30:00', to: '02-28 18:30:00', messages: 100 },
    ]);
    await expectTrue();
  });

  test('a zone that moves to the west after the month’s end goes on with that month, while it is open', async () => {
    await now('2026-01-20T00:00:00Z');
    await record('message', null);
    await pass();
    await now('2026-02-01T01:00:00Z');
    await zone('America/St_Johns');
    await record('message', null, 2);
    await pass();
    await now('2026-02-01T04:00:00Z');
    await record('message', null, 10);
    await pass();
    expect(await periods()).toMatchObject([
      { month: '2026-01-01', to: '02-01 03:30:00', messages: 3 },
      { month: '2026-02-01', from: '02-01 03:30:00', messages: 10 },
    ]);
    await expectTrue();
  });

  describe('of a subscription', () => {
    let plan: string;
    beforeEach(async () => {
      plan = await insert(db, 'public.pricing_plans', { name: 'p', usage_period: 'subscription' });
    });
    const subscribe = (from: string, to: string | null) =>
      insert(db, 'public.workspace_subscriptions', {
        workspace_id: at.workspaceId,
        plan_id: plan,
        status: 'active',
        current_period_start: from,
        current_period_end: to,
      });

    test('it begins at its second in the middle of a month, also for what was summed up before', async () => {
      await now('2026-01-12T00:00:00Z');
      await record('message', '2026-01-10T10:07:32.9Z');
      await record('message', '2026-01-10T10:07:33Z', 10);
      await pass();
      await subscribe('2026-01-10T10:07:33.4Z', '2026-02-10T10:07:33.4Z');
      await record('message', '2026-01-10T10:07:59Z', 100);
      await pass();
      expect(await periods()).toMatchObject([
        { kind: 'month', month: '2026-01-01', to: '01-10 10:07:33', messages: 1 },
        {
          kind: 'subscription',
          month: '2026-01-10',
          from: '01-10 10:07:33',
          to: '02-10 10:07:33',
          messages: 110,
        },
      ]);
      await expectTrue();
    });

    test('whether the renewal comes before or after the usage, each event is in its period', async () => {
      await now('2026-01-31T09:00:00Z');
      const id = await subscribe('2026-01-31T08:00:05Z', '2026-02-28T08:00:05Z');
      await record('message', null);
      await pass();
      await now('2026-02-28T08:30:00Z');
      await record('message', '2026-02-28T08:00:04Z', 10);
      await record('message', '2026-02-28T08:00:05Z', 100);
      await pass();
      const renew = () =>
        db.query(
          `update public.workspace_subscriptions set current_period_start = '2026-02-28T08:00:05Z', current_period_end = '2026-03-31T08:00:05Z' where id = $1`,
          [id],
        );
      await renew();
      await renew();
      await record('message', '2026-02-28T08:00:06Z', 1000);
      await pass();
      expect(await periods()).toMatchObject([
        { from: '01-31 08:00:05', to: '02-28 08:00:05', messages: 11 },
        { from: '02-28 08:00:05', to: '03-31 08:00:05', messages: 1100 },
      ]);
      await expectTrue();
    });

    test('a plan that goes back to months lets the period end, and the rest of the month is the next', async () => {
      await now('2026-01-12T00:00:00Z');
      await subscribe('2026-01-10T10:07:33Z', '2026-02-10T10:07:33Z');
      await record('message', null);
      await pass();
      await db.query(`update public.pricing_plans set usage_period = 'month' where id = $1`, [plan]);
      await now('2026-02-12T00:00:00Z');
      await record('message', '2026-02-10T10:07:32Z', 10);
      await record('message', '2026-02-10T10:07:33Z', 100);
      await pass();
      expect(await periods()).toMatchObject([
        { kind: 'subscription', messages: 11, to: '02-10 10:07:33' },
        { kind: 'month', month: '2026-02-01', from: '02-10 10:07:33', to: '03-01 00:00:00', messages: 100 },
      ]);
      await expectTrue();
    });
  });
});

describe('recomputation', () => {
  test('a sum that is wrong is found, written down and made right', async () => {
    await record('message', null, 3);
    await record('tokens', null, 9, { cost: 2 });
    await pass();
    await db.query(
      'update public.usage_quarter_hours set quantity = 4 where workspace_id = $1 and metric = $2',
      [at.workspaceId, 'message'],
    );
    await db.query('update public.workspace_usage set cost_micros = 0 where workspace_id = $1', [
      at.workspaceId,
    ]);
    expect(await usageDrift(db, at.workspaceId)).toMatchObject([
      { level: 'period', metric: 'cost_micros', expected: 2, found: 0 },
      { level: 'quarter_hour', metric: 'message', expected: 3, found: 4 },
    ]);
    expect(await reconcileWorkspace(deps(), at.workspaceId, true)).toBe(2);
    expect(await periods()).toMatchObject([{ messages: 3, tokens: 9, cost: 2 }]);
    expect(
      await db.query(
        'select 1 from agentd.usage_drifts where workspace_id = $1 and repaired_at is not null',
        [at.workspaceId],
      ),
    ).toHaveLength(2);
    await expectTrue();
  });

  test('after a restore nothing is counted until the sums are rebuilt, and then once', async () => {
    await record('message', null, 3);
    await pass();
    await db.query(
      `update agentd.usage_rollup_state set snapshot = '900000000:900000000:' where name = 'usage'`,
    );
    await db.query(`update public.usage_events set xid = '899999999' where workspace_id = $1`, [
      at.workspaceId,
    ]);
    await record('message', null, 10);
    await expect(gatherUsage(db, null)).rejects.toMatchObject({ code: '55000' });
    expect(await adoptRestoredUsage(db)).toBe(true);
    expect(await adoptRestoredUsage(db)).toBe(false);
    await rebuildUsage(db, at.workspaceId);
    await record('message', null, 100);
    await pass();
    expect(await sums()).toEqual({ message: 113 });
    await expectTrue();
  });

  test('a period that an application has inserted is its own until something is added to it', async () => {
    await db.query(
      `insert into public.workspace_usage (workspace_id, month, messages) values ($1, '2025-01-01', 8)`,
      [at.workspaceId],
    );
    await record('message', null);
    await pass();
    await expectTrue();
    await rebuildUsage(db, at.workspaceId);
    expect((await messages())[0]).toEqual(['2025-01-01', 8]);
  });

  test('the comparison is one worker’s turn a day', async () => {
    await db.query(`update agentd.usage_rollup_state set last_run_at = null where name = 'reconcile'`);
    expect([await takeReconciliation(db, 1000_000), await takeReconciliation(db, 1000_000)]).toEqual([
      true,
      false,
    ]);
  });

  test('whatever zones, plans, passes and late events come in whatever order, every event is in one period', async () => {
    const random = seeded(20_260_712);
    const pick = <T>(of: readonly T[]): T => of[Math.floor(random() * of.length)] as T;
    const plan = await insert(db, 'public.pricing_plans', { name: 'p', usage_period: 'subscription' });
    let time = Date.parse('2026-01-05T00:00:00Z');
    let count = 0;
    for (let step = 0; step < 150; step++) {
      time += random() * 2.5 * 86_400_000;
      await setDatabaseClock(db, new Date(time));
      const what = random();
      if (what < 0.6) {
        const late = random() < 0.3 ? random() * 35 * 86_400_000 : random() * 3_600_000;
        const quantity = 1 + Math.floor(random() * 9);
        count += quantity;
        await record('message', new Date(time - late).toISOString(), quantity);
      } else if (what < 0.75) await pass();
      else if (what < 0.83)
        await zone(pick(['Asia/Kolkata', 'America/St_Johns', 'Pacific/Apia', 'UTC', 'Nowhere/None']));
      else if (what < 0.9)
        await insert(db, 'public.workspace_subscriptions', {
          workspace_id: at.workspaceId,
          plan_id: plan,
          created_at: new Date(time),
          status: pick(['active', 'trialing', 'past_due']),
          current_period_start: new Date(time - random() * 5 * 86_400_000),
          current_period_end: pick([new Date(time + 25 * 86_400_000), null]),
        });
      else if (what < 0.95)
        await db.query(
          `update public.workspace_subscriptions set status = 'canceled' where workspace_id = $1`,
          [at.workspaceId],
        );
      else await closeUsagePeriods(db, 72, 100);
    }
    await pass();
    await expectTrue();
    const rows = await periods();
    expect(rows.reduce((sum, row) => sum + row.messages, 0)).toBe(count);
    const [overlaps] = await db.query<{ n: number }>(
      `select count(*)::integer as n from public.workspace_usage a join public.workspace_usage b using (workspace_id)
        where a.id < b.id and a.period_start < b.period_end and b.period_start < a.period_end`,
    );
    expect(overlaps?.n).toBe(0);
    await rebuildUsage(db, at.workspaceId);
    await expectTrue();
    expect((await periods()).reduce((sum, row) => sum + row.messages, 0)).toBe(count);
  });
});

describe.runIf(onServer)('beside others', () => {
  test('what was under way at a pass counts when it commits, and never when it is rolled back', async () => {
    const [late, never] = [await db.pool.connect(), await db.pool.connect()];
    const write = `select agentd.record_usage($1, 'message', $2, $3)`;
    for (const [client, quantity] of [
      [late, 10],
      [never, 1000],
    ] as const) {
      await client.query('begin');
      await client.query(write, [at.workspaceId, quantity, randomUUID()]);
    }
    await record('message', null, 1);
    await pass();
    expect(await sums()).toEqual({ message: 1 });
    await record('message', null, 100);
    await pass();
    expect(await sums()).toEqual({ message: 101 });
    await late.query('commit');
    await never.query('rollback');
    await pass();
    await pass();
    expect(await sums()).toEqual({ message: 111 });
    late.release();
    never.release();
    await expectTrue();
  });

  test('a workspace whose counter somebody holds waits, and nobody else does', async () => {
    const other = await makePlatform(db, { shared: true });
    await record('message', null);
    await pass();
    const client = await db.pool.connect();
    await client.query('begin');
    await client.query(`select agentd.consume_usage($1, 'messages', 1, null)`, [at.workspaceId]);
    // a row that is not there yet, too
    await client.query(`select agentd.consume_usage($1, 'conversations', 1, null)`, [at.workspaceId]);
    await record('message', null, 10);
    await record('conversation', null);
    const mine = at;
    at = other;
    await record('message', null, 100);
    await pass();
    expect(await sums()).toEqual({ message: 100 });
    at = mine;
    expect(await sums()).toEqual({ message: 1 });
    await client.query('commit');
    client.release();
    await pass();
    expect(await sums()).toEqual({ conversation: 1, message: 11 });
    expect([await used('messages'), await used('conversations')]).toEqual([12, 2]);
    await expectTrue();
  });

  test('rows that calls have replaced wait where somebody holds the counter; others’ are taken back, and periods close', async () => {
    const second = await makePlatform(db, { shared: true });
    const [held, free] = [at.workspaceId, second.workspaceId];
    for (const id of [held, free]) {
      await db.query('select public.increment_conversation_count($1)', [id]);
      // of a transaction that had begun before the call
      await db.query(
        `select agentd.record_usage($1, 'conversation', 1, 'conversation:' || gen_random_uuid())`,
        [id],
      );
      await db.query(`select agentd.record_usage($1, 'message', 1, gen_random_uuid()::text, 0, $2)`, [
        id,
        new Date(Date.now() - 40 * 86_400_000),
      ]);
    }
    await pass();
    const voids = async () =>
      (
        await db.query<{ id: string }>(
          `select workspace_id as id from public.usage_events where idempotency_key like 'void:%' and workspace_id = any ($1)`,
          [[held, free]],
        )
      ).map((row) => row.id);
    const worker = openDatabase({ url: db.url, embedded: false, max: 1, limits: WORKER_LIMITS });
    const holder = await db.pool.connect();
    try {
      await holder.query('begin');
      await holder.query('update public.workspace_usage_counters set used = used where workspace_id = $1', [
        held,
      ]);
      await keepPeriods({ ...deps(), db: worker });
      expect(await voids()).toEqual([free]);
      expect(
        await db.query(
          'select workspace_id as id from public.workspace_usage where closed_at is not null and workspace_id = any ($1) order by 1',
          [[held, free]],
        ),
      ).toEqual([held, free].sort().map((id) => ({ id })));
      await holder.query('rollback');
      await keepPeriods({ ...deps(), db: worker });
      expect((await voids()).sort()).toEqual([held, free].sort());
    } finally {
      holder.release();
      await worker.close();
    }
  });

  test('a workspace that somebody is deleting waits, and nobody else does', async () => {
    const mine = at;
    const other = await makePlatform(db, { shared: true });
    await record('message', null);
    const client = await db.pool.connect();
    await client.query('begin');
    await client.query('select 1 from public.workspaces where id = $1 for update', [at.workspaceId]);
    at = other;
    await record('message', null, 100);
    await pass();
    expect(await sums()).toEqual({ message: 100 });
    at = mine;
    expect(await sums()).toEqual({});
    await client.query('rollback');
    client.release();
    await pass();
    expect(await sums()).toEqual({ message: 1 });
  });
});

/** The same numbers between 0 and 1 for the same seed. */
function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

test('a pass follows at once where passes are short, and takes a fifth of the time at most where they are long', () => {
  expect([restAfter(100, 5), restAfter(500, 5), restAfter(100, 0)]).toEqual([300, 300, 1_000]);
  for (const took of [600, 2_500, 60_000]) expect(took / (took + restAfter(took, 5))).toBe(0.2);
});
