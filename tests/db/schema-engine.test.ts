/** Triggers and functions of the tasks and of the engine. */

import { PgBoss } from 'pg-boss';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { bossOptions } from '../../src/db/boss.ts';
import {
  admitWaitingRuns,
  dropStaleJobs,
  enqueueRunsWithoutJob,
  requeueLapsedRuns,
  sweepWorkers,
  wakeDueRuns,
} from '../../src/db/reconcile.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { type Company, company, inserted, value } from './schema-support.ts';

let db: TestDatabase;
let c: Company;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db?.dispose());
beforeEach(async () => {
  c = await company(db.pool);
});

const newTask = (columns = ''): Promise<string> =>
  inserted(
    db.pool,
    `insert into public.agent_tasks (agent_id, name, instructions ${columns ? `, ${columns.split('=')[0]}` : ''})
     values ($1, 'Task', 'Do it' ${columns ? `, ${columns.split('=')[1]}` : ''})`,
    [c.agent],
  );
const admit = (): Promise<unknown> => value(db.pool, 'select agentd.admit_arrivals(1000)');
/** A run, admitted if there is room. */
const newRun = async (task: string, columns: Record<string, unknown> = {}): Promise<string> => {
  const names = ['task_id', ...Object.keys(columns)];
  const id = await inserted(
    db.pool,
    `insert into public.task_runs (${names}) values (${names.map((_, i) => `$${i + 1}`)})`,
    [task, ...Object.values(columns)],
  );
  await admit();
  return id;
};
const field = <T>(table: string, id: string, expression: string): Promise<T | undefined> =>
  value<T>(db.pool, `select ${expression} from ${table} where id = $1`, [id]);
const run = <T>(id: string, expression: string): Promise<T | undefined> =>
  field<T>('public.task_runs', id, expression);
/** Runs statements as a signed-in user. */
const as = async <T>(user: string, text: string, values: unknown[] = []): Promise<T | undefined> => {
  const client = await db.pool.connect();
  try {
    await client.query('begin');
    await client.query('set local role authenticated');
    await client.query(`select set_config('app.current_user_id', $1, true)`, [user]);
    const result = await client.query({ text, values, rowMode: 'array' });
    await client.query('commit');
    return (result.rows as unknown[][])[0]?.[0] as T | undefined;
  } catch (error) {
    await client.query('rollback');
    throw error;
  } finally {
    client.release();
  }
};

