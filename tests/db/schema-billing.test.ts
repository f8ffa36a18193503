import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { onServer, setDatabaseClock, type TestDatabase, testDatabase } from '../support/database.ts';
import {
  asUser,
  column,
  company,
  denied,
  foreignKeyViolation,
  inserted,
  outcome,
  personalWorkspace,
  signUp,
  value,
} from './schema-support.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterEach(async () => {
  await setDatabaseClock(db, null);
  await db.pool.query('update public.pricing_plans set is_default = false');
});
afterAll(() => db.dispose());

const plan = (limits: { conversations?: number | null; tokens?: number | null; isDefault?: boolean }) =>
  inserted(
    db.pool,
    `insert into public.pricing_plans (name, conversation_limit, token_limit, is_default) values ('p', $1, $2, $3)`,
    [limits.conversations ?? null, limits.tokens ?? null, limits.isDefault ?? false],
  );
const subscribe = (workspace: string, planId: string, status = 'active') =>
  inserted(
    db.pool,
    'insert into public.workspace_subscriptions (workspace_id, plan_id, status) values ($1, $2, $3)',
    [workspace, planId, status],
  );
const consume = (workspace: string, n: number, key: string | null = null, metric = 'conversations') =>
  value<boolean>(db.pool, 'select agentd.consume_usage($1, $2, $3, $4)', [workspace, metric, n, key]);
const underLimit = (workspace: string) =>
  value<boolean>(db.pool, 'select public.check_usage_limit($1)', [workspace]);
const used = async (workspace: string) =>
  Number(
    (await value<string>(
      db.pool,
      `select used from public.workspace_usage_counters where workspace_id = $1 and metric = 'conversations'`,
      [workspace],
    )) ?? 0,
  );

describe('limits', () => {
  test('a workspace without a subscription has the default plan’s limit, and none where nothing is sold', async () => {
    const { workspace } = await company(db.pool);
    expect(await underLimit(workspace)).toBe(true);
    expect(await value(db.pool, `select agentd.usage_limit($1, 'conversations')`, [workspace])).toBeNull();
    await plan({ conversations: 1, isDefault: true });
    expect(await underLimit(workspace)).toBe(true);
    expect(await consume(workspace, 1)).toBe(true);
    expect(await underLimit(workspace)).toBe(false);
  });

  test.each([null, -1])('a limit of %s is unlimited', async (limit) => {
    const { workspace } = await company(db.pool);
    await subscribe(workspace, await plan({ conversations: limit }));
    expect(await consume(workspace, 1_000_000)).toBe(true);
    expect(await underLimit(workspace)).toBe(true);
  });

  test.each([
    ['trialing', true],
    ['active', true],
    ['past_due', true],
    ['canceled', false],
    ['unpaid', false],
    ['paused', false],
  ])('a subscription that is %s gives its allowance: %s', async (status, allowed) => {
    const { workspace } = await company(db.pool);
    await subscribe(workspace, await plan({ conversations: 5 }), status);
    expect(await underLimit(workspace)).toBe(allowed);
    expect(await consume(workspace, 1)).toBe(allowed);
  });

  test('a subscription past its end gives nothing', async () => {
    const { workspace } = await company(db.pool);
    const id = await subscribe(workspace, await plan({ conversations: 5 }));
    await db.pool.query(`update public.workspace_subscriptions set end_date = '2030-01-01Z' where id = $1`, [
      id,
    ]);
    expect(await underLimit(workspace)).toBe(true);
    await setDatabaseClock(db, new Date('2030-01-02Z'));
    expect(await underLimit(workspace)).toBe(false);
  });

  test('consume_usage takes all or nothing, never more than the limit, and a key is paid once', async () => {
    const { workspace } = await company(db.pool);
    await subscribe(workspace, await plan({ conversations: 5 }));
    expect(await consume(workspace, 6)).toBe(false);
    expect(await used(workspace)).toBe(0);
    expect(await consume(workspace, 3, 'a')).toBe(true);
    expect(await consume(workspace, 3, 'a')).toBe(true);
    expect(await used(workspace)).toBe(3);
    expect(await consume(workspace, 3, 'b')).toBe(false);
    expect(await consume(workspace, 2, 'b')).toBe(true);
    expect(await used(workspace)).toBe(5);
    expect(await consume(workspace, 1)).toBe(false);
    expect(
      await outcome(db.pool, `select agentd.consume_usage($1, 'conversations', -1, null)`, [workspace]),
    ).toBe('22023');
    expect(
      await outcome(db.pool, `select agentd.consume_usage($1, 'conversations', 1, null)`, [randomUUID()]),
    ).toBe(foreignKeyViolation);
  });

  test('a new month, in the workspace’s own time zone, begins a new allowance', async () => {
    const { workspace } = await company(db.pool);
    await db.pool.query(`update public.workspaces set timezone = 'Pacific/Auckland' where id = $1`, [
      workspace,
    ]);
    await subscribe(workspace, await plan({ conversations: 1 }));
    await setDatabaseClock(db, new Date('2030-01-31T10:59:59Z'));
    expect([await consume(workspace, 1), await consume(workspace, 1)]).toEqual([true, false]);
    await setDatabaseClock(db, new Date('2030-01-31T11:00:00Z'));
    expect([await consume(workspace, 1), await consume(workspace, 1)]).toEqual([true, false]);
  });

  test.runIf(onServer)('sessions together never exceed the limit', async () => {
    const { workspace } = await company(db.pool);
    await subscribe(workspace, await plan({ conversations: 20 }));
    const granted = await Promise.all(
      Array.from({ length: 60 }, (_, i) => consume(workspace, 1, `key-${i}`)),
    );
    expect(granted.filter(Boolean)).toHaveLength(20);
    expect(await used(workspace)).toBe(20);
  });
});

