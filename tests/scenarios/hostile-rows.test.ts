/** Rows that the database takes and that a worker might not: they cost their own task or run at most. */
import { describe, expect, test } from 'vitest';
import { nextDueInMs } from '../../src/db/tasks.ts';
import { schedulePass } from '../../src/services/scheduler.ts';
import { db, model, platform, useDaemon } from '../support/one-daemon.ts';
import { insert, makePlatform, makeTask, startRun } from '../support/platform.ts';
import { findRun, jobOutcomes, openRows, until, waitForRun } from '../support/runs.ts';
import * as schedule from '../support/schedule.ts';

describe('a task whose row can’t be advanced', () => {
  schedule.useSchedule();

  const due = `agentd.now() - interval '1 second'`;
  /** Sets columns past the checks that an insert through an application's form would meet. */
  async function hostileTask(assignments: string): Promise<string> {
    const id = await schedule.scheduled({ cron_expression: '0 9 * * *' });
    await schedule.db.query(`update public.agent_tasks set ${assignments} where id = $1`, [id]);
    return id;
  }
  async function dueTaskOfAnother(): Promise<string> {
    const other = await makePlatform(schedule.db);
    const id = await makeTask(schedule.db, other, { cron_expression: '0 9 * * *' });
    await schedule.db.query(`update public.agent_tasks set next_run_at = ${due} where id = $1`, [id]);
    return id;
  }
  async function passes(count: number): Promise<void> {
    for (let pass = 0; pass < count; pass++) await schedulePass({ db: schedule.db, ...schedule.parts });
  }

  test.each([
    ['has run as often as an integer counts', `total_executions = 2147483647, next_run_at = ${due}`],
    ['was due before the common era', `next_run_at = '0044-03-15 BC'`],
  ])('one that %s is paused with its reason, and holds up nobody', async (_, assignments) => {
    const hostile = await hostileTask(assignments);
    const good = await dueTaskOfAnother();
    await passes(2);
    expect(await schedule.rows(good)).toHaveLength(1);
    const task = await schedule.task(hostile);
    expect(task).toMatchObject({ status: 'paused', reason_code: 'schedule_error' });
    expect(task.reason).toMatch(/^[A-Z].{20,}\.$/);
    expect(await schedule.rows(hostile)).toEqual([]);
  });

  test.each([
    ['due since for ever', `next_run_at = '-infinity'`],
    ['due never', `next_run_at = 'infinity'`],
    ['due when no calendar reaches', `next_run_at = '294276-12-31'`],
    ['with a start in no time', `start_date = 'infinity', next_run_at = ${due}`],
    ['with an end in no time', `end_date = '-infinity', next_run_at = ${due}`],
    ['with less than no executions', `total_executions = -2147483648, next_run_at = ${due}`],
    [
      'with a zone that is none',
      `timezone = 'Nowhere/' || chr(10) || repeat('x', 5000), next_run_at = ${due}`,
    ],
    ['with megabytes for an expression', `cron_expression = repeat('* ', 500000), next_run_at = ${due}`],
    [
      'that owes every second of fifty years',
      `cron_expression = '* * * * * *', misfire_policy = 'run_all', next_run_at = '1975-01-01'`,
    ],
  ])('one %s holds up nobody, and is not looked at for ever', async (_, assignments) => {
    const written = await hostileTask(assignments).catch((error: { code?: string }) => {
      // A database that refuses the row is as good an answer.
      expect(error.code).toMatch(/^2[23]/);
      return null;
    });
    const good = await dueTaskOfAnother();
    await passes(2);
    expect(await schedule.rows(good)).toHaveLength(1);
    if (written !== null) {
      const [later] = await schedule.db.query(
        `select 1 from public.agent_tasks where id = $1 and status = 'active' and next_run_at > agentd.now()`,
        [written],
      );
      const { reason } = await schedule.task(written);
      if (!later) expect(reason).toMatch(/^["A-Z].* .+\.$/s);
      // It is shown in lists and written into logs.
      expect(reason?.length ?? 0).toBeLessThan(10_000);
    }
    expect(await nextDueInMs(schedule.db)).not.toBe(0);
  });

  test('a trigger of the application’s own that refuses the runs of one task pauses that task', async () => {
    const refused = await hostileTask(`next_run_at = ${due}`);
    const good = [await dueTaskOfAnother(), await dueTaskOfAnother()];
    await schedule.db.query(
      `create function public.refuse_run() returns trigger language plpgsql as
       $$ begin raise exception 'No runs on a holiday'; end $$`,
    );
    await schedule.db.query(
      `create trigger refuse_run before insert on public.task_runs for each row
         when (new.task_id = '${refused}') execute function public.refuse_run()`,
    );
    try {
      await passes(2);
    } finally {
      await schedule.db.query('drop function public.refuse_run cascade');
    }
    for (const id of good) expect(await schedule.rows(id)).toHaveLength(1);
    const task = await schedule.task(refused);
    expect(task).toMatchObject({ status: 'paused', reason_code: 'schedule_error' });
    expect(task.reason).toContain('No runs on a holiday');
  });

  test('several in one batch are paused each, and what is due beside them is started once', async () => {
    const hostile = [];
    const good = [];
    for (let i = 0; i < 3; i++) {
      hostile.push(await hostileTask(`total_executions = 2147483647, next_run_at = ${due}`));
      good.push(await dueTaskOfAnother());
    }
    await passes(3);
    for (const id of hostile) expect((await schedule.task(id)).status).toBe('paused');
    for (const id of good) {
      expect(await schedule.rows(id)).toHaveLength(1);
      expect(await schedule.task(id)).toMatchObject({ status: 'active', total_executions: 1 });
    }
  });

  test('one that is corrected and set to active runs again', async () => {
    const id = await hostileTask(`total_executions = 2147483647, next_run_at = ${due}`);
    await passes(1);
    expect((await schedule.task(id)).status).toBe('paused');
    await schedule.db.query(
      `update public.agent_tasks set status = 'active', total_executions = 0, next_run_at = ${due} where id = $1`,
      [id],
    );
    await passes(1);
    expect(await schedule.rows(id)).toHaveLength(1);
    expect(await schedule.task(id)).toMatchObject({ status: 'active', reason_code: null, reason: null });
  });
});

describe('ids that an application makes itself', () => {
  useDaemon();

  test.each([
    ['a hash', `md5('invoice 17')::uuid`],
    ['all ones', `'11111111-1111-1111-1111-111111111111'::uuid`],
    ['all zeros', `'00000000-0000-0000-0000-000000000000'::uuid`],
    ['all bits set', `'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid`],
  ])('a run whose id is %s is executed once', async (_, expression) => {
    const taskId = await makeTask(db, platform);
    const [row] = await db.query<{ id: string }>(
      `insert into public.task_runs (id, task_id) values (${expression}, $1) returning id`,
      [taskId],
    );
    const id = row?.id ?? '';
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', lease_epoch: 1 });
    await until('its job is settled', async () => (await jobOutcomes(db, id)).length > 0);
    expect(await jobOutcomes(db, id)).toEqual(['completed']);
    expect(await openRows(db, id)).toEqual([]);
    expect(await db.query(`select 1 from pgboss.job where name like '%failed'`)).toEqual([]);
  });

  test('tasks, agents and channels may have such ids as well', async () => {
    const id = (n: number): string => `${n}`.repeat(8).concat('-0000-0000-0000-000000000000');
    await insert(db, 'public.agents', {
      id: id(1),
      workspace_id: platform.workspaceId,
      user_id: platform.userId,
      name: 'One',
      model: 'gpt-4.1-mini',
    });
    await insert(db, 'public.chat_channels', { id: id(2), workspace_id: platform.workspaceId, name: 'two' });
    await makeTask(db, { ...platform, agentId: id(1) }, { id: id(3), target_channel_id: id(2) });
    const run = await waitForRun(db, await startRun(db, id(3)));
    expect(run).toMatchObject({ status: 'completed', lease_epoch: 1 });
    expect(await findRun(db, run.id)).not.toBeNull();
    const messages = await db.query('select content from public.chat_messages where channel_id = $1', [
      id(2),
    ]);
    expect(messages).toEqual([{ content: 'answer' }]);
    expect(model.requests).toHaveLength(1);
  });
});
