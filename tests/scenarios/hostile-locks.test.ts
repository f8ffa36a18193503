/** Advisory locks are anybody's to take and to keep: agentd takes none, so that nobody stops others by holding one. */
import { PgBoss } from 'pg-boss';
import { describe, expect, test } from 'vitest';
import { bossDb } from '../../src/db/boss.ts';
import { migrateUp } from '../../src/db/migrate.ts';
import { emptyDatabase, onServer } from '../support/database.ts';
import { db, useDaemon } from '../support/one-daemon.ts';
import { makePlatform, startTask } from '../support/platform.ts';
import { waitForRun } from '../support/runs.ts';
import { asUser } from '../support/sessions.ts';

useDaemon();

test('no function of agentd takes an advisory lock', async () => {
  expect(
    await db.query(
      `select p.oid::regprocedure::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where n.nspname in ('agentd', 'public') and p.prosrc ~ 'pg_(try_)?advisory' and not exists (
          select 1 from pg_depend d where d.objid = p.oid and d.deptype = 'e')`,
    ),
  ).toEqual([]);
});

test('no statement of pg-boss does, from its installation to its maintenance', async () => {
  await using stack = new AsyncDisposableStack();
  const empty = await emptyDatabase();
  stack.defer(() => empty.dispose());
  await migrateUp(empty, {});
  await empty.query('drop schema pgboss cascade');
  const said: string[] = [];
  const options = {
    db: bossDb({
      query: async (statement, values) => {
        said.push(typeof statement === 'string' ? statement : statement.text);
        return empty.query(statement, values);
      },
    }),
    schema: 'pgboss',
    schedule: false,
    supervise: false,
    migrate: true,
    createSchema: true,
  };
  const boss = new PgBoss(options);
  const errors: unknown[] = [];
  boss.on('error', (error) => errors.push(error));
  await boss.start();
  stack.defer(() => boss.stop({ graceful: false }));
  await boss.createQueue('task-run');
  await boss.send('task-run', {});
  await boss.supervise();
  expect(errors).toEqual([]);
  expect(said.filter((text) => /pg_(try_)?advisory/.test(text))).toEqual([]);
  expect(said.filter((text) => text.includes(`agentd.hold_lock('pgboss')`)).length).toBeGreaterThan(2);
});

describe.skipIf(!onServer)('server-only: who holds every lock that could be named', () => {
  test('stops nobody’s runs, retries or names', async () => {
    const other = await makePlatform(db, { shared: true });
    const holder = await db.pool.connect();
    try {
      const [ended] = await db.query<{ id: string }>(`select id from public.task_runs where id = $1`, [
        await startTask(db, other, 'first'),
      ]);
      await waitForRun(db, ended?.id ?? '');
      await holder.query('begin; set local role authenticated');
      await holder.query(
        `select pg_advisory_xact_lock(uuid_hash_extended($1, n)) from unnest(array[7201, 7202]) n`,
        [other.workspaceId],
      );
      await holder.query(
        `select pg_advisory_xact_lock(hashtextextended(name, 0))
           from unnest(array['agentd.retry:' || $1, 'agentd.slug:acme', 'agentd.partitions:usage_events', 'agentd.grant_queue_rights']) name`,
        [ended?.id],
      );
      await holder.query('select pg_advisory_xact_lock(7204)');

      expect((await waitForRun(db, await startTask(db, other, 'second'))).status).toBe('completed');
      const retried = await asUser(db, other.userId, async (client) => {
        await client.query(`set local lock_timeout = '2s'`);
        const { rows } = await client.query('select public.retry_run($1) as id', [ended?.id]);
        return rows[0].id as string;
      });
      expect((await waitForRun(db, retried)).status).toBe('completed');
      await asUser(db, other.userId, async (client) => {
        await client.query(`set local lock_timeout = '2s'`);
        const { rows } = await client.query(
          `insert into public.workspaces (name) values ('Acme') returning slug`,
        );
        expect(rows[0].slug).toBe('acme');
      });
      await db.query(`select agentd.ensure_partitions('public.usage_events')`);
      expect(await db.query(`select agentd.try_lock('vector_indexes') as got`)).toEqual([{ got: true }]);
    } finally {
      await holder.query('rollback');
      holder.release();
    }
  });

  test('a workspace whose name is being taken in a transaction left open does not hold up one of the same name', async () => {
    const [first, second] = [await makePlatform(db), await makePlatform(db)];
    const holder = await db.pool.connect();
    try {
      await holder.query(
        `begin; set local role authenticated; set local app.current_user_id = '${first.userId}'`,
      );
      await holder.query(`insert into public.workspaces (name, slug) values ('x', 'northwind-traders')`);
      const slug = await asUser(db, second.userId, async (client) => {
        await client.query(`set local lock_timeout = '2s'`);
        const { rows } = await client.query(
          `insert into public.workspaces (name) values ('Northwind Traders') returning slug`,
        );
        return rows[0].slug as string;
      });
      expect(slug).toMatch(/^northwind-traders-[0-9a-f]{8}$/);
    } finally {
      await holder.query('rollback');
      holder.release();
    }
  });

  test('reaches no row that agentd locks instead', async () => {
    const user = (await makePlatform(db)).userId;
    for (const text of [
      'select 1 from agentd.locks for update',
      'select 1 from agentd.workspace_doors for update',
      `select agentd.hold_lock('pgboss')`,
      `select agentd.try_outer_door(gen_random_uuid())`,
    ]) {
      await expect(
        asUser(db, user, (client) => client.query(text)),
        text,
      ).rejects.toThrow(/permission denied/);
    }
  });
});