describe('events', () => {
  const record = (workspace: string, key: string) =>
    value<boolean>(db.pool, `select agentd.record_usage($1, 'tokens', 120, $2, 35)`, [workspace, key]);

  test('record_usage writes a fact once a key and workspace', async () => {
    const [here, there] = [await company(db.pool), await company(db.pool)];
    expect(await record(here.workspace, 'k')).toBe(true);
    expect(await record(here.workspace, 'k')).toBe(false);
    expect(await record(there.workspace, 'k')).toBe(true);
    const rows = await db.pool.query(
      'select metric, quantity, cost_micros, idempotency_key from public.usage_events where workspace_id = $1',
      [here.workspace],
    );
    expect(rows.rows).toEqual([
      { metric: 'tokens', quantity: '120', cost_micros: '35', idempotency_key: 'k' },
    ]);
  });

  test('increment_conversation_count counts a call each time, for members only; only the application’s turns to counting calls', async () => {
    const { workspace, viewer } = await company(db.pool);
    const stranger = await signUp(db.pool);
    await asUser(db.pool, stranger, async (client) => {
      expect(await outcome(client, 'select public.increment_conversation_count($1)', [workspace])).toBe(
        denied,
      );
    });
    await asUser(db.pool, viewer, async (client) => {
      await client.query('select public.increment_conversation_count($1)', [workspace]);
      await client.query('select public.increment_conversation_count($1)', [workspace]);
      expect(
        await value(client, `select sum(quantity)::int from public.usage_events where workspace_id = $1`, [
          workspace,
        ]),
      ).toBe(2);
      expect(
        await value(
          client,
          `select used::int from public.workspace_usage_counters where workspace_id = $1 and metric = 'conversations'`,
          [workspace],
        ),
      ).toBe(2);
    });
    const way = () =>
      value(db.pool, `select settings ->> 'count_conversations' from public.workspaces where id = $1`, [
        workspace,
      ]);
    expect(await way()).toBeNull();
    await db.pool.query('select public.increment_conversation_count($1)', [workspace]);
    expect(await way()).toBe('calls');
  });

  test('get_workspace_usage is the row of the present month, zeros without one, nothing for a stranger', async () => {
    const { workspace, viewer } = await company(db.pool);
    await setDatabaseClock(db, new Date('2030-03-15Z'));
    const ask = (user: string) =>
      asUser(db.pool, user, async (client) => {
        const result = await client.query(
          `select u.workspace_id, u.month::text, u.conversations, u.period_end from public.get_workspace_usage($1) u`,
          [workspace],
        );
        return result.rows[0];
      });
    expect(await ask(viewer)).toEqual({
      workspace_id: workspace,
      month: '2030-03-01',
      conversations: 0,
      period_end: new Date('2030-04-01Z'),
    });
    await db.pool.query(
      `insert into public.workspace_usage (workspace_id, month, conversations) values ($1, '2030-03-01', 9), ($1, '2030-02-01', 4)`,
      [workspace],
    );
    expect(await ask(viewer)).toMatchObject({ month: '2030-03-01', conversations: 9 });
    expect(await ask(await signUp(db.pool))).toMatchObject({ workspace_id: null });
  });

  test('the period of a month follows the workspace’s zone, and an unknown zone is UTC', async () => {
    const { workspace } = await company(db.pool);
    const period = async (zone: string, month: string) => {
      await db.pool.query('update public.workspaces set timezone = $1 where id = $2', [zone, workspace]);
      const result = await db.pool.query(
        `insert into public.workspace_usage (workspace_id, month) values ($1, $2) returning period_start, period_end`,
        [workspace, month],
      );
      return result.rows[0];
    };
    expect(await period('America/New_York', '2026-03-01')).toEqual({
      period_start: new Date('2026-03-01T05:00:00Z'),
      period_end: new Date('2026-04-01T04:00:00Z'),
    });
    expect(await period('Mars/Olympus', '2026-05-01')).toEqual({
      period_start: new Date('2026-05-01T00:00:00Z'),
      period_end: new Date('2026-06-01T00:00:00Z'),
    });
    expect(await value(db.pool, `select agentd.valid_time_zone(null)`)).toBe('UTC');
  });

  test('a subscription without a workspace is for the payer’s personal one', async () => {
    const user = await signUp(db.pool);
    expect(
      await value(
        db.pool,
        'insert into public.workspace_subscriptions (user_id, plan_id) values ($1, $2) returning workspace_id',
        [user, await plan({})],
      ),
    ).toBe(await personalWorkspace(db.pool, user));
  });
});

