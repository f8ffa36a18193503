/** Statements that take too long: a checkpoint that the server stops, searches that keep every reader busy. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, makeTask, type Platform, startRun } from '../support/platform.ts';
import { modelCalls, openRows, stepRuns, until, waitForRun } from '../support/runs.ts';

let db: TestDatabase;
let model: ModelServer;
let platform: Platform;

beforeEach(async () => {
  db = await testDatabase();
  model = await startModelServer();
  platform = await makePlatform(db);
});

afterEach(async () => {
  expect(model.rejected).toEqual([]);
  await model.close();
  await db.dispose();
});

// The embedded database has no time limit for statements.
describe.skipIf(!onServer)('server-only: a checkpoint that takes longer than a statement may', () => {
  test('is written as soon as it can be: the answers were paid once', async () => {
    await db.query(`create schema slow`);
    await db.query('create table slow.today (reason text)');
    await db.query(`
      create function slow.down() returns trigger language plpgsql security definer set search_path = '' as $$
      begin
        if exists (select 1 from slow.today) then perform pg_sleep(5); end if;
        return new;
      end $$`);
    await db.query(
      'create trigger slow before update on public.llm_calls for each row execute function slow.down()',
    );
    const { promise: held, resolve: release } = Promise.withResolvers<void>();
    model.respond((_, index) => ({ content: `answer ${index}`, ...(index < 4 ? { delay: held } : {}) }));
    // The lease of production: while their rows are held by checkpoints, leases are not renewed.
    await using daemon = await testDaemon(db, model, {
      leaseSeconds: 15,
      databaseLimits: { statementMs: 400 },
    });
    const taskId = await makeTask(db, platform, {}, [{}, {}]);
    const ids = await Promise.all([1, 2, 3, 4].map(() => startRun(db, taskId)));
    await model.waitForRequest(() => true, 4);
    await db.query(`insert into slow.today values ('maintenance')`);
    release();
    const stopped = (): number =>
      daemon.log.filter((line) => line.includes('"where":"checkpoint"') && line.includes('57014')).length;
    await until('the server has stopped checkpoints', () => stopped() >= 3);
    await db.query('delete from slow.today');
    for (const id of ids) {
      expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', lease_epoch: 1, turns: 2 });
      expect((await modelCalls(db, id)).map((call) => [call.status, call.attempt])).toEqual([
        ['completed', 1],
        ['completed', 1],
      ]);
      expect(await openRows(db, id)).toEqual([]);
    }
    expect(model.requests).toHaveLength(8);
  });
});

describe.skipIf(!onServer)('server-only: searches that take longer than a lease', () => {
  test('starve neither the leases of their own runs nor the runs of others', async () => {
    await insert(db, 'public.knowledge_sources', {
      workspace_id: platform.workspaceId,
      name: 'Handbook',
      type: 'TEXT',
    });
    const [source] = await db.query<{ id: string }>('select id from public.knowledge_sources');
    await insert(db, 'public.knowledge_chunks', { source_id: source?.id, chunk_index: 0, content: 'coffee' });
    // Every look at a passage takes longer than any statement may.
    await db.query('alter table public.knowledge_chunks rename to passages');
    await db.query(
      `create view public.knowledge_chunks as select p.* from public.passages p where pg_sleep(60)::text is not null`,
    );
    const other = await makePlatform(db);
    await using daemon = await testDaemon(db, model);
    const slow = await makeTask(db, platform, { instructions: 'coffee' });
    const quick = await makeTask(db, other, { instructions: 'quick' });
    const searching = await Promise.all(Array.from({ length: 8 }, () => startRun(db, slow)));
    await until('every reader searches', async () => {
      const rows = await db.query(
        `select 1 from pg_stat_activity where datname = current_database() and state = 'active'
            and application_name like 'agentd reads%'`,
      );
      return rows.length >= 4;
    });
    const before = performance.now();
    for (let i = 0; i < 3; i++) {
      expect(await waitForRun(db, await startRun(db, quick))).toMatchObject({ status: 'completed' });
    }
    expect(performance.now() - before).toBeLessThan(4_000);
    for (const id of searching) {
      // A lease is 3 s, and a search is stopped after 5: it was renewed meanwhile.
      expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', lease_epoch: 1 });
      const [step] = await stepRuns(db, id);
      expect(step?.context?.left_out).toEqual(['knowledge: the search took too long']);
    }
    expect(daemon.log.filter((line) => line.includes('lease_renewal_failed'))).toEqual([]);
  });
});
