import { describe, expect, test } from 'vitest';
import type { TestDatabase } from '../support/database.ts';
import {
  daemonOfItsOwn,
  db,
  expectNoRepairs,
  holdAnswers,
  model,
  platform,
  untilIdle,
  useDaemon,
} from '../support/one-daemon.ts';
import { insert, makePlatform, makeTask, startRun, startTask } from '../support/platform.ts';
import { findRun, modelCalls, openRows, stepRuns, waitForRun } from '../support/runs.ts';

useDaemon();

describe('rows that go away while a run executes', () => {
  test.each([
    ['agent', 'public.agents', 'agent_deleted'],
    ['task', 'public.agent_tasks', 'task_deleted'],
  ])('a deleted %s ends its run; the run and its journal stay', async (what, table, code) => {
    const owner = await makePlatform(db, { shared: true });
    const hold = holdAnswers();
    const taskId = await makeTask(db, owner);
    const id = await startRun(db, taskId);
    const request = await model.waitForRequest();
    await db.query(`delete from ${table} where id = $1`, [what === 'agent' ? owner.agentId : taskId]);
    const run = await waitForRun(db, id);
    expect(run).toMatchObject({ status: 'cancelled', reason_code: code });
    expect(await request.finished).toBe(true);
    hold.release();
    await untilIdle();
    expect(await openRows(db, id)).toEqual([]);
    expect(await modelCalls(db, id)).toMatchObject([{ status: 'failed', error_code: code }]);
    expect((await findRun(db, id))?.status).toBe('cancelled');
  });

  test('a deleted workspace takes its runs with it, and the daemon works on', async () => {
    const owner = await makePlatform(db, { shared: true });
    const hold = holdAnswers();
    const id = await startTask(db, owner, 'doomed');
    const request = await model.waitForRequest();
    await db.query('delete from public.workspaces where id = $1', [owner.workspaceId]);
    expect(await findRun(db, id)).toBeNull();
    expect(await request.finished).toBe(true);
    hold.release();
    await untilIdle();
    model.respond(() => ({ content: 'alive' }));
    const next = await waitForRun(db, await startTask(db, platform, 'next'));
    expect(next.output?.text).toBe('alive');
    const left = await db.query('select 1 from public.llm_calls where run_id = $1', [id]);
    expect(left).toEqual([]);
  });

  test('a deleted conversation stops no run: its answer is in the output', async () => {
    const conversation = await insert(db, 'public.conversations', {
      workspace_id: platform.workspaceId,
      agent_id: platform.agentId,
      user_id: platform.userId,
    });
    const hold = holdAnswers();
    const id = await startTask(db, platform, 'x', { target_conversation_id: conversation });
    await model.waitForRequest();
    await db.query('delete from public.conversations where id = $1', [conversation]);
    hold.release();
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'held' } });
  });
});

describe('cancelling', () => {
  test('a running run: its request is aborted within a second and nothing of its answer is kept', async () => {
    // On a server the notification does it: the next renewal would be in twenty seconds.
    await using other = await daemonOfItsOwn({}, { leaseSeconds: 60 });
    const hold = holdAnswers();
    const id = await startTask(other.db, other.owner, 'long');
    const request = await model.waitForRequest();
    const before = performance.now();
    expect(await cancel(id, other.db)).toBe(true);
    expect(await request.finished).toBe(true);
    // Long before the renewal; tests/scenarios/cancelling.test.ts says how soon.
    expect(performance.now() - before).toBeLessThan(10_000);
    hold.release();
    await untilIdle(other.db);
    const run = await findRun(other.db, id);
    expect(run).toMatchObject({ status: 'cancelled', reason_code: 'cancelled', output: null });
    expect(await openRows(other.db, id)).toEqual([]);
    expect(await cancel(id, other.db)).toBe(false);
  });

  test('a queued run is never started', async () => {
    await using other = await daemonOfItsOwn({ AGENTD_QUEUES: 'task-run=1' });
    let release = (): void => {};
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    model.respond(() => ({ content: 'held', delay: held }));
    const first = await startTask(other.db, other.owner, 'first');
    await model.waitForRequest();
    const second = await startTask(other.db, other.owner, 'second');
    await other.db.query('select public.cancel_run($1)', [second]);
    release();
    await waitForRun(other.db, first);
    const third = await startTask(other.db, other.owner, 'third');
    await waitForRun(other.db, third);
    expect((await findRun(other.db, second))?.status).toBe('cancelled');
    expect(model.requests.map((r) => r.userText)).toEqual(['first', 'third']);
    expect(await stepRuns(other.db, second)).toEqual([]);
  });

  test('a waiting run is not woken', async () => {
    model.respond(() => ({ status: 429, headers: { 'retry-after-ms': '6000' } }));
    const id = await startTask(db, platform, 'limited');
    const waiting = await waitForRun(db, id, ['waiting']);
    await cancel(id);
    expect(await findRun(db, id)).toMatchObject({ status: 'cancelled', wake_at: null });
    expect(await openRows(db, id)).toEqual([]);
    const jobs = await db.query(
      `select 1 from pgboss.job where id = $1 and state in ('created', 'retry', 'active')`,
      [waiting.job_id],
    );
    expect(jobs).toEqual([]);
  });
});

async function cancel(id: string, on: TestDatabase = db): Promise<boolean | undefined> {
  const [row] = await on.query<{ done: boolean }>('select public.cancel_run($1) as done', [id]);
  return row?.done;
}

test('no run of this file was taken over or spent an attempt of its job', expectNoRepairs);