describe('tasks', () => {
  test('workspace and owner that an insert leaves out come from the agent', async () => {
    const task = await newTask();
    expect(await field('public.agent_tasks', task, 'workspace_id')).toBe(c.workspace);
    expect(await field('public.agent_tasks', task, 'user_id')).toBe(c.owner);
    expect(
      await as<string>(
        c.manager,
        `insert into public.agent_tasks (agent_id, name) values ($1, 'mine') returning user_id`,
        [c.agent],
      ),
    ).toBe(c.manager);
  });

  test('an edited schedule and a resumed task are computed anew; a time that the application sets stands', async () => {
    const task = await newTask(`cron_expression='0 9 * * *'`);
    const next = (): Promise<Date | null | undefined> =>
      field<Date | null>('public.agent_tasks', task, 'next_run_at');
    const set = (change: string): Promise<unknown> =>
      db.pool.query(`update public.agent_tasks set ${change} where id = $1`, [task]);
    for (const change of [
      `cron_expression = '0 10 * * *'`,
      `timezone = 'Europe/Paris'`,
      `start_date = '2030-01-01'`,
      `end_date = '2031-01-01'`,
    ]) {
      await set(`next_run_at = '2030-05-05T00:00:00Z'`);
      expect(await next(), change).not.toBeNull();
      await set(change);
      expect(await next(), change).toBeNull();
    }
    await set(`next_run_at = '2030-05-05T00:00:00Z', cron_expression = '0 11 * * *'`);
    expect(await next()).toEqual(new Date('2030-05-05T00:00:00Z'));
    await set(`name = 'renamed'`);
    expect(await next()).toEqual(new Date('2030-05-05T00:00:00Z'));
    await set(`status = 'paused', reason_code = 'invalid_cron', reason = 'x'`);
    await set(`status = 'active'`);
    expect(await next()).toBeNull();
    expect(await field('public.agent_tasks', task, 'reason_code')).toBeNull();
  });

  test('the number of steps is kept, whether they are inserted one by one, many at once, or deleted', async () => {
    const task = await newTask();
    const steps = (): Promise<unknown> =>
      field('public.agent_tasks', task, `step_count || ' ' || is_multi_step`);
    await db.pool.query(
      `insert into public.task_steps (task_id, step_order, step_name) select $1, n, 's' from generate_series(1, 3) n`,
      [task],
    );
    expect(await steps()).toBe('3 true');
    await db.pool.query('delete from public.task_steps where task_id = $1 and step_order > 1', [task]);
    expect(await steps()).toBe('1 false');
  });

  test('updated_at follows every change of a task, a step and a trigger', async () => {
    const task = await newTask();
    const step = await inserted(
      db.pool,
      `insert into public.task_steps (task_id, step_order, step_name) values ($1, 1, 's')`,
      [task],
    );
    const trigger = await inserted(
      db.pool,
      `insert into public.agent_task_event_triggers (task_id, trigger_type) values ($1, 'manual')`,
      [task],
    );
    for (const [table, id, change] of [
      ['agent_tasks', task, `name = 'n'`],
      ['task_steps', step, `step_name = 'n'`],
      ['agent_task_event_triggers', trigger, `name = 'n'`],
    ] as const) {
      await db.pool.query(`update public.${table} set ${change} where id = $1`, [id]);
      expect(await field(`public.${table}`, id, 'updated_at > created_at'), table).toBe(true);
    }
    expect(await field('public.agent_task_event_triggers', trigger, 'workspace_id')).toBe(c.workspace);
  });

  test('a new, an earlier and a resumed schedule wake the scheduler; its own advance does not', async () => {
    const client = await db.pool.connect();
    const heard: string[] = [];
    client.on('notification', (message) => heard.push(message.channel));
    await client.query('listen agentd_schedule');
    const says = async (text: string, values: unknown[] = []): Promise<number> => {
      heard.length = 0;
      await client.query(text, values);
      await client.query('select 1');
      return heard.length;
    };
    const insert = `insert into public.agent_tasks (id, agent_id, name, cron_expression) values ($1, $2, 'T', $3)`;
    const [a, b] = ['a', 'b'].map(() => crypto.randomUUID());
    expect(await says(insert, [a, c.agent, '0 9 * * *'])).toBe(1);
    expect(await says(insert, [b, c.agent, null])).toBe(0);
    const set = (change: string): Promise<number> =>
      says(`update public.agent_tasks set ${change} where id = '${a}'`);
    expect(await set(`next_run_at = '2030-01-02'`)).toBe(0);
    expect(await set(`next_run_at = '2030-01-03'`)).toBe(0);
    expect(await set(`next_run_at = '2030-01-01'`)).toBe(1);
    expect(await set(`status = 'paused'`)).toBe(0);
    expect(await set(`status = 'active'`)).toBe(1);
    await client.query('unlisten *');
    client.release();
  });
});

describe('steps by function', () => {
  test('create, update and delete keep the order without gaps', async () => {
    const task = await newTask();
    const create = (order: number, name: string): Promise<string | undefined> =>
      value(db.pool, 'select public.create_task_step($1, $2, $3, $4)', [task, order, name, `do ${name}`]);
    const first = await create(1, 'first');
    await create(2, 'third');
    const second = await create(2, 'second');
    const names = (): Promise<string | undefined> =>
      value(
        db.pool,
        `select string_agg(step_order || ' ' || step_name, ', ' order by step_order) from public.task_steps where task_id = $1`,
        [task],
      );
    expect(await names()).toBe('1 first, 2 second, 3 third');
    expect(await value(db.pool, 'select public.update_task_step($1, null, $2, true)', [second, 'new'])).toBe(
      true,
    );
    expect(
      await field(
        'public.task_steps',
        second as string,
        `step_name || instructions || include_previous_context`,
      ),
    ).toBe('secondnewtrue');
    expect(await value(db.pool, 'select public.delete_task_step($1)', [first])).toBe(true);
    expect(await names()).toBe('1 second, 2 third');
    expect(await value(db.pool, 'select public.delete_task_step($1)', [first])).toBe(false);
    expect(await value(db.pool, 'select public.update_task_step($1)', [first])).toBe(false);
  });

  test('a viewer changes no step, a manager does', async () => {
    const task = await newTask();
    const create = `select public.create_task_step('${task}', 1, 's', 'i')`;
    await expect(as(c.viewer, create)).rejects.toThrow(/row-level security/);
    expect(await as(c.manager, create)).toBeTypeOf('string');
  });
});

