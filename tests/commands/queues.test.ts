import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { agentd, insertTenant, json, type Tenant } from './support.ts';

let db: TestDatabase;
let tenant: Tenant;
const queues = (...args: string[]) => agentd(['queues', ...args], { DATABASE_URL: db.url });

beforeAll(async () => {
  db = await testDatabase();
  tenant = await insertTenant(db, 'Lantern');
});
afterAll(() => db?.dispose());
beforeEach(async () => {
  await db.query('delete from agentd.queue_controls');
  await db.query('delete from agentd.audit_log');
  await db.query('delete from pgboss.job');
  await db.query('delete from public.task_runs');
});

const audit = (): Promise<{ action: string; workspace_id: string | null; details: object }[]> =>
  db.query(
    `select action, workspace_id, details from agentd.audit_log where object_type = 'queue' order by id`,
  );

describe('queues pause and resume', () => {
  test('pause a whole queue once, say who did and why, and are on record', async () => {
    const first = await queues('pause', 'task-run', '--reason', 'provider is\u001b[31m down');
    expect(first).toMatchObject({ code: 0, stderr: '' });
    expect(first.stdout).toContain('Queue task-run is paused.');
    const second = await queues('pause', 'task-run', '--reason', 'another');
    expect(second.code).toBe(0);
    expect(second.stdout).toMatch(/was paused already by \S+@\S+ since .*: provider is/);
    expect(second.stdout).not.toContain('\u001b');

    const listed = await queues('list');
    expect(listed.stdout).toMatch(/task-run .*paused by \S+@\S+ since/);
    const { pauses } = json<{ pauses: { reason: string }[] }>(await queues('list', '--json'));
    expect(pauses).toMatchObject([{ queue: 'task-run', workspace_id: null }]);

    expect((await queues('resume', 'task-run')).stdout).toBe('Queue task-run goes on.\n');
    expect((await queues('resume', 'task-run')).stdout).toContain('was not paused. Nothing was changed.');
    expect(await audit()).toMatchObject([
      { action: 'pause', workspace_id: null, details: { operator: expect.stringContaining('@') } },
      { action: 'resume', workspace_id: null, details: { operator: expect.stringContaining('@') } },
    ]);
  });

  test('pause one workspace, and say which pauses are left', async () => {
    const prefix = tenant.workspace.slice(0, 8);
    const paused = json(await queues('pause', 'task-run', '--workspace', prefix, '--json'));
    expect(paused).toMatchObject({ queue: 'task-run', workspace_id: tenant.workspace, changed: true });
    await queues('pause', 'task-run');
    expect((await queues('list')).stdout).toMatch(/Paused workspaces:\n.*\n.*Lantern/);
    const resumed = await queues('resume', 'task-run');
    expect(resumed.stdout).toContain(`Still paused in task-run: Workspace ${tenant.workspace}`);
    await queues('resume', 'task-run', '--workspace', prefix);
    expect(await db.query('select 1 from agentd.queue_controls')).toEqual([]);
    expect((await audit()).map((row) => [row.action, row.workspace_id])).toEqual([
      ['pause', tenant.workspace],
      ['pause', null],
      ['resume', null],
      ['resume', tenant.workspace],
    ]);
  });

  test('refuse unknown queues and workspaces with the next step, and change nothing', async () => {
    const unknown = await queues('pause', 'task-runs');
    expect(unknown.code).toBe(2);
    expect(unknown.stderr).toContain('There is no queue task-runs.\nThe queues are: ');
    expect(await queues('pause', 'task-run', '--workspace', '00000000')).toMatchObject({ code: 1 });
    expect(await queues('pause', 'task-run', '--workspace', 'x')).toMatchObject({ code: 2 });
    expect(await queues('redrive', 'nothing', '--yes')).toMatchObject({ code: 2 });
    expect(await db.query('select 1 from agentd.queue_controls')).toEqual([]);
  });
});

