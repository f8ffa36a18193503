/** What may stand between a worker and its server, and what the worker says of it. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { DatabaseStateError } from '../../src/db/migrate.ts';
import { detectPooling } from '../../src/db/pooler.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform, startTask } from '../support/platform.ts';
import { startPooler } from '../support/pooler.ts';
import { waitForRun } from '../support/runs.ts';

let db: TestDatabase;
let model: ModelServer;

beforeEach(async () => {
  db = await testDatabase();
  model = await startModelServer();
});

afterEach(async () => {
  expect(model.rejected).toEqual([]);
  await model.close();
  await db.dispose();
});

describe.skipIf(!onServer)('server-only: what stands between is found out', () => {
  test('nothing', async () => {
    expect(await detectPooling(db.url)).toBe('direct');
  });

  test.each([
    ['sessions', { mode: 'sessions' }],
    ['transactions', { mode: 'transactions', prepared: true }],
    ['transactions without prepared statements', { mode: 'transactions' }],
  ] as const)('a pooler: %s', async (found, options) => {
    await using pooler = await startPooler(db.url, options);
    expect(await detectPooling(pooler.url)).toBe(found);
    // also when it has many backends to choose from
    expect(await detectPooling(pooler.url)).toBe(found);
  });
});

describe.skipIf(!onServer)('server-only: a worker behind a pooler', () => {
  test('in session mode works and says nothing', async () => {
    await using pooler = await startPooler(db.url, { mode: 'sessions' });
    await using daemon = await testDaemon(pooler, model);
    const id = await startTask(db, await makePlatform(db), 'x');
    expect((await waitForRun(db, id)).status).toBe('completed');
    expect(daemon.log.filter((line) => line.includes('pooler'))).toEqual([]);
  });

  test('in transaction mode with prepared statements warns, and finds its work by polling', async () => {
    await using pooler = await startPooler(db.url, { mode: 'transactions', prepared: true });
    await using daemon = await testDaemon(pooler, model);
    expect(daemon.log.filter((line) => line.includes('pooler_in_transaction_mode'))).toHaveLength(1);
    const platform = await makePlatform(db);
    for (const marker of ['one', 'two', 'three']) {
      expect((await waitForRun(db, await startTask(db, platform, marker))).status).toBe('completed');
    }
  });

  test('in transaction mode without them does not begin, and says what to do', async () => {
    await using pooler = await startPooler(db.url, { mode: 'transactions' });
    const start = testDaemon(pooler, model);
    await expect(start).rejects.toBeInstanceOf(DatabaseStateError);
    await expect(start).rejects.toThrow(/transaction mode.*session mode.*max_prepared_statements/s);
  });
});
