/** Networks that swallow bytes without a word, and a database that is away for longer than a lease. */
import { describe, expect, test } from 'vitest';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { type TestDaemonOptions, testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { networkTo } from '../support/network.ts';
import { insert, makePlatform, makeTask, type Platform, startRun, startTask } from '../support/platform.ts';
import { findRun, modelCalls, openRows, toolCalls, until, waitForRun } from '../support/runs.ts';
import { countBy, startShop } from '../support/shop.ts';

const LEASE_MS = 3_000;
/** Answers that do not come are given up sooner than in production, so that a test sees it. */
const SHORT: TestDaemonOptions = { databaseLimits: { answerMs: 4_000, statementMs: 3_000 } };

type World = { readonly db: TestDatabase; readonly model: ModelServer; readonly platform: Platform };

/** A database, a model server and a tenant of a test's own: the tests of this file wait most of the time, so all do it at once. */
async function world(): Promise<World & AsyncDisposable> {
  const db = await testDatabase();
  const model = await startModelServer();
  const platform = await makePlatform(db);
  return {
    db,
    model,
    platform,
    async [Symbol.asyncDispose]() {
      await model.close();
      await db.dispose();
      expect(model.rejected).toEqual([]);
    },
  };
}

describe.skipIf(!onServer)(
  'server-only: a network between a worker and its database',
  { concurrent: true },
  () => {
    test.each(['both', 'to server', 'to client'] as const)(
      'that falls silent (%s): its calls are broken off, another takes its run over, and it works again afterwards',
      async (direction) => {
        await using own = await world();
        const { db, model, platform } = own;
        await using network = await networkTo(db.url);
        model.respond((_, index) => (index === 0 ? { hang: true } : { content: `answer ${index}` }));
        await using cutOff = await testDaemon({ url: network.through(db.url) }, model, SHORT);
        const id = await startTask(db, platform, 'x');
        const first = await model.waitForRequest();
        const other = await testDaemon(db, model);
        const silentAt = performance.now();
        network.silence(direction);
        expect(await first.finished).toBe(true);
        // No lease is left by then, and money would be spent for nothing.
        expect(performance.now() - silentAt).toBeLessThan(LEASE_MS + 5_000);
        expect(await waitForRun(db, id)).toMatchObject({
          status: 'completed',
          lease_epoch: 2,
          worker_id: other.workerId,
          output: { text: 'answer 1' },
        });
        await other.stop();

        // The connections that were there are dead for good: only new ones work.
        network.forget();
        network.heal();
        const again = await waitForRun(db, await startTask(db, platform, 'after'));
        expect(again).toMatchObject({ status: 'completed', worker_id: cutOff.workerId, lease_epoch: 1 });
        expect((await findRun(db, id))?.output?.text).toBe('answer 1');
        expect(model.requests).toHaveLength(3);
      },
    );

    test('that delivers late what it held back changes nothing of a run that somebody else has ended', async () => {
      await using own = await world();
      const { db, model, platform } = own;
      await using network = await networkTo(db.url);
      const { promise: answered, resolve: answer } = Promise.withResolvers<void>();
      model.respond((_, index) =>
        index === 0 ? { content: 'late', delay: answered } : { content: 'in time' },
      );
      const channel = await insert(db, 'public.chat_channels', {
        workspace_id: platform.workspaceId,
        name: 'results',
      });
      await using _cutOff = await testDaemon({ url: network.through(db.url) }, model, {
        databaseLimits: { answerMs: 60_000 },
      });
      const id = await startTask(db, platform, 'x', { target_channel_id: channel });
      await model.waitForRequest();
      network.silence('to server');
      // The answer comes while the worker still believes in its lease: its checkpoint is on the way when it loses it.
      answer();
      await using _other = await testDaemon(db, model);
      expect(await waitForRun(db, id)).toMatchObject({ output: { text: 'in time' }, lease_epoch: 2 });
      const before = await everything(db, id);
      network.heal();
      await waitForRun(db, await startTask(db, platform, 'after'));
      expect(await everything(db, id)).toEqual(before);
      const messages = await db.query('select content from public.chat_messages');
      expect(messages).toEqual([{ content: 'in time' }]);
    });

    async function everything(db: TestDatabase, id: string): Promise<unknown> {
      return {
        run: await findRun(db, id),
        model: await modelCalls(db, id),
        usage: await db.query('select * from public.usage_events where run_id = $1 order by id', [id]),
      };
    }
  },
);

describe('a network between a worker and its model', { concurrent: true }, () => {
  test.each(['to server', 'to client'] as const)(
    'that falls silent (%s): the run ends at its time limit, and the next one is not held up',
    async (direction) => {
      await using own = await world();
      const { db, model, platform } = own;
      await using network = await networkTo(model.url);
      await using _daemon = await testDaemon(db, model, {
        env: { OPENAI_BASE_URL: network.through(model.url) },
      });
      await waitForRun(db, await startTask(db, platform, 'before'));
      network.silence(direction);
      const before = performance.now();
      const id = await startTask(db, platform, 'silent', { timeout_seconds: 2 });
      expect(await waitForRun(db, id)).toMatchObject({ status: 'failed', reason_code: 'timeout' });
      expect(performance.now() - before).toBeLessThan(10_000);
      expect(await openRows(db, id)).toEqual([]);
      network.forget();
      network.heal();
      const next = await waitForRun(db, await startTask(db, platform, 'next', { timeout_seconds: 10 }));
      expect(next).toMatchObject({ status: 'completed' });
    },
  );
});

describe.skipIf(!onServer)(
  'server-only: a database that is away for one and a half leases',
  { concurrent: true },
  () => {
    test('no write is made twice, every run completes, and what is asked again is counted', async () => {
      await using own = await world();
      const { db, model, platform } = own;
      await using network = await networkTo(db.url);
      const { promise: later, resolve: goOn } = Promise.withResolvers<void>();
      const { promise: soon, resolve: early } = Promise.withResolvers<void>();
      // Four runs are in a tool call that writes, four wait for a model's answer that comes while the database is
      // away, and four for one that comes after it.
      const shop = startShop('write', () => later);
      model.respond(({ body, userText }) => {
        if (body.messages.at(-1)?.role === 'tool') return { content: 'done' };
        if (userText.includes('tool')) return { toolCalls: [{ name: 'order', arguments: {} }] };
        return { content: 'done', delay: userText.includes('early') ? soon : later };
      });
      const channel = await insert(db, 'public.chat_channels', {
        workspace_id: platform.workspaceId,
        name: 'results',
      });
      const urls = [network.through(db.url), network.through(db.url)];
      const daemons = await Promise.all(
        urls.map((url) =>
          testDaemon({ url }, model, { toolSources: [shop.source], env: { AGENTD_QUEUES: 'task-run=6' } }),
        ),
      );
      try {
        const ids: string[] = [];
        for (const marker of ['tool', 'early', 'late']) {
          const taskId = await makeTask(db, platform, { instructions: marker, target_channel_id: channel });
          for (let i = 0; i < 4; i++) ids.push(await startRun(db, taskId));
        }
        await model.waitForRequest(() => true, 12);
        await until('four tools are called', () => shop.calls.length === 4);
        const cutAt = performance.now();
        network.cut();
        early();
        await until('one and a half leases have passed', () => performance.now() - cutAt > 1.5 * LEASE_MS);
        network.heal();
        goOn();
        for (const id of ids) {
          expect((await waitForRun(db, id)).status).toBe('completed');
          expect(await openRows(db, id)).toEqual([]);
        }
        const writtenTwice = [...shop.effects().values()].filter((times) => times > 1).length;
        const asked = countBy(model.requests.map((request) => request.idempotencyKey));
        const repeated = [...asked.values()].filter((times) => times > 1).length;
        const keys = await db.query('select 1 from public.llm_calls');
        const unknown = (await Promise.all(ids.map((id) => toolCalls(db, id)))).flat();
        const epochs = (await Promise.all(ids.map((id) => findRun(db, id)))).map((run) => run?.lease_epoch);
        console.log(
          `database away ${1.5 * LEASE_MS} ms, lease ${LEASE_MS} ms: of ${keys.length} model calls ${repeated} were made again; ` +
            `of ${shop.effects().size} writes ${writtenTwice} were made again, ${unknown.filter((call) => call.status === 'unknown').length} have an unknown outcome; ` +
            `claims of the runs: ${epochs.join(' ')}`,
        );
        expect(writtenTwice).toBe(0);
        expect(shop.calls).toHaveLength(4);
        // An answer that had come is not asked for again: its checkpoint waited for the database.
        const askedEarly = model.requests.filter((request) => request.userText.includes('early'));
        expect(askedEarly).toHaveLength(4);
        expect(repeated).toBeLessThanOrEqual(4);
        expect(await db.query('select 1 from public.chat_messages')).toHaveLength(12);
        const [usage] = await db.query<{ calls: number }>(
          `select count(*)::integer as calls from public.usage_events where metric = 'tokens'`,
        );
        expect(usage?.calls).toBe(keys.length);
      } finally {
        await Promise.all(daemons.map((daemon) => daemon.stop()));
      }
    });
  },
);