describe('runs', () => {
  test('an inserted run copies its task and its steps by position, and its job is as the queue says', async () => {
    const task = await newTask(`target_channel_id=null`);
    await db.pool.query(
      `insert into public.task_steps (task_id, step_order, step_name, instructions) values ($1, 5, 'b', 'two'), ($1, 2, 'a', 'one')`,
      [task],
    );
    const id = await newRun(task, { input: { x: 1 } });
    await db.pool.query(`update public.task_steps set instructions = 'edited' where task_id = $1`, [task]);
    expect(await run(id, 'steps')).toMatchObject([
      { order: 1, name: 'a', instructions: 'one' },
      { order: 2, name: 'b', instructions: 'two' },
    ]);
    expect(await run(id, 'settings')).toMatchObject({
      instructions: 'Do it',
      timeout_seconds: 900,
      max_retries: 3,
    });
    expect(await run(id, `workspace_id || ' ' || agent_id`)).toBe(`${c.workspace} ${c.agent}`);
    const job = await value(
      db.pool,
      `select to_jsonb(j) from pgboss.job j where id = (select job_id from public.task_runs where id = $1)`,
      [id],
    );
    expect(job).toMatchObject({
      name: 'task-run',
      state: 'created',
      singleton_key: id,
      policy: 'exclusive',
      dead_letter: 'task-run-failed',
      retry_limit: 5,
      data: { run_id: id, workspace_id: c.workspace },
    });
  });

  test('a task without steps is one step', async () => {
    expect(await run(await newRun(await newTask()), 'steps')).toMatchObject([
      { id: null, order: 1, name: 'Task', instructions: '' },
    ]);
  });

  test('a run of a task that does not exist, or of another workspace, is refused', async () => {
    await expect(newRun(crypto.randomUUID())).rejects.toThrow(/does not exist/);
    const other = await company(db.pool);
    await expect(newRun(await newTask(), { workspace_id: other.workspace })).rejects.toThrow(
      /foreign key|workspace/,
    );
  });

  test('scheduled and event runs of a draft or inactive agent are recorded as skipped; a manual one runs', async () => {
    const task = await newTask();
    for (const [change, code] of [
      [`status = 'draft'`, 'agent_draft'],
      [`status = 'live', is_active = false`, 'agent_inactive'],
    ] as const) {
      await db.pool.query(`update public.agents set ${change} where id = $1`, [c.agent]);
      for (const trigger of ['schedule', 'event', 'catch_up']) {
        const id = await newRun(task, { trigger });
        expect(
          await run(
            id,
            `status || ' ' || reason_code || ' ' || (finished_at is not null) || ' ' || (job_id is null)`,
          ),
        ).toBe(`skipped ${code} true true`);
      }
      expect(await run(await newRun(task), 'status')).toBe('queued');
    }
  });

  test('an occurrence is inserted once', async () => {
    const task = await newTask();
    const at = '2030-01-01T00:00:00Z';
    await newRun(task, { trigger: 'schedule', scheduled_for: at });
    await expect(newRun(task, { trigger: 'schedule', scheduled_for: at })).rejects.toThrow(/unique/);
  });

  test('the key of a call depends on its place alone', async () => {
    const key = (args: string): Promise<string | undefined> =>
      value(db.pool, `select agentd.call_key('${c.agent}', ${args})`);
    expect(await key('1, 2')).toBe(await key('1, 2'));
    expect(
      new Set([await key('1, 2'), await key('2, 1'), await key('1, 2, 0'), await key('1, 2, 1')]).size,
    ).toBe(4);
  });

  test('a run ends when its task or agent is deleted, its journal stays, and no worker writes to it', async () => {
    for (const [table, code] of [
      ['agent_tasks', 'task_deleted'],
      ['agents', 'agent_deleted'],
    ] as const) {
      const agent = await inserted(
        db.pool,
        `insert into public.agents (workspace_id, user_id, name) values ($1, $2, 'x')`,
        [c.workspace, c.owner],
      );
      const task = await inserted(
        db.pool,
        `insert into public.agent_tasks (agent_id, name) values ($1, 't')`,
        [agent],
      );
      const id = await newRun(task);
      await db.pool.query(`update public.task_runs set status = 'running', lease_epoch = 3 where id = $1`, [
        id,
      ]);
      await db.pool.query(
        `insert into public.llm_calls (workspace_id, run_id, step_order, turn, idempotency_key) values ($1, $2::uuid, 1, 1, $2)`,
        [c.workspace, id],
      );
      await db.pool.query(
        `insert into public.tool_calls (workspace_id, run_id, step_order, turn, call_index, idempotency_key, provider_call_id, tool_name, source, effect) values ($1, $2::uuid, 1, 1, 0, $2, 'p', 't', 's', 'write')`,
        [c.workspace, id],
      );
      await db.pool.query(
        `insert into public.task_step_runs (workspace_id, run_id, step_order, step_name, status) values ($1, $2, 1, 's', 'running')`,
        [c.workspace, id],
      );
      await db.pool.query(`delete from public.${table} where id = $1`, [table === 'agents' ? agent : task]);
      expect(await run(id, `status || ' ' || lease_epoch || ' ' || (finished_at is not null)`), table).toBe(
        'cancelled 4 true',
      );
      // deleting an agent deletes its tasks: whichever the database does first is the reason
      expect([code, 'task_deleted']).toContain(await run(id, 'reason_code'));
      expect(await value(db.pool, 'select status::text from public.llm_calls where run_id = $1', [id])).toBe(
        'failed',
      );
      expect(await value(db.pool, 'select status::text from public.tool_calls where run_id = $1', [id])).toBe(
        'unknown',
      );
      expect(
        await value(db.pool, 'select status::text from public.task_step_runs where run_id = $1', [id]),
      ).toBe('failed');
      expect(
        await value(
          db.pool,
          `select count(*)::int from pgboss.job where name = 'task-run' and singleton_key = $1`,
          [id],
        ),
      ).toBe(0);
    }
  });

  test('a workspace with runs and their journal can be deleted', async () => {
    const id = await newRun(await newTask());
    await db.pool.query('delete from public.workspaces where id = $1', [c.workspace]);
    expect(await run(id, 'id')).toBeUndefined();
  });
});

