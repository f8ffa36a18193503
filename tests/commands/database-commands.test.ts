import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { emptyDatabase, type TestDatabase, testDatabase } from '../support/database.ts';
import { agentd, insertTenant, json, type Tenant } from './support.ts';

describe('on a migrated database', () => {
  let db: TestDatabase;
  let tenant: Tenant;
  const on = (...args: string[]) => agentd(args, { DATABASE_URL: db.url });

  beforeAll(async () => {
    db = await testDatabase();
    tenant = await insertTenant(db, 'Harbour', '30 2 * * *');
  });
  afterAll(() => db.dispose());

  test('migrate status shows every migration as applied', async () => {
    const { migrations } = json<{ migrations: { state: string }[] }>(await on('migrate', 'status', '--json'));
    expect(migrations.length).toBeGreaterThan(0);
    expect(migrations.every((migration) => migration.state === 'applied')).toBe(true);
  });

  test('migrate up has nothing left to do and says so', async () => {
    const { code, stdout } = await on('migrate', 'up');
    expect([code, stdout]).toEqual([0, 'The database is up to date.\n']);
  });

  test('migrate down does nothing without --yes', async () => {
    const { code, stderr } = await on('migrate', 'down', '--all');
    expect(code).toBe(2);
    expect(stderr).toContain('--yes');
    expect(await db.query('select 1 from public.workspaces where id = $1', [tenant.workspace])).toHaveLength(
      1,
    );
  });

  test('tasks list shows the task with its schedule, in columns and without colours', async () => {
    const { code, stdout } = await on('tasks', 'list', '--workspace', tenant.workspace.slice(0, 12));
    expect(code).toBe(0);
    expect(stdout).toContain('Harbour task');
    expect(stdout).toContain('30 2 * * * America/New_York');
    expect(stdout).not.toContain('\u001b');
  });

  test('tasks preview of a task uses its own expression and zone', async () => {
    const answer = json<{ expression: string; zone: string }>(
      await on('tasks', 'preview', tenant.task, '--json'),
    );
    expect(answer).toMatchObject({ expression: '30 2 * * *', zone: 'America/New_York' });
  });

  test('tasks run queues a run with its input, runs list finds it, runs cancel ends it once', async () => {
    const { run_id } = json<{ run_id: string }>(
      await on('tasks', 'run', tenant.task, '--input', '{"topic":"tides"}', '--json'),
    );
    const [row] = await db.query<{ status: string; input: unknown }>(
      'select status, input from public.task_runs where id = $1',
      [run_id],
    );
    expect(row).toEqual({ status: 'queued', input: { topic: 'tides' } });
    const { runs } = json<{ runs: { id: string }[] }>(
      await on('runs', 'list', '--status', 'queued', '--json'),
    );
    expect(runs.map((run) => run.id)).toEqual([run_id]);
    expect(json(await on('runs', 'cancel', run_id, '--json'))).toEqual({
      run_id,
      cancelled: true,
      status: 'cancelled',
    });
    expect(json(await on('runs', 'cancel', run_id, '--json'))).toEqual({
      run_id,
      cancelled: false,
      status: 'cancelled',
    });
  });

  test('status shows queues, and the failures of the last day with their reasons', async () => {
    await db.query(
      `insert into public.task_runs (task_id, status, reason_code, reason, started_at, finished_at)
       values ($1, 'failed', 'invalid_api_key', 'The key was refused.', now(), now())`,
      [tenant.task],
    );
    const status = json<{
      queues: { queue: string; ready: number }[];
      recent_failures: { reason_code: string }[];
    }>(await on('status', '--json'));
    expect(status.queues.map((queue) => queue.queue)).toContain('task-run');
    expect(status.recent_failures.map((failure) => failure.reason_code)).toContain('invalid_api_key');
    const { code, stdout } = await on('status');
    expect(code).toBe(0);
    expect(stdout).toContain('The key was refused.');
    expect(stdout).not.toContain('\u001b');
  });

  test('an id that is too short, missing or ambiguous is not guessed', async () => {
    const twins = ['aaaaaaaa-0000-4000-8000-000000000001', 'aaaaaaaa-0000-4000-8000-000000000002'];
    for (const id of twins)
      await db.query('insert into public.task_runs (id, task_id) values ($1, $2)', [id, tenant.task]);
    expect((await on('runs', 'show', 'aaaaa')).code).toBe(2);
    expect((await on('runs', 'show', 'ffffff')).code).toBe(1);
    const several = await on('runs', 'cancel', 'aaaaaaaa');
    expect(several.code).toBe(2);
    expect(several.stderr).toContain('more digits');
    const states = await db.query<{ status: string }>(
      'select status from public.task_runs where id = any($1::uuid[])',
      [twins],
    );
    expect(states.map((state) => state.status)).toEqual(['queued', 'queued']);
  });
});

describe('on an empty database', () => {
  let db: TestDatabase;
  const on = (...args: string[]) => agentd(args, { DATABASE_URL: db.url });
  beforeAll(async () => {
    db = await emptyDatabase();
  });
  afterAll(() => db.dispose());

  test('commands say that it is not migrated; migrate up makes it usable; down --all --queue leaves nothing', async () => {
    const before = await on('status');
    expect(before.code).toBe(1);
    expect(before.stderr).toContain('agentd migrate up');
    const { applied } = json<{ applied: string[] }>(await on('migrate', 'up', '--json'));
    expect(applied.length).toBeGreaterThan(0);
    expect((await on('status')).code).toBe(0);
    const { reverted } = json<{ reverted: string[] }>(
      await on('migrate', 'down', '--all', '--queue', '--yes', '--json'),
    );
    expect(reverted).toEqual(applied.toReversed());
    const left = await db.query(`select 1 from pg_namespace where nspname in ('agentd', 'pgboss')`);
    expect(left).toHaveLength(0);
  });
});
