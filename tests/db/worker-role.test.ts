/** The least that a daemon needs: a login that is a member of agentd_worker and nothing else. */
import { randomUUID } from 'node:crypto';
import { PgBoss } from 'pg-boss';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { bossOptions } from '../../src/db/boss.ts';
import { type Database, openDatabase } from '../../src/db/database.ts';
import { registerTasks, takeTask } from '../../src/db/maintenance.ts';
import { workOn } from '../../src/db/maintenance-run.ts';
import { databaseTasks } from '../../src/db/maintenance-tasks.ts';
import { loadRetention } from '../../src/db/retention-rules.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { testDaemon } from '../support/daemon.ts';
import { onServer, shiftDatabaseClock, type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform, makeTask, startTask } from '../support/platform.ts';
import { jobOutcomes, until, waitForRun } from '../support/runs.ts';

// The embedded database has one role for everyone who connects.
describe.runIf(onServer)('a login whose only right is to be a member of agentd_worker', () => {
  const role = `agentd_test_worker_${randomUUID().slice(0, 8)}`;
  let db: TestDatabase;
  let model: ModelServer;
  let worker: Database;

  beforeAll(async () => {
    db = await testDatabase();
    model = await startModelServer();
    await db.query(`create role ${role} login password 'worker' in role agentd_worker`);
    const url = new URL(db.url);
    url.username = role;
    url.password = 'worker';
    worker = openDatabase({ url: url.toString(), embedded: false, max: 2 });
  });
  afterAll(async () => {
    await worker?.close();
    await model?.close();
    await db?.query(`drop role if exists ${role}`);
    await db?.dispose();
  });

  test('has no attribute that would give it more', async () => {
    const rights = await worker.query(
      `select current_user::text as name, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb
         from pg_roles where rolname = current_user`,
    );
    expect(rights).toEqual([
      { name: role, rolsuper: false, rolbypassrls: false, rolcreaterole: false, rolcreatedb: false },
    ]);
  });

  test('sees the rows of every tenant, as BYPASSRLS is not inherited with membership', async () => {
    const [one, other] = [await makePlatform(db), await makePlatform(db)];
    const seen = await worker.query<{ id: string }>('select id from public.agents where id = any ($1)', [
      [one.agentId, other.agentId],
    ]);
    expect(seen).toHaveLength(2);
  });

  test('tidies everything, months that have had their time among it', async () => {
    const at = await makePlatform(db);
    await db.query(
      `insert into public.agent_logs (workspace_id, agent_id, timestamp) values ($1, $2, '2020-01-01')`,
      [at.workspaceId, at.agentId],
    );
    // four months later
    const later = 160 * 86_400_000;
    await shiftDatabaseClock(db, later);
    const clock = { ...systemClock, now: () => Date.now() + later };
    const tasks = databaseTasks(loadRetention());
    const names = tasks.map((task) => task.name);
    await registerTasks(worker, names);
    for (const task of tasks) {
      const taken = await takeTask(worker, {
        names: [task.name],
        worker: 'w',
        leaseMs: 60_000,
        isForced: true,
      });
      const { error } = await workOn(
        { db: worker, clock, leaseMs: 60_000 },
        task,
        taken as NonNullable<typeof taken>,
        { sliceMs: 60_000, signal: new AbortController().signal },
      );
      expect([task.name, error]).toEqual([task.name, null]);
    }
    await shiftDatabaseClock(db, 0);
    const done = await db.query<{ name: string; rows: number }>(
      `select name, rows from agentd.maintenance_log where name in ('agent_logs', 'months_of_job_runs') order by name`,
    );
    expect(done[0]).toEqual({ name: 'agent_logs', rows: 1 });
    // months ahead, and the oldest ones that went
    expect(done[1]?.rows).toBeGreaterThan(5);
  });

  test('runs a whole daemon: a queued run, a scheduled one, every service and the queue’s own maintenance', async () => {
    const daemon = await testDaemon(worker, model);
    const boss = new PgBoss({ ...bossOptions(worker), supervise: false });
    const bossErrors: unknown[] = [];
    boss.on('error', (error) => bossErrors.push(error));
    try {
      const platform = await makePlatform(db);
      const asked = await waitForRun(db, await startTask(db, platform, 'Say yes.'));
      expect(asked).toMatchObject({ status: 'completed', reason_code: null });
      await until('the job is settled', async () => (await jobOutcomes(db, asked.id)).length > 0);

      const task = await makeTask(db, platform, { cron_expression: '* * * * * *' });
      const scheduled = await until('a scheduled run has completed', async () => {
        const rows = await db.query<{ reason: string | null }>(
          `select reason from public.task_runs where task_id = $1 and status = 'completed'`,
          [task],
        );
        return rows[0];
      });
      expect(scheduled.reason).toBeNull();
      await db.query(`update public.agent_tasks set status = 'paused' where id = $1`, [task]);

      // A second pass of every service, and one of pg-boss with all that it does in a day.
      await until('the worker was seen a second time', async () => {
        const rows = await db.query(
          `select 1 from agentd.workers where id = $1 and last_seen_at > started_at + interval '1 second'`,
          [daemon.workerId],
        );
        return rows.length > 0;
      });
      await boss.start();
      await boss.supervise();
    } finally {
      await boss.stop({ graceful: false });
      await daemon.stop();
    }
    expect(bossErrors).toEqual([]);
    const troubles = daemon.log.filter((line) => /"level":"(warn|error|fatal)"|permission denied/.test(line));
    expect(troubles).toEqual([]);
    const [row] = await db.query<{ state: string }>('select state from agentd.workers where id = $1', [
      daemon.workerId,
    ]);
    expect(row?.state).toBe('stopped');
  });
});