describe('run_task and cancel_run', () => {
  test('managers run and cancel; viewers, strangers and anonymous users do not', async () => {
    const task = await newTask();
    const other = await company(db.pool);
    for (const user of [c.viewer, other.owner]) {
      await expect(as(user, 'select public.run_task($1)', [task])).rejects.toThrow(/not a manager/);
    }
    await expect(as('', 'select public.run_task($1)', [task])).rejects.toThrow(/not a manager/);
    const id = (await as<string>(c.manager, `select public.run_task($1, '{"a": 1}')`, [task])) as string;
    expect(await run(id, `trigger || ' ' || status || ' ' || user_id || ' ' || (input ->> 'a')`)).toBe(
      `manual queued ${c.manager} 1`,
    );
    await expect(as(c.viewer, 'select public.cancel_run($1)', [id])).rejects.toThrow(/not a manager/);
    expect(await as(c.manager, 'select public.cancel_run($1)', [id])).toBe(true);
    expect(await as(c.manager, 'select public.cancel_run($1)', [id])).toBe(false);
    expect(await run(id, `status || ' ' || reason_code || ' ' || lease_epoch`)).toBe('cancelled cancelled 1');
    expect(await value(db.pool, `select count(*)::int from pgboss.job where singleton_key = $1`, [id])).toBe(
      0,
    );
    expect(
      await value(db.pool, `select actor || ' ' || action from agentd.audit_log where object_id = $1`, [id]),
    ).toBe(`${c.manager} cancel`);
  });

  test('a cancelled run tells its worker and those who follow outcomes', async () => {
    const id = await newRun(await newTask());
    const client = await db.pool.connect();
    const heard = new Map<string, string>();
    client.on('notification', (message) => heard.set(message.channel, message.payload ?? ''));
    await client.query('listen agentd_cancel; listen agentd_runs');
    await client.query('select public.cancel_run($1)', [id]);
    await client.query('select 1');
    await client.query('unlisten *');
    client.release();
    // and nothing of whose run it is, for anybody may listen
    expect([...heard].sort()).toEqual([
      ['agentd_cancel', ''],
      ['agentd_runs', ''],
    ]);
  });
});

