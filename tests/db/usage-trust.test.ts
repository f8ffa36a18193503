/** Limits against those who would rather not be counted: keys, ids and clocks of members, held rows, and a restored server. */
import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { adoptRestoredUsage, gatherUsage, rebuildUsage, usageDrift } from '../../src/db/usage.ts';
import { rollUp } from '../../src/services/usage-rollup.ts';
import { silentLogger } from '../../src/telemetry/logger.ts';
import { createMetrics } from '../../src/telemetry/metrics.ts';
import { onServer, setDatabaseClock, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert } from '../support/platform.ts';
import { asUser } from '../support/sessions.ts';
import { type Company, company, type Runner, value } from './schema-support.ts';

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

const pass = () => rollUp({ db, clock: systemClock, log: silentLogger(), metrics: createMetrics() });
const plan = (columns: Record<string, unknown>) =>
  insert(db, 'public.pricing_plans', { name: 'p', is_default: true, ...columns });
const record = (metric: string, quantity: number, key: string = randomUUID(), workspace = at.workspace) =>
  db.query('select agentd.record_usage($1, $2, $3, $4)', [workspace, metric, quantity, key]);
const consume = (n: number, key: string | null = null, metric = 'messages', runner: Runner = db.pool) =>
  value<boolean>(runner, 'select public.consume_usage($1, $2, $3, $4)', [at.workspace, metric, n, key]);
const used = (metric = 'messages') =>
  value<number>(
    db.pool,
    'select sum(used)::float8 from public.workspace_usage_counters where workspace_id = $1 and metric = $2',
    [at.workspace, metric],
  );

describe('a signed-in user', () => {
  test('has reservation keys of his own: they pay for nothing of the application, and for no event', async () => {
    await plan({ message_limit: 3, token_limit: 100 });
    await asUser(db, at.manager, async (client) => {
      expect(await consume(0, 'import-1', 'messages', client)).toBe(true);
      expect(await consume(0, 'llm:run:1:1', 'tokens', client)).toBe(true);
      expect(await consume(2, 'mine', 'messages', client)).toBe(true);
      // his own is paid once
      expect(await consume(2, 'mine', 'messages', client)).toBe(true);
    });
    expect([await consume(2, 'import-1'), await consume(1, 'import-1')]).toEqual([false, true]);
    await expect(consume(1, 'member:mine')).rejects.toMatchObject({ code: '22023' });
    await record('tokens', 5_000, 'llm:run:1:1');
    await record('tokens', 1, 'member:llm:run:1:1');
    await pass();
    expect([await used(), await used('tokens')]).toEqual([3, 5_001]);
  });

  test('who inserts messages or conversations under an id that he has deleted has them counted each time', async () => {
    const conversation = randomUUID();
    const open = (runner: Runner, table: string, id: string) =>
      runner.query(
        table === 'conversations'
          ? 'insert into public.conversations (id, workspace_id, agent_id, user_id) values ($1, $2, $3, $4)'
          : 'insert into public.chat_sessions (id, workspace_id, agent_id, internal_notes) values ($1, $2, $3, $4)',
        [id, at.workspace, at.agent, at.manager],
      );
    const message = randomUUID();
    for (let round = 0; round < 3; round++)
      await asUser(db, at.manager, async (client) => {
        await open(client, 'conversations', conversation);
        await client.query(
          `insert into public.agent_messages (id, workspace_id, conversation_id, agent_id, role, content) values ($1, $2, $3, $4, 'user', 'Hello')`,
          [message, at.workspace, conversation, at.agent],
        );
        await client.query('delete from public.agent_messages where id = $1', [message]);
        await client.query('delete from public.conversations where id = $1', [conversation]);
      });
    await pass();
    expect([await used('conversations'), await used('messages')]).toEqual([3, 3]);
    // a session and a conversation of one id are one, for him too
    const both = randomUUID();
    await asUser(db, at.manager, async (client) => {
      await open(client, 'conversations', both);
      await open(client, 'chat_sessions', both);
    });
    await pass();
    expect(await used('conversations')).toBe(4);
  });

  test('has no more days of grace in another time zone', async () => {
    await setDatabaseClock(db, new Date('2026-11-22T00:00:00Z'));
    const [paid] = [await plan({ message_limit: 10, is_default: false, grace_days: 7 })];
    await insert(db, 'public.workspace_subscriptions', {
      workspace_id: at.workspace,
      plan_id: paid,
      status: 'past_due',
      past_due_since: '2026-11-13T00:00:00Z',
    });
    await asUser(db, at.manager, async (client) => {
      for (const zone of ['UTC', 'A-160B160,J325/16,J365/0', 'Asia/Kolkata']) {
        await client.query(`select set_config('timezone', $1, true)`, [zone]);
        expect(await consume(1, null, 'messages', client)).toBe(false);
      }
    });
  });
});

