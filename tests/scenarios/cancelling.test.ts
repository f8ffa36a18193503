/** However a run is ended from outside, what its worker has under way is broken off within a second. */
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { ToolSource } from '../../src/pipelines/agent/tools.ts';
import { agentd } from '../commands/support.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { type TestDaemon, testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform, makeTask, type Platform, startRun } from '../support/platform.ts';
import { findRun, openRows, until } from '../support/runs.ts';

/** What is promised, and what a busy machine may make of it: the renewals of the leases come every twenty seconds. */
const PROMISED_MS = 1_000;
const LIMIT_MS = 8_000;

let db: TestDatabase;
let model: ModelServer;
let shop: Awaited<ReturnType<typeof startShop>>;
const daemons: TestDaemon[] = [];
const measured: string[] = [];
const times: number[] = [];

// Two nodes with a slot each, so that two runs are on different ones. Their leases are renewed every twenty seconds:
// that is not what finds a cancelled run.
beforeAll(async () => {
  db = await testDatabase();
  model = await startModelServer();
  shop = await startShop();
  for (let i = 0; i < 2; i++) {
    daemons.push(
      await testDaemon(db, model, {
        env: { AGENTD_QUEUES: 'task-run=1' },
        leaseSeconds: 60,
        toolSources: [shop.source],
      }),
    );
  }
});

afterAll(async () => {
  await Promise.all(daemons.map((daemon) => daemon.stop()));
  await shop?.close();
  await model?.close();
  await db?.dispose();
  if (measured.length > 0) console.log(`milliseconds until the peer saw the end:\n${measured.join('\n')}`);
});

afterEach(() => {
  expect(model.rejected).toEqual([]);
});

/** A tool whose server never answers; each call resolves with when its connection was closed. */
async function startShop() {
  const calls: Promise<number>[] = [];
  const server = createServer((_request, response) => {
    calls.push(once(response, 'close').then(() => performance.now()));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/order`;
  const source: ToolSource = {
    name: 'shop',
    list: async () => [
      {
        source: 'shop',
        effect: 'write',
        definition: {
          type: 'function',
          function: { name: 'order', parameters: { type: 'object', properties: {} } },
        },
        async call(_args, { signal }) {
          return { content: await (await fetch(url, { method: 'POST', signal })).text() };
        },
      },
    ],
  };
  return {
    source,
    calls,
    async close() {
      const closed = once(server, 'close');
      server.close();
      server.closeAllConnections();
      await closed;
    },
  };
}

type Scene = { readonly owner: Platform; readonly taskId: string; readonly ids: readonly string[] };

/** Two runs, one on each node, with a call under way that nobody will answer. Gives the ends of both calls. */
async function underWay(what: 'model' | 'tool'): Promise<Scene & { ends: Promise<number>[] }> {
  await until('the nodes are free', async () => {
    const active = await db.query(`select 1 from pgboss.job where name = 'task-run' and state = 'active'`);
    return active.length === 0;
  });
  model.requests.length = 0;
  shop.calls.length = 0;
  model.respond(() =>
    what === 'model' ? { hang: true } : { toolCalls: [{ name: 'order', arguments: {} }] },
  );
  const owner = await makePlatform(db, { shared: true });
  const taskId = await makeTask(db, owner);
  const ids = [await startRun(db, taskId), await startRun(db, taskId)];
  await model.waitForRequest(() => true, 2);
  if (what === 'tool') await until('both tools are called', () => shop.calls.length === 2);
  const workers = await Promise.all(ids.map(async (id) => (await findRun(db, id))?.worker_id));
  expect(new Set(workers).size).toBe(2);
  const ends =
    what === 'tool'
      ? shop.calls
      : model.requests.map((request) =>
          request.finished.then((aborted) => {
            expect(aborted).toBe(true);
            return performance.now();
          }),
        );
  return { owner, taskId, ids, ends };
}

type Way = readonly [name: string, end: (scene: Scene) => Promise<unknown>, leftover: string | null];

const WAYS: readonly Way[] = [
  [
    'cancel_run()',
    ({ ids }) => db.query('select public.cancel_run(id) from unnest($1::uuid[]) as id', [ids]),
    'cancelled',
  ],
  [
    'a plain UPDATE',
    ({ ids }) => db.query(`update public.task_runs set status = 'cancelled' where id = any ($1)`, [ids]),
    'cancelled',
  ],
  [
    'deleting the runs',
    ({ ids }) => db.query('delete from public.task_runs where id = any ($1)', [ids]),
    null,
  ],
  [
    'deleting the task',
    ({ taskId }) => db.query('delete from public.agent_tasks where id = $1', [taskId]),
    'task_deleted',
  ],
  [
    'deleting the agent',
    ({ owner }) => db.query('delete from public.agents where id = $1', [owner.agentId]),
    'agent_deleted',
  ],
  [
    'deleting the workspace',
    ({ owner }) => db.query('delete from public.workspaces where id = $1', [owner.workspaceId]),
    null,
  ],
];

describe.each(['model', 'tool'] as const)('a %s call under way, on either node', (what) => {
  test.each(WAYS)('is broken off within a second by %s', async (name, end, leftover) => {
    const scene = await underWay(what);
    const before = performance.now();
    await end(scene);
    const took = (await Promise.all(scene.ends)).map((at) => Math.round(at - before));
    times.push(...took);
    measured.push(`  ${what} call, ${name}: ${took.join(', ')}`);
    expect(Math.max(...took)).toBeLessThan(LIMIT_MS);
    await expectOver(scene, leftover);
  });

  test('is broken off within a second of the end of agentd runs cancel', async () => {
    const scene = await underWay(what);
    const took: number[] = [];
    for (const [index, id] of scene.ids.entries()) {
      const outcome = await agentd(['runs', 'cancel', id], { DATABASE_URL: db.url });
      const after = performance.now();
      expect(outcome.code).toBe(0);
      // Which request is which run's is not known: so many have ended.
      const [first = 0, second = 0] = (
        await Promise.all(index === 0 ? [Promise.race(scene.ends)] : scene.ends)
      ).toSorted();
      took.push(Math.round(Math.max(first, second) - after));
    }
    times.push(...took);
    measured.push(`  ${what} call, agentd runs cancel, after the command: ${took.join(', ')}`);
    expect(Math.max(...took)).toBeLessThan(LIMIT_MS);
    await expectOver(scene, 'cancelled');
  });
});

/** The runs say why they ended, or are gone; nothing of them is open, and nothing more is asked for them. */
async function expectOver({ ids }: Scene, leftover: string | null): Promise<void> {
  const asked = model.requests.length;
  await until('both jobs are settled', async () => {
    const active = await db.query(`select 1 from pgboss.job where name = 'task-run' and state = 'active'`);
    return active.length === 0;
  });
  for (const id of ids) {
    const run = await findRun(db, id);
    if (leftover === null) expect(run).toBeNull();
    else expect(run).toMatchObject({ status: 'cancelled', reason_code: leftover, output: null });
    expect(await openRows(db, id)).toEqual([]);
  }
  expect(model.requests).toHaveLength(asked);
}

test('that is within a second as a rule', () => {
  expect(times.length).toBeGreaterThan(10);
  expect(times.toSorted((a, b) => a - b)[Math.floor(times.length / 2)]).toBeLessThan(PROMISED_MS);
});
