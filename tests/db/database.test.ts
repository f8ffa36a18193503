import pg from 'pg';
import { PgBoss } from 'pg-boss';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { bossOptions } from '../../src/db/boss.ts';
import { openDatabase } from '../../src/db/database.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase({ max: 8 });
});
afterAll(() => db?.dispose());

test('a script of several statements gives the rows of all of them', async () => {
  expect(await db.query('select 1 as n; select 2 as n')).toEqual([{ n: 1 }, { n: 2 }]);
});

test('pg-boss supervises its queues on our connections without an error', async () => {
  const errors: Error[] = [];
  const boss = new PgBoss({ ...bossOptions(db), supervise: false });
  boss.on('error', (error) => errors.push(error));
  await boss.start();
  await boss.supervise();
  await boss.supervise('task-run');
  expect(errors).toEqual([]);
  await boss.stop({ graceful: false });
});

test('statements of many connections at once get their own answers', async () => {
  const other = openDatabase({ url: db.url, embedded: db.embedded, max: 5 });
  const answers = await Promise.all(
    Array.from({ length: 200 }, async (_, i) => {
      const on = i % 3;
      const values = [i];
      if (on === 0) return (await db.query<{ n: number }>('select $1::int as n', values))[0]?.n;
      if (on === 1) return (await other.query<{ n: number }>('select $1::int as n', values))[0]?.n;
      return (await db.pool.query('select $1::int as n', values)).rows[0].n as number;
    }),
  );
  expect(answers).toEqual(Array.from({ length: 200 }, (_, i) => i));
  await other.close();
});

test('a transaction that throws leaves nothing behind, and its connection is usable', async () => {
  await expect(
    db.transaction(async (tx) => {
      await tx.query(`insert into agentd.sleepers (queue, worker_id) values ('t', 't')`);
      throw new Error('no');
    }),
  ).rejects.toThrow('no');
  expect(await db.query(`select 1 from agentd.sleepers where queue = 't'`)).toEqual([]);
});

test('the settings that another client leaves in the embedded session are not the worker’s', async () => {
  if (!db.embedded) return;
  await db.pool.query(`set role authenticated; set search_path = agentd; set app.current_user_id = 'x'`);
  const [row] = await db.query(
    `select current_user::text as role, current_setting('search_path') as path, current_setting('app.current_user_id') as id`,
  );
  expect(row).toEqual({ role: 'postgres', path: '"$user", public', id: '' });
  // and the other client finds its own again
  expect((await db.pool.query('select current_user::text as role')).rows).toEqual([
    { role: 'authenticated' },
  ]);
  await db.pool.query('reset role; reset all');
});

test('the isolation level asked for is in force', async () => {
  const level = await db.transaction(
    async (tx) =>
      (await tx.query<{ level: string }>(`select current_setting('transaction_isolation') as level`))[0]
        ?.level,
    'repeatable read',
  );
  expect(level).toBe('repeatable read');
});

test('what a connection of the embedded database set is over when it ends', async () => {
  if (!db.embedded) return;
  const one = new pg.Client({ connectionString: db.url });
  await one.connect();
  await one.query('set role authenticated');
  await one.query('set default_transaction_read_only = on');
  await one.end();
  const other = new pg.Client({ connectionString: db.url });
  await other.connect();
  await expect
    .poll(
      async () =>
        (
          await other.query(
            `select current_user::text as role, current_setting('default_transaction_read_only') as ro`,
          )
        ).rows,
      { timeout: 15_000 },
    )
    .toEqual([{ role: 'postgres', ro: 'off' }]);
  await other.end();
});

test('an embedded transaction that is left open gives way after a while, and its connection ends', async () => {
  if (!db.embedded) return;
  const other = await db.pool.connect();
  const ended = new Promise((resolve) => other.once('error', resolve));
  await other.query(`begin; insert into agentd.sleepers (queue, worker_id) values ('forgotten', 'x')`);
  expect(await db.query(`select 1 from agentd.sleepers where queue = 'forgotten'`)).toEqual([]);
  await ended;
  other.release(true);
});
