/** pg-boss's own maintenance on agentd's connections: expiry and deletion of jobs depend on it. */
import { PgBoss } from 'pg-boss';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { bossOptions } from '../../src/db/boss.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';

let db: TestDatabase;
let boss: PgBoss;
const errors: unknown[] = [];

beforeAll(async () => {
  db = await testDatabase();
  boss = new PgBoss({ ...bossOptions(db), supervise: false });
  boss.on('error', (error) => errors.push(error));
  await boss.start();
});
afterAll(async () => {
  await boss?.stop({ graceful: false });
  await db?.dispose();
});

test('a job whose worker is silent past its expiry is given out again', async () => {
  const id = await boss.send('task-run', { run: 'x' }, { retryLimit: 2 });
  expect(await boss.fetch('task-run')).toMatchObject([{ id }]);
  await db.query(
    `update pgboss.job set started_on = now() - interval '7 days', heartbeat_on = null where id = $1`,
    [id],
  );
  await boss.supervise();
  const [job] = await db.query<{ state: string }>('select state::text from pgboss.job where id = $1', [id]);
  expect(job?.state).toBe('retry');
  expect(errors).toEqual([]);
});
