/** Runs under a model's rate limit, which all daemons share. */
import { createHash } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { reconcileLeases } from '../../src/services/reconciler.ts';
import { type ModelServer, type ModelServerOptions, startModelServer } from '../peers/model-server.ts';
import { testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { untilIdle } from '../support/one-daemon.ts';
import { MODEL, makeAgent, makePlatform, type Platform, startTask } from '../support/platform.ts';
import { modelCalls, openRows, until, waitForRun } from '../support/runs.ts';
import { parts } from '../support/schedule.ts';

let db: TestDatabase;
let model: ModelServer;
let platform: Platform;

type Call = { ticket_at: Date | null; ticket_kind: string | null; attempt: number; status: string };
const calls = (id: string) => modelCalls(db, id) as unknown as Promise<Call[]>;

beforeEach(async () => {
  db = await testDatabase();
  platform = await makePlatform(db);
});

afterEach(async () => {
  expect(model.rejected).toEqual([]);
  await model.close();
  await db.dispose();
});

async function serve(options: ModelServerOptions = {}): Promise<void> {
  model = await startModelServer(options);
}

/** What names the limit of the environment's key for a model. */
function limitKey(name = MODEL): string {
  return createHash('sha256')
    .update(JSON.stringify([model.url, model.apiKey, name]))
    .digest('hex');
}

/** Headers of an answer after which little is left. */
const scarce = {
  'x-ratelimit-limit-requests': '600',
  'x-ratelimit-remaining-requests': '100',
  'x-ratelimit-reset-requests': '50s',
};

/** One run, whose answer tells the daemon that little is left; resolves when that is written down. */
async function learnLimit(): Promise<void> {
  model.respond(() => ({ content: 'answer', headers: scarce }));
  await waitForRun(db, await startTask(db, platform, 'first'));
  await until('the limit is written down', async () => {
    const rows = await db.query('select 1 from agentd.rate_limits');
    return rows.length === 1;
  });
  model.requests.length = 0;
}

describe('a key of which plenty is left', () => {
  test('costs nothing: no row and no place', async () => {
    await serve({ limits: { requestsPerMinute: 600, tokensPerMinute: 1_000_000 } });
    await using _daemon = await testDaemon(db, model);
    for (let i = 0; i < 5; i++) await waitForRun(db, await startTask(db, platform, 'x'));
    expect(await db.query('select 1 from agentd.rate_limits')).toEqual([]);
  });
});

describe('a key of which little is left', () => {
  test('is written down with its limits, and neither key nor address in clear', async () => {
    await serve();
    await using _daemon = await testDaemon(db, model);
    await learnLimit();
    expect(await db.query('select * from agentd.rate_limits')).toMatchObject([
      {
        key: limitKey(),
        requests_limit: 600,
        requests_per_second: 10,
        tokens_limit: null,
        blocked_until: null,
      },
    ]);
  });

  test('is shared by all runs of all daemons: none fails, and few are refused', async () => {
    await serve({ limits: { requestsPerMinute: 600, filled: 0.05 } });
    const daemons = await Promise.all([testDaemon(db, model), testDaemon(db, model)]);
    try {
      const other = await makePlatform(db);
      const ids = await Promise.all(
        Array.from({ length: 60 }, (_, i) => startTask(db, i % 2 ? platform : other, `run ${i}`)),
      );
      for (const id of ids) expect((await waitForRun(db, id)).status).toBe('completed');
      expect(model.limits.admitted).toBe(60);
      // Before the daemons know: at most one for each slot of a workspace.
      expect(model.limits.refused).toBeLessThan(40);
      expect(
        await db.query(`select 1 from public.llm_calls where failures > 0 or ticket_at is not null`),
      ).toEqual([]);
    } finally {
      await Promise.all(daemons.map((daemon) => daemon.stop()));
    }
  });

  test('lets a run whose turn is far off wait without a slot, and the run keeps its turn when it wakes', async () => {
    await serve();
    await using _daemon = await testDaemon(db, model, { leaseSeconds: 30 });
    await learnLimit();
    await db.query(
      `update agentd.rate_limits set requests_per_second = 0.1, requests_at = agentd.now() + interval '500 milliseconds'`,
    );
    const id = await startTask(db, platform, 'second');
    const run = await waitForRun(db, id, ['waiting', 'completed']);
    expect(run).toMatchObject({ status: 'waiting', reason_code: 'rate_limit' });
    const [call] = await calls(id);
    expect(call).toMatchObject({ status: 'waiting', ticket_kind: 'place', attempt: 1 });
    // the places before and after it are ten seconds away
    expect(Math.abs((call?.ticket_at?.getTime() ?? 0) - (run.wake_at?.getTime() ?? 0))).toBeLessThan(5_000);
    const book = async () => (await db.query('select requests_at from agentd.rate_limits'))[0];
    const before = await book();
    await untilIdle(db);

    // Its time comes: it does not queue again, although the places of the next minutes are taken.
    await db.query(`update agentd.rate_limits set requests_at = agentd.now() + interval '5 minutes'`);
    const taken = await book();
    expect(taken).not.toEqual(before);
    await db.query('update public.llm_calls set ticket_at = agentd.now() where run_id = $1', [id]);
    await db.query(`update public.task_runs set wake_at = agentd.now() - interval '1 second' where id = $1`, [
      id,
    ]);
    await reconcileLeases({ db, ...parts });
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', lease_epoch: 2 });
    expect(await book()).toEqual(taken);
    expect(await calls(id)).toMatchObject([
      { status: 'completed', attempt: 1, ticket_at: null, ticket_kind: null },
    ]);
    expect(model.requests).toHaveLength(1);
  });

  test('fails no run, however short its time: waiting for others’ calls is not the run’s time', async () => {
    await serve();
    await using _daemon = await testDaemon(db, model);
    await learnLimit();
    await db.query(`update agentd.rate_limits set blocked_until = agentd.now() + interval '1 hour'`);
    const id = await startTask(db, platform, 'second', { timeout_seconds: 30 });
    expect(await waitForRun(db, id, ['waiting', 'failed'])).toMatchObject({
      status: 'waiting',
      reason_code: 'rate_limit',
    });
    expect(model.requests).toEqual([]);
    // half an hour later the limit is lifted
    await db.query('update agentd.rate_limits set blocked_until = null');
    await db.query(
      `update public.task_runs set wake_at = agentd.now(), started_at = started_at - interval '30 minutes',
              paused_at = paused_at - interval '30 minutes' where id = $1`,
      [id],
    );
    expect((await waitForRun(db, id)).status).toBe('completed');
    expect(await openRows(db, id)).toEqual([]);
  });
});

describe('a refusal of the provider', () => {
  test('is shared: no other run of the key asks before it may, those of another model do', async () => {
    await serve();
    await using _one = await testDaemon(db, model);
    await using _two = await testDaemon(db, model);
    model.respond((request) =>
      request.body.model === MODEL
        ? { status: 429, headers: { 'retry-after': '60', ...scarce } }
        : { content: 'free' },
    );
    const refused = await startTask(db, platform, 'refused');
    expect(await waitForRun(db, refused, ['waiting'])).toMatchObject({ reason_code: 'rate_limit' });
    expect(await calls(refused)).toMatchObject([{ status: 'waiting', ticket_kind: 'return', attempt: 2 }]);
    const before = model.requests.length;

    // The daemon that was told keeps the others back; the other one asks once, and knows then.
    const ids = [];
    for (let i = 0; i < 6; i++) ids.push(await startTask(db, platform, `later ${i}`));
    for (const id of ids) await waitForRun(db, id, ['waiting']);
    expect(model.requests.length - before).toBeLessThanOrEqual(6);
    const agentId = await makeAgent(db, platform, { model: 'gpt-4o' });
    const free = await startTask(db, { ...platform, agentId }, 'free');
    expect((await waitForRun(db, free)).output?.text).toBe('free');
  });
});

describe('limits that can’t be asked stop no run', () => {
  test('because their tables are broken; the log says so once', async () => {
    await serve();
    await using daemon = await testDaemon(db, model);
    await learnLimit();
    await db.query('drop function agentd.take_places(jsonb, double precision, double precision)');
    for (let i = 0; i < 3; i++) {
      expect((await waitForRun(db, await startTask(db, platform, `x ${i}`))).status).toBe('completed');
    }
    expect(daemon.log.filter((line) => line.includes('rate_limits_away'))).toHaveLength(1);
  });

  test('because their rows are gone: the key is written down again', async () => {
    await serve();
    await using _daemon = await testDaemon(db, model);
    await learnLimit();
    await db.query('delete from agentd.rate_limits');
    expect((await waitForRun(db, await startTask(db, platform, 'x'))).status).toBe('completed');
    await until('it is written down again', async () => {
      const rows = await db.query('select 1 from agentd.rate_limits');
      return rows.length === 1;
    });
  });

  test.runIf(onServer)('because somebody holds the row', async () => {
    await serve();
    await using _daemon = await testDaemon(db, model);
    await learnLimit();
    const client = await db.pool.connect();
    try {
      await client.query('begin');
      await client.query('select 1 from agentd.rate_limits for update');
      expect((await waitForRun(db, await startTask(db, platform, 'x'))).status).toBe('completed');
    } finally {
      await client.query('rollback');
      client.release();
    }
  });
});