describe('the waiting room', () => {
  const admitted = (): Promise<number | undefined> =>
    value(
      db.pool,
      'select count(*)::int from public.task_runs where workspace_id = $1 and job_id is not null and status = $2',
      [c.workspace, 'queued'],
    );
  const ceiling = (): Promise<number | undefined> =>
    value(db.pool, `select agentd.workspace_room($1)`, [c.workspace]);

  test('of many runs in one statement only as many as the ceiling get a job, and others are not delayed', async () => {
    const limit = (await ceiling()) as number;
    const task = await newTask();
    await db.pool.query('insert into public.task_runs (task_id) select $1 from generate_series(1, 100)', [
      task,
    ]);
    await admit();
    expect(await admitted()).toBe(limit);
    expect(await ceiling()).toBe(0);
    const other = await company(db.pool);
    const otherTask = await inserted(
      db.pool,
      `insert into public.agent_tasks (agent_id, name) values ($1, 't')`,
      [other.agent],
    );
    expect(await run(await newRun(otherTask), 'job_id is not null')).toBe(true);
  });

  test('a run that ends lets the oldest one in, in order', async () => {
    const limit = (await ceiling()) as number;
    const task = await newTask();
    for (let i = 0; i < limit + 3; i++) await newRun(task, { input: { i } });
    for (let i = 0; i < 2; i++) {
      await db.pool.query(
        `update public.task_runs set status = 'cancelled' where id = (
           select id from public.task_runs where workspace_id = $1 and status = 'queued' and job_id is not null order by created_at limit 1)`,
        [c.workspace],
      );
      // an application lets nobody in itself: it shows the next one to the daemons
      await admit();
    }
    const waiting = await value(
      db.pool,
      `select array_agg((input ->> 'i')::int order by created_at) from public.task_runs where workspace_id = $1 and job_id is null and status = 'queued'`,
      [c.workspace],
    );
    expect(waiting).toEqual([limit + 2]);
    expect(await admitted()).toBe(limit);
  });

  test('the ceiling comes from the plan; a paused workspace lets nobody in', async () => {
    const plan = await inserted(
      db.pool,
      `insert into public.pricing_plans (name, price_monthly, features) values ($1, 0, '{"ceilings": {"task-run": 2}}')`,
      [`plan ${crypto.randomUUID()}`],
    );
    await db.pool.query(
      `insert into public.workspace_subscriptions (workspace_id, plan_id, status) values ($1, $2, 'active')`,
      [c.workspace, plan],
    );
    expect(await ceiling()).toBe(2);
    await db.pool.query(`insert into agentd.queue_controls (queue, workspace_id) values ('task-run', $1)`, [
      c.workspace,
    ]);
    const id = await newRun(await newTask());
    expect(await run(id, 'job_id')).toBeNull();
    await db.pool.query('delete from agentd.queue_controls where workspace_id = $1', [c.workspace]);
    // the end of the pause has shown it to the daemons
    expect(await run(id, 'is_parked')).toBe(false);
    expect(await admit()).toBe(1);
    expect(await run(id, 'job_id is not null')).toBe(true);
  });

  test('a run whose overlap policy is queue waits for earlier runs of its task', async () => {
    const task = await newTask(`overlap_policy='queue'`);
    const first = await newRun(task, { trigger: 'schedule' });
    const second = await newRun(task, { trigger: 'schedule' });
    const third = await newRun(task, { trigger: 'schedule' });
    const states = async (): Promise<unknown[]> =>
      Promise.all([first, second, third].map((id) => run(id, 'job_id is not null')));
    expect(await states()).toEqual([true, false, false]);
    await value(db.pool, 'select agentd.admit_runs($1)', [c.workspace]);
    expect(await states()).toEqual([true, false, false]);
    await db.pool.query(`update public.task_runs set status = 'cancelled' where id = $1`, [first]);
    await admit();
    expect(await states()).toEqual([true, true, false]);
  });
});

