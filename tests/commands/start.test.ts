import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { emptyDatabase, type TestDatabase, testDatabase } from '../support/database.ts';
import { agentd } from './support.ts';

const cli = fileURLToPath(new URL('../../src/cli.ts', import.meta.url));
let db: TestDatabase;
const children: ChildProcess[] = [];

beforeAll(async () => {
  db = await testDatabase();
});
afterAll(async () => {
  for (const child of children) if (child.exitCode === null) child.kill('SIGKILL');
  await db.dispose();
});

/** Resolves when the worker has said that it runs. */
async function start(): Promise<{ child: ChildProcess; probes: string }> {
  const child = spawn(process.execPath, [cli, 'start', '--json'], {
    env: {
      PATH: process.env.PATH ?? '',
      DATABASE_URL: db.url,
      AGENTD_HTTP_PORT: '0',
      AGENTD_LOG_LEVEL: 'error',
    },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  children.push(child);
  for await (const line of createInterface({ input: child.stdout as NodeJS.ReadableStream })) {
    const said = JSON.parse(line) as { started?: boolean; probes_url?: string };
    if (said.started) return { child, probes: said.probes_url ?? '' };
  }
  throw new Error(`The worker ended before it ran, with ${child.exitCode}.`);
}

test('a started worker is ready, and SIGTERM ends it with 0 after it has said that it is gone', async () => {
  const { child, probes } = await start();
  expect((await fetch(`${probes}/readyz`)).status).toBe(200);
  const text = await (await fetch(`${probes}/metrics`)).text();
  expect(text).toContain('agentd_queue_workers{queue="task-run"} 1');
  child.kill('SIGTERM');
  const [code, signal] = await once(child, 'exit');
  expect([code, signal]).toEqual([0, null]);
  const workers = await db.query<{ state: string }>('select state from agentd.workers where pid = $1', [
    child.pid,
  ]);
  expect(workers).toEqual([{ state: 'stopped' }]);
});

test('a worker does not start on a database that is not migrated, and says what to run', async () => {
  const empty = await emptyDatabase();
  try {
    const { code, stderr } = await agentd(['start'], { DATABASE_URL: empty.url, AGENTD_HTTP_PORT: '0' });
    expect(code).toBe(1);
    expect(stderr).toContain('agentd migrate up');
  } finally {
    await empty.dispose();
  }
});

test('a port in use ends the start with 1 and names the variable to set', async () => {
  const { child, probes } = await start();
  const { code, stderr } = await agentd(['start'], {
    DATABASE_URL: db.url,
    AGENTD_HTTP_PORT: new URL(probes).port,
  });
  expect(code).toBe(1);
  expect(stderr).toContain('AGENTD_HTTP_PORT');
  child.kill('SIGTERM');
  await once(child, 'exit');
});
