import type { AddressInfo } from 'node:net';
import { createServer, type Server, type Socket } from 'node:net';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { newestMigration } from '../../src/db/migrate.ts';
import { watchDatabase } from '../../src/telemetry/database-watch.ts';
import { silentLogger } from '../../src/telemetry/logger.ts';
import { createMetrics } from '../../src/telemetry/metrics.ts';
import { type Probes, ProbesError, startProbes } from '../../src/telemetry/probes.ts';
import { emptyDatabase, type TestDatabase, testDatabase } from '../support/database.ts';

let db: TestDatabase;
const open: Probes[] = [];

beforeAll(async () => {
  db = await testDatabase();
});
afterEach(async () => {
  await Promise.all(open.splice(0).map((probes) => probes.close()));
});
afterAll(() => db.dispose());

/** The database may take its time, unless a test is about that. */
async function start(database: { url: string; embedded: boolean } = db, deadlineMs = 20_000) {
  const state = { draining: false, version: '1.2.3', requiredMigration: newestMigration };
  const probes = await startProbes({
    host: '127.0.0.1',
    port: 0,
    metrics: createMetrics(),
    state,
    db: database,
    logger: silentLogger(),
    deadlineMs,
  });
  open.push(probes);
  const get = async (path: string, method = 'GET') => {
    const response = await fetch(probes.url + path, { method });
    return { status: response.status, text: await response.text() };
  };
  return { probes, state, get };
}

test('a worker with its database is alive and ready, and exports the depths of its queues', async () => {
  const { get } = await start();
  expect((await get('/livez')).status).toBe(200);
  expect(JSON.parse((await get('/readyz')).text)).toEqual({ status: 'ready', reasons: [] });
  const { status, text } = await get('/metrics');
  expect(status).toBe(200);
  expect(text).toContain('agentd_database_up 1');
  expect(text).toContain('agentd_queue_jobs{queue="task-run",state="ready"} 0');
  expect(text).toContain('agentd_schedule_overdue_seconds 0');
  expect(text).toMatch(/agentd_event_loop_delay_seconds\{stat="p99"\} \d/);
  expect(text).toContain('agentd_build_info{version="1.2.3"');
});

test('a worker that drains is alive and not ready', async () => {
  const { get, state } = await start();
  state.draining = true;
  expect((await get('/livez')).status).toBe(200);
  const { status, text } = await get('/readyz');
  expect(status).toBe(503);
  expect(JSON.parse(text)).toMatchObject({ reasons: ['The worker is stopping.'] });
});

test('an unmigrated database makes it not ready, with what to run; the metrics still say that it is up', async () => {
  const empty = await emptyDatabase();
  try {
    const { get } = await start(empty);
    const { status, text } = await get('/readyz');
    expect(status).toBe(503);
    expect(text).toContain('agentd migrate up');
    expect((await get('/metrics')).text).toContain('agentd_database_up 1');
  } finally {
    await Promise.all(open.splice(0).map((probes) => probes.close()));
    await empty.dispose();
  }
});

test('a database that refuses connections: alive, not ready, and /metrics answers 200 with agentd_database_up 0', async () => {
  const { get } = await start({ url: 'postgres://u:p@127.0.0.1:1/x', embedded: false });
  expect((await get('/livez')).status).toBe(200);
  expect((await get('/readyz')).status).toBe(503);
  const { status, text } = await get('/metrics');
  expect(status).toBe(200);
  expect(text).toContain('agentd_database_up 0');
  expect(text).not.toContain('agentd_queue_jobs{');
  expect(text).not.toMatch(/^agentd_schedule_overdue_seconds/m);
  expect(text).toContain('agentd_database_errors_total{where="probes"} 1');
});

test('a database that accepts connections and says nothing does not make the probes hang', async () => {
  const sockets: Socket[] = [];
  const mute: Server = createServer((socket) => void sockets.push(socket.on('error', () => {})));
  await new Promise<void>((resolve) => mute.listen(0, '127.0.0.1', resolve));
  try {
    const { port } = mute.address() as AddressInfo;
    const { get } = await start({ url: `postgres://u:p@127.0.0.1:${port}/x`, embedded: false }, 150);
    const [ready, metrics] = await Promise.all([get('/readyz'), get('/metrics')]);
    expect(ready.status).toBe(503);
    expect(metrics.status).toBe(200);
    expect(metrics.text).toContain('agentd_database_up 0');
    await Promise.all(open.splice(0).map((probes) => probes.close()));
  } finally {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => mute.close(resolve));
  }
});

test('many askers at once are one question to the database, and its answer holds for a moment', async () => {
  const watch = watchDatabase(db, { deadlineMs: 20_000, onError: () => {} });
  let asked = 0;
  const question = watch.question(60_000, async (tx) => {
    asked += 1;
    return tx.query<{ one: number }>('select 1 as one');
  });
  try {
    const answers = await Promise.all(Array.from({ length: 20 }, () => question()));
    expect(answers.every((answer) => answer.ok)).toBe(true);
    await question();
    expect(asked).toBe(1);
  } finally {
    await watch.close();
  }
});

test('a port in use is an error that says which and what to set', async () => {
  const { probes } = await start();
  const port = Number(new URL(probes.url).port);
  const second = startProbes({
    host: '127.0.0.1',
    port,
    metrics: createMetrics(),
    state: { draining: false, version: '1', requiredMigration: newestMigration },
    db,
    logger: silentLogger(),
  });
  await expect(second).rejects.toThrow(ProbesError);
  await expect(second).rejects.toMatchObject({
    message: expect.stringContaining(`127.0.0.1:${port}`),
    reasonCode: 'port_in_use',
    nextStep: expect.stringContaining('AGENTD_HTTP_PORT'),
  });
});

test('other paths and methods are refused', async () => {
  const { get } = await start();
  expect((await get('/')).status).toBe(404);
  expect((await get('/metrics', 'POST')).status).toBe(405);
});