describe('partitions', () => {
  const months = () =>
    column<string>(
      db.pool,
      `select c.relname::text from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'public.usage_events'::regclass and c.relname ~ '[0-9]{4}_[0-9]{2}$' order by 1`,
    );

  test('ensure_partitions is idempotent, goes on from the last month without a hole, and takes the past', async () => {
    const before = await months();
    expect(before).toHaveLength(13);
    expect(await value(db.pool, `select agentd.ensure_partitions('public.usage_events', 12)`)).toBe(0);

    const last = before.at(-1) as string;
    const [year, month] = last.slice(-7).split('_').map(Number) as [number, number];
    // A daemon that comes back a year and a half later, five months after the last partition.
    await setDatabaseClock(db, new Date(Date.UTC(year, month - 1 + 5, 17)));
    expect(await value(db.pool, `select agentd.ensure_partitions('public.usage_events', 2)`)).toBe(7);
    const names = (await months()).map((name) => name.slice(-7));
    const expected = Array.from({ length: 20 }, (_, i) => {
      const at = new Date(Date.UTC(year, month - 13 + i, 1));
      return `${at.getUTCFullYear()}_${String(at.getUTCMonth() + 1).padStart(2, '0')}`;
    });
    expect(names).toEqual(expected);

    const { workspace } = await company(db.pool);
    for (const at of ['1999-12-31T23:59:59Z', `${year}-${String(month).padStart(2, '0')}-01T00:00:00Z`]) {
      expect(
        await outcome(
          db.pool,
          `insert into public.usage_events (workspace_id, metric, recorded_at) values ($1, 'message', $2)`,
          [workspace, at],
        ),
      ).toBe('ok');
    }
    expect(
      await value(db.pool, `select count(*)::int from agentd.p_usage_events_past where workspace_id = $1`, [
        workspace,
      ]),
    ).toBe(1);
  });

  test('a table that is not partitioned is refused', async () => {
    expect(await outcome(db.pool, `select agentd.ensure_partitions('public.workspaces', 1)`)).toBe('42809');
  });

  test('the worker makes partitions without any right to make tables', async () => {
    const client = await db.pool.connect();
    try {
      await client.query('begin; set local role agentd_worker');
      expect(await outcome(client, 'create table agentd.own (id integer)')).toBe(denied);
      expect(await outcome(client, `select agentd.ensure_partitions('public.usage_events', 40)`)).toBe('ok');
    } finally {
      await client.query('rollback');
      client.release();
    }
  });
});