describe('new runs', () => {
  const insert = (task: string): Promise<string> =>
    inserted(db.pool, 'insert into public.task_runs (task_id) values ($1)', [task]);
  const sleepers = (): Promise<number | undefined> =>
    value(db.pool, `select count(*)::int from agentd.sleepers where queue = 'task-run'`);

  test('while a daemon sleeps, the first run of a burst gets its job in the insert and wakes it; the others wait to be admitted', async () => {
    const task = await newTask();
    await db.pool.query(`insert into agentd.sleepers (queue, worker_id) values ('task-run', 'w')`);
    const [first, second] = [await insert(task), await insert(task)];
    expect([await run(first, 'job_id is not null'), await run(second, 'job_id is not null')]).toEqual([
      true,
      false,
    ]);
    expect(await sleepers()).toBe(0);
    expect(await admit()).toBe(1);
    expect(await run(second, `(job_id is not null) || ' ' || is_parked`)).toBe('true false');
    expect(await admit()).toBe(0);
  });

  test('an insert that is rolled back leaves the sleeper its row', async () => {
    const task = await newTask();
    await db.pool.query(`insert into agentd.sleepers (queue, worker_id) values ('task-run', 'w')`);
    const client = await db.pool.connect();
    await client.query('begin');
    await client.query('insert into public.task_runs (task_id) values ($1)', [task]);
    await client.query('rollback');
    client.release();
    expect(await sleepers()).toBe(1);
    await db.pool.query(`delete from agentd.sleepers`);
  });

  test('runs beyond the ceiling are parked and not looked at again until a run of their workspace ends', async () => {
    const room = (await value<number>(db.pool, 'select agentd.workspace_room($1)', [c.workspace])) as number;
    const task = await newTask();
    const ids: string[] = [];
    for (let i = 0; i < room + 2; i++) ids.push(await insert(task));
    expect(await admit()).toBe(room);
    expect(
      await value(
        db.pool,
        'select array_agg(id order by seq) from public.task_runs where workspace_id = $1 and is_parked',
        [c.workspace],
      ),
    ).toEqual(ids.slice(-2));
    expect(await admit()).toBe(0);
    await db.pool.query(`update public.task_runs set status = 'cancelled' where id = $1`, [ids[0]]);
    expect(await run(ids[room] as string, 'is_parked')).toBe(false);
    expect(await admit()).toBe(1);
    expect(await run(ids[room] as string, 'job_id is not null')).toBe(true);
  });
});