describe('what is on its way into a counter', () => {
  const pending = (metric: string, quantity: number) =>
    db.query(
      `insert into agentd.usage_deltas (workspace_id, at, metric, in_counter, events, quantity, cost_micros) values ($1, agentd.now(), $2, false, 1, $3, 0)`,
      [at.workspace, metric, quantity],
    );

  test('is used: a grant and a look at the limit count it', async () => {
    await plan({ message_limit: 10, conversation_limit: 5 });
    await consume(1);
    await pending('message', 6);
    await pending('conversation', 5);
    expect([await consume(4), await consume(3)]).toEqual([false, true]);
    expect(await consume(1, null, 'conversations')).toBe(false);
    const look = (runner: Runner) => value(runner, 'select public.check_usage_limit($1)', [at.workspace]);
    expect(await look(db.pool)).toBe(false);
    expect(await asUser(db, at.viewer, look)).toBe(false);
    await pass();
    expect([await used(), await used('conversations')]).toEqual([10, 5]);
  });

  test.runIf(onServer)(
    'server-only: and is refused to nobody twice while the roll-up brings it over',
    async () => {
      await plan({ message_limit: 600 });
      for (let n = 0; n < 100; n++) await record('message', 1);
      let rolling = true;
      const roller = (async () => {
        while (rolling) await pass();
      })();
      let granted = 0;
      const clients = Array.from({ length: 4 }, async () => {
        for (let n = 0; n < 100; n++) {
          if (n % 4 === 0) await record('message', 1);
          if (await consume(1)) granted++;
        }
      });
      await Promise.all(clients);
      rolling = false;
      await roller;
      await pass();
      expect([granted, await used(), await consume(1)]).toEqual([400, 600, false]);
    },
  );
});

describe.runIf(onServer)('server-only: rows that somebody holds', () => {
  test('keep back the warnings of their own workspace alone', async () => {
    await plan({ message_limit: 10 });
    const client = await db.pool.connect();
    const others: Company[] = [];
    try {
      await record('message', 10);
      for (let n = 0; n < 3; n++) {
        others.push(await company(db.pool));
        await record('message', 10, randomUUID(), others[n]?.workspace);
      }
      await pass();
      const first = [at, ...others].map((one) => one.workspace).sort()[0];
      await client.query('begin');
      await client.query('select 1 from public.workspace_usage_counters where workspace_id = $1 for update', [
        first,
      ]);
      const warn = () => value<number>(db.pool, 'select agentd.warn_of_usage(1)');
      // 80 and 100 of each
      expect([await warn(), await warn(), await warn(), await warn()]).toEqual([2, 2, 2, 0]);
      await client.query('commit');
      expect(await warn()).toBe(2);
    } finally {
      client.release();
    }
  });
});

test('after a restore, what was used while nothing was summed up counts against the limits, and what was seen before does not again', async () => {
  await setDatabaseClock(db, new Date(Date.now() - 600_000));
  await plan({ message_limit: 10_000 });
  const other = await company(db.pool);
  await consume(7);
  await consume(20, 'grant');
  await record('message', 400);
  await pass();
  await record('message', 3);
  await gatherUsage(db, null);
  expect(await used()).toBe(427);
  // as a dump that was restored elsewhere: its transactions are far ahead, and what had been gathered is on its way
  await db.query(
    `update agentd.usage_rollup_state set server_id = 1, snapshot = '900000000:900000000:' where name = 'usage'`,
  );
  await db.query(`update public.usage_events set xid = '899999999'`);
  await setDatabaseClock(db, null);
  await record('message', 5_000);
  await record('message', 30, 'grant');
  await record('message', 60, randomUUID(), other.workspace);
  await consume(1);
  await db.query('select public.increment_conversation_count($1)', [at.workspace]);
  expect(await adoptRestoredUsage(db)).toBe(true);
  expect(await adoptRestoredUsage(db)).toBe(false);
  for (const id of [at.workspace, other.workspace]) await rebuildUsage(db, id);
  await pass();
  expect([await used(), await used('conversations')]).toEqual([7 + 20 + 400 + 3 + 5_000 + 1, 1]);
  expect(await usageDrift(db, null)).toEqual([]);
  at = other;
  expect(await used()).toBe(60);
  await record('message', 1);
  await pass();
  expect(await used()).toBe(61);
});