describe('queues redrive', () => {
  /** A run in a status, with the dead letter that its job left. */
  async function deadLetter(status: string, reason: string | null = null): Promise<string> {
    const run = randomUUID();
    await db.query(
      `insert into public.task_runs (id, task_id, input, status, reason_code, finished_at)
       values ($1, $2, '{"n": 1}', $3, $4, $5)`,
      [run, tenant.task, status, reason, status === 'running' ? null : new Date()],
    );
    await letter({ run_id: run });
    return run;
  }
  const letter = (data: object): Promise<unknown> =>
    db.query(
      `insert into pgboss.job (name, data, policy)
       select name, $1, policy from pgboss.queue where name = 'task-run-failed'`,
      [JSON.stringify(data)],
    );
  const letters = async (): Promise<number> =>
    (await db.query(`select 1 from pgboss.job where name = 'task-run-failed'`)).length;
  const retries = (): Promise<{ retry_of_run_id: string; trigger: string; input: object }[]> =>
    db.query(
      'select retry_of_run_id, trigger, input from public.task_runs where retry_of_run_id is not null',
    );

  test('shows what would happen by reason and changes nothing without --yes', async () => {
    const failed = await deadLetter('failed', 'job_failed');
    await deadLetter('failed', 'job_failed');
    await deadLetter('running');
    await letter({ run_id: randomUUID() });
    await letter({ nonsense: true });
    const preview = await queues('redrive', 'task-run');
    expect(preview.code).toBe(0);
    expect(preview.stdout).toContain('5 dead letters of task-run');
    expect(preview.stdout).toMatch(/2 +job_failed +starts a new run/);
    expect(preview.stdout).toMatch(/2 +run_gone +drops the letter/);
    expect(preview.stdout).toMatch(/1 +not_ended +leaves it/);
    expect(preview.stdout).toContain(failed.slice(0, 8));
    expect(preview.stdout).toContain('agentd queues redrive task-run --yes');
    expect([await letters(), await retries()]).toEqual([5, []]);
  });

  test('starts each failed run once more, drops what has nothing to retry, and is on record', async () => {
    const failed = [await deadLetter('failed', 'job_failed'), await deadLetter('failed', 'job_failed')];
    const going = await deadLetter('running');
    await deadLetter('completed');
    await letter({ run_id: failed[0] });
    await letter({ run_id: randomUUID() });
    const done = json<object>(await queues('redrive', 'task-run', '--yes', '--json'));
    expect(done).toMatchObject({ done: true, retried: 2, dropped: 3, left: 1 });
    const made = await retries();
    expect(made.map((run) => run.retry_of_run_id).sort()).toEqual(failed.sort());
    expect(made.every((run) => run.trigger === 'retry' && JSON.stringify(run.input) === '{"n":1}')).toBe(
      true,
    );
    expect(await letters()).toBe(1);
    expect(await audit()).toMatchObject([
      { action: 'redrive', details: { retried: 2, dropped: 3, left: 1 } },
    ]);

    // the one that was left is redriven when its run has failed, and none of the others again
    await db.query(`update public.task_runs set status = 'failed', finished_at = now() where id = $1`, [
      going,
    ]);
    expect((await queues('redrive', 'task-run', '--yes')).stdout).toContain('1 new runs were started');
    expect([await letters(), (await retries()).length]).toEqual([0, 3]);
    expect((await queues('redrive', 'task-run')).stdout).toContain('has no dead letters');
  });

  test('takes the oldest ones with --limit, and more than a batch without', async () => {
    const ids: string[] = [];
    for (let i = 0; i < 3; i++) ids.push(await deadLetter('failed', 'job_failed'));
    await queues('redrive', 'task-run', '--yes', '--limit', '1');
    expect((await retries()).map((run) => run.retry_of_run_id)).toEqual([ids[0]]);
    await db.query(
      `insert into public.task_runs (task_id, status, reason_code, finished_at)
       select $1, 'failed', 'job_failed', now() from generate_series(1, 250)`,
      [tenant.task],
    );
    await db.query(
      `insert into pgboss.job (name, data, policy)
       select 'task-run-failed', jsonb_build_object('run_id', r.id), q.policy
         from public.task_runs r, pgboss.queue q
        where q.name = 'task-run-failed' and r.status = 'failed' and r.id <> all ($1::uuid[])`,
      [ids],
    );
    expect(json<object>(await queues('redrive', 'task-run', '--yes', '--json'))).toMatchObject({
      retried: 252,
      dropped: 0,
    });
    expect([await letters(), (await retries()).length]).toEqual([0, 253]);
  });
});