describe('agentd.enqueue', () => {
  test('one live job a key; an unknown queue gives null and raises nothing', async () => {
    const enqueue = (queue: string, key: string): Promise<unknown> =>
      value(db.pool, `select agentd.enqueue($1, '{"run_id": "x"}', $2, null, null)`, [queue, key]);
    const key = crypto.randomUUID();
    expect(await enqueue('task-run', key)).toBeTypeOf('string');
    expect(await enqueue('task-run', key)).toBeNull();
    expect(await enqueue('no-such-queue', key)).toBeNull();
    await db.pool.query(`delete from pgboss.job where singleton_key = $1`, [key]);
  });

  test('what it writes is what pg-boss writes for the same job', async () => {
    const boss = new PgBoss({ ...bossOptions(db), supervise: false });
    boss.on('error', () => {});
    await boss.start();
    const [a, b] = [crypto.randomUUID(), crypto.randomUUID()];
    await boss.send('task-run', { run_id: a, workspace_id: null }, { singletonKey: a });
    await value(
      db.pool,
      `select agentd.enqueue('task-run', jsonb_build_object('run_id', $1::text), $1, null, null)`,
      [b],
    );
    const shape = (key: string): Promise<unknown> =>
      value(
        db.pool,
        `select to_jsonb(j) - 'id' - 'data' - 'singleton_key' - 'created_on' - 'start_after' - 'keep_until'
                || jsonb_build_object('retention', keep_until - start_after)
           from pgboss.job j where singleton_key = $1`,
        [key],
      );
    expect(await shape(b)).toEqual(await shape(a));
    await db.pool.query('delete from pgboss.job where singleton_key = any ($1)', [[a, b]]);
    await boss.stop({ graceful: false });
  });

  test('a database without pg-boss takes runs all the same, and they are found later', async () => {
    const bare = await testDatabase();
    try {
      const mine = await company(bare.pool);
      const task = await inserted(
        bare.pool,
        `insert into public.agent_tasks (agent_id, name) values ($1, 't')`,
        [mine.agent],
      );
      await bare.pool.query('alter schema pgboss rename to pgboss_away');
      const id = await inserted(bare.pool, 'insert into public.task_runs (task_id) values ($1)', [task]);
      await bare.pool.query(`select public.cancel_run($1)`, [
        await inserted(bare.pool, 'insert into public.task_runs (task_id) values ($1)', [task]),
      ]);
      expect(await value(bare.pool, 'select count(*)::int from agentd.queue_health')).toBe(0);
      await bare.pool.query('alter schema pgboss_away rename to pgboss');
      await admitWaitingRuns(bare);
      expect(
        await value(bare.pool, 'select job_id is not null from public.task_runs where id = $1', [id]),
      ).toBe(true);
    } finally {
      await bare.dispose();
    }
  });
});

describe('reconciling', () => {
  test('a run whose lease has lapsed goes back to the queue with a new job', async () => {
    const id = await newRun(await newTask());
    const before = await run(id, 'job_id');
    await db.pool.query(`update pgboss.job set state = 'active' where id = $1`, [before]);
    await db.pool.query(
      `update public.task_runs set status = 'running', lease_epoch = 1, lease_expires_at = agentd.now() + interval '1 minute' where id = $1`,
      [id],
    );
    await requeueLapsedRuns(db);
    expect(await run(id, 'status')).toBe('running');
    await db.pool.query(
      `update public.task_runs set lease_expires_at = agentd.now() - interval '1 second' where id = $1`,
      [id],
    );
    expect(await requeueLapsedRuns(db)).toBe(1);
    expect(await run(id, `status || ' ' || lease_epoch`)).toBe('queued 1');
    expect(await run(id, 'job_id')).not.toBe(before);
    expect(await value(db.pool, `select count(*)::int from pgboss.job where singleton_key = $1`, [id])).toBe(
      1,
    );
  });

  test('a queued run whose job is gone gets a new one; a waiting run that is due comes through the waiting room', async () => {
    const task = await newTask();
    const [queued, waiting, asleep] = [await newRun(task), await newRun(task), await newRun(task)];
    await db.pool.query(
      `update public.task_runs set created_at = created_at - interval '1 minute' where task_id = $1`,
      [task],
    );
    await db.pool.query(
      `update public.task_runs set status = 'waiting', wake_at = agentd.now() - interval '1 second' where id = $1`,
      [waiting],
    );
    await db.pool.query(
      `update public.task_runs set status = 'waiting', wake_at = agentd.now() + interval '1 hour' where id = $1`,
      [asleep],
    );
    await db.pool.query(`delete from pgboss.job where singleton_key = any ($1)`, [[queued, waiting, asleep]]);
    expect(await enqueueRunsWithoutJob(db)).toBe(1);
    expect(await enqueueRunsWithoutJob(db)).toBe(0);
    expect(await wakeDueRuns(db)).toBe(1);
    expect(await wakeDueRuns(db)).toBe(0);
    expect(await run(waiting, `status || ' ' || (job_id is null)`)).toBe('queued true');
    expect(await run(asleep, 'status')).toBe('waiting');
    expect(await admit()).toBe(1);
    expect(
      await value(db.pool, `select count(*)::int from pgboss.job where singleton_key = any ($1)`, [
        [queued, waiting],
      ]),
    ).toBe(2);
  });

  test('a job that a dead worker left active after its run had ended is dropped, and no other', async () => {
    const task = await newTask();
    const [ended, live, fresh] = [await newRun(task), await newRun(task), await newRun(task)];
    await db.pool.query(
      `update pgboss.job set state = 'active', started_on = now() - case when singleton_key = $2 then interval '1 second' else interval '1 hour' end
        where singleton_key = any ($1)`,
      [[ended, live, fresh], fresh],
    );
    await db.pool.query(`update public.task_runs set status = 'running' where id = $1`, [live]);
    await db.pool.query(`update public.task_runs set status = 'completed' where id = any ($1)`, [
      [ended, fresh],
    ]);
    expect(await dropStaleJobs(db)).toBe(1);
    expect(
      await value(db.pool, `select count(*)::int from pgboss.job where singleton_key = any ($1)`, [
        [live, fresh],
      ]),
    ).toBe(2);
  });

  test('silent workers are taken for dead and ask for no more notifications', async () => {
    await db.pool.query(
      `insert into agentd.workers (id, hostname, pid, version, last_seen_at) values ('dead', 'h', 1, 'v', now() - interval '2 minutes'), ('alive', 'h', 1, 'v', now())`,
    );
    await db.pool.query(
      `insert into agentd.sleepers (queue, worker_id) values ('q', 'dead'), ('q', 'alive'), ('q', 'unknown')`,
    );
    expect(await sweepWorkers(db)).toBe(1);
    expect(
      await value(db.pool, `select array_agg(worker_id) from agentd.sleepers where queue = 'q'`),
    ).toEqual(['alive']);
    expect(await value(db.pool, `select state from agentd.workers where id = 'dead'`)).toBe('stopped');
  });
});

describe('monitoring views', () => {
  test('they show what waits, is late, stuck and failed', async () => {
    const task = await newTask();
    const id = await newRun(task);
    await db.pool.query(
      `update public.agent_tasks set next_run_at = agentd.now() - interval '1 minute' where id = $1`,
      [task],
    );
    expect(
      await value(db.pool, 'select late_seconds >= 60 from agentd.late_tasks where task_id = $1', [task]),
    ).toBe(true);
    expect(
      await value(
        db.pool,
        `select ready >= 1 and oldest_ready_seconds >= 0 and not paused from agentd.queue_health where queue = 'task-run'`,
      ),
    ).toBe(true);
    expect(
      await value(db.pool, 'select queued::int from agentd.workspace_activity where workspace_id = $1', [
        c.workspace,
      ]),
    ).toBe(1);
    await db.pool.query(
      `update public.task_runs set status = 'running', lease_expires_at = agentd.now() - interval '1 minute' where id = $1`,
      [id],
    );
    expect(await value(db.pool, 'select problem from agentd.stuck_work where id = $1', [id])).toBe(
      'lease_lapsed',
    );
    await db.pool.query(
      `update public.task_runs set status = 'failed', reason_code = 'timeout', finished_at = agentd.now() where id = $1`,
      [id],
    );
    expect(
      await value(db.pool, 'select reason_code from agentd.recent_failures where run_id = $1', [id]),
    ).toBe('timeout');
    expect(
      await value(
        db.pool,
        'select failed_last_hour::int from agentd.workspace_activity where workspace_id = $1',
        [c.workspace],
      ),
    ).toBe(1);
    await db.pool.query(
      `insert into agentd.workers (id, hostname, pid, version, queues) values ('w1', 'h', 1, 'v', '{"task-run": 3}')`,
    );
    expect(await value(db.pool, `select alive from agentd.worker_health where id = 'w1'`)).toBe(true);
    expect(
      await value(db.pool, `select workers >= 1 from agentd.queue_health where queue = 'task-run'`),
    ).toBe(true);
  });
});
