/** The waiting room: who is let in, in which order, by whom, and what nobody waits for. */
import type pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { admitArrivals } from '../../src/db/jobs.ts';
import { admitWaitingRuns, WAITING_AT_ONCE } from '../../src/db/reconcile.ts';
import { claimRuns } from '../../src/db/runs.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform, makeTask, type Platform } from '../support/platform.ts';
import { until } from '../support/runs.ts';

const CEILING = 4;
let db: TestDatabase;
let platform: Platform;
let task: string;

beforeAll(async () => {
  db = await testDatabase({ max: 20 });
  await db.query('update agentd.queue_settings set workspace_ceiling = $1', [CEILING]);
});
afterAll(() => db?.dispose());
beforeEach(async () => {
  await db.query('delete from public.task_runs');
  await db.query('delete from pgboss.job');
  await db.query('delete from agentd.sleepers');
  await db.query('delete from agentd.queue_controls');
  platform = await makePlatform(db);
  task = await makeTask(db, platform);
});

type Client = Pick<pg.PoolClient, 'query'>;

/** Inserts runs in one statement; returns their ids in order. */
async function addRuns(
  count: number,
  on: Client = db.pool,
  taskId = task,
  trigger = 'manual',
): Promise<string[]> {
  const { rows } = await on.query<{ id: string }>(
    `with made as (
       insert into public.task_runs (task_id, trigger) select $1, $3::public.run_trigger from generate_series(1, $2::integer)
       returning id, seq)
     select id from made order by seq`,
    [taskId, count, trigger],
  );
  return rows.map((row) => row.id);
}

async function states(ids: readonly string[]): Promise<string[]> {
  const rows = await db.query<{ state: string }>(
    `select case when job_id is not null then 'in' when is_parked then 'parked' else 'new' end as state
       from public.task_runs r join unnest($1::uuid[]) with ordinality as o (id, place) on o.id = r.id order by o.place`,
    [ids],
  );
  return rows.map((row) => row.state);
}

async function countOf(state: string, workspaceId = platform.workspaceId): Promise<number> {
  const rows = await db.query<{ id: string }>('select id from public.task_runs where workspace_id = $1', [
    workspaceId,
  ]);
  return (await states(rows.map((row) => row.id))).filter((each) => each === state).length;
}

const asleep = (worker = 'w'): Promise<unknown> =>
  db.query(`insert into agentd.sleepers (queue, worker_id) values ('task-run', $1)`, [worker]);

/** Ends runs as their worker does, and lets the next ones in. */
async function end(ids: readonly string[], on: Client = db.pool): Promise<void> {
  await on.query(
    `update public.task_runs set status = 'completed', finished_at = agentd.now() where id = any ($1::uuid[])`,
    [ids],
  );
  await on.query('select agentd.admit_workspaces($1::uuid[])', [[platform.workspaceId]]);
}

describe('an insert', () => {
  test('parks what comes after the first 32 that wait, so that others stand right behind them', async () => {
    const many = await addRuns(100);
    const other = await makePlatform(db);
    const [foreign] = await addRuns(1, db.pool, await makeTask(db, other));
    expect(await countOf('new')).toBe(32);
    expect(await countOf('parked')).toBe(68);
    expect(await admitArrivals(db)).toBe(CEILING + 1);
    expect(await states([foreign as string])).toEqual(['in']);
    expect(await states(many.slice(0, CEILING + 1))).toEqual([...Array(CEILING).fill('in'), 'parked']);
  });

  test('makes the job itself while a daemon sleeps, unless somebody of the workspace waits already', async () => {
    const [older] = await addRuns(1);
    await asleep();
    const [younger] = await addRuns(1);
    expect(await states([older as string, younger as string])).toEqual(['new', 'new']);
    // but the daemon is woken
    expect(await db.query('select 1 from agentd.sleepers')).toEqual([]);
    await admitArrivals(db);
    await asleep();
    const [next] = await addRuns(1);
    expect(await states([next as string])).toEqual(['in']);
  });

  test('leaves a full workspace’s run to those that end, and wakes nobody', async () => {
    await addRuns(CEILING);
    await admitArrivals(db);
    await asleep();
    const [waiting] = await addRuns(1);
    expect(await states([waiting as string])).toEqual(['new']);
    expect(await db.query('select 1 from agentd.sleepers')).toHaveLength(1);
  });
});

describe('a daemon', () => {
  test('lets in whoever has waited longest, also before runs that have just come', async () => {
    const first = await addRuns(CEILING + 2);
    await admitArrivals(db);
    await db.query(`update agentd.queue_settings set workspace_ceiling = $1`, [CEILING + 1]);
    const [newer] = await addRuns(1);
    await admitArrivals(db);
    await db.query(`update agentd.queue_settings set workspace_ceiling = $1`, [CEILING]);
    expect(await states([...first, newer as string])).toEqual([
      ...Array(CEILING + 1).fill('in'),
      'parked',
      'parked',
    ]);
  });

  test('lets the next one in with the transaction that ends one, in order', async () => {
    const ids = await addRuns(CEILING + 3);
    await admitArrivals(db);
    await end(ids.slice(0, 2));
    expect(await states(ids.slice(2))).toEqual([...Array(CEILING).fill('in'), 'parked']);
  });

  test('finds whoever waits although there is room, however many workspaces there are', async () => {
    const workspaces = WAITING_AT_ONCE + 20;
    await db.query(
      `with owner as (insert into auth.users (email) select 'w' || n || '@example.test' from generate_series(1, $1) n returning id),
            agent as (insert into public.agents (workspace_id, user_id, name)
                      select w.id, o.id, 'a' from owner o cross join lateral (select gen_random_uuid() as id) x
                        join public.workspaces w on w.owner_user_id = o.id returning id)
       select count(*) from agent`,
      [workspaces],
    );
    await db.query(
      `insert into public.agents (workspace_id, user_id, name)
       select w.id, w.owner_user_id, 'a' from public.workspaces w
        where w.is_personal and not exists (select 1 from public.agents a where a.workspace_id = w.id)`,
    );
    await db.query(
      `insert into public.agent_tasks (workspace_id, user_id, agent_id, name)
       select a.workspace_id, a.user_id, a.id, 't' from public.agents a where a.name = 'a'`,
    );
    const [made] = await db.query<{ runs: number }>(
      `with run as (
         insert into public.task_runs (task_id, is_parked) select id, true from public.agent_tasks where name = 't' returning id)
       select count(*)::integer as runs from run`,
    );
    await db.query('update public.task_runs set is_parked = true');
    expect(made?.runs).toBeGreaterThanOrEqual(workspaces);
    let admitted = 0;
    let after: string | null = null;
    let looks = 0;
    do {
      const look = await admitWaitingRuns(db, after);
      admitted += look.admitted;
      after = look.last;
      looks++;
    } while (after !== null);
    expect(admitted).toBe(made?.runs);
    expect(looks).toBeGreaterThan(1);
  });
});

describe('runs of a task that go one after the other', () => {
  test('hold back neither each other’s order nor runs of other tasks, however many wait', async () => {
    const serial = await makeTask(db, platform, { overlap_policy: 'queue', name: 'serial' });
    const queue = await addRuns(300, db.pool, serial, 'schedule');
    const others = await addRuns(2);
    await admitArrivals(db);
    expect(await states([...queue.slice(0, 2), ...others])).toEqual(['in', 'parked', 'in', 'in']);
    await end([queue[0] as string]);
    expect(await states(queue.slice(1, 3))).toEqual(['in', 'parked']);
  });

  test('of one task wait for a run of it that a person started, and of other tasks do not', async () => {
    const [a, b] = [
      await makeTask(db, platform, { overlap_policy: 'queue', name: 'a' }),
      await makeTask(db, platform, { overlap_policy: 'queue', name: 'b' }),
    ];
    const [manual] = await addRuns(1, db.pool, a);
    const [first] = await addRuns(1, db.pool, a, 'schedule');
    const [free] = await addRuns(1, db.pool, b, 'schedule');
    await admitArrivals(db);
    const all = [manual, first, free] as string[];
    expect(await states(all)).toEqual(['in', 'parked', 'in']);
    await end([manual as string]);
    expect(await states(all)).toEqual(['in', 'in', 'in']);
  });

  test('of more tasks than one look considers all have their turn', async () => {
    const tasks = 150;
    await db.query(
      `insert into public.agent_tasks (workspace_id, user_id, agent_id, name, overlap_policy)
       select $1, $2, $3, 'one of many', 'queue' from generate_series(1, $4)`,
      [platform.workspaceId, platform.userId, platform.agentId, tasks],
    );
    await db.query(`update agentd.queue_settings set workspace_ceiling = $1`, [2 * tasks]);
    // of each task one runs and one waits; only of the last task, by id, nothing runs
    await db.query(
      `insert into public.task_runs (task_id, trigger) select id, 'manual' from public.agent_tasks where name = 'one of many'`,
    );
    while ((await admitArrivals(db)) > 0);
    await db.query(
      `insert into public.task_runs (task_id, trigger) select id, 'schedule' from public.agent_tasks where name = 'one of many'`,
    );
    await admitArrivals(db);
    const [last] = await db.query<{ id: string; run: string }>(
      `select t.id, (select r.id from public.task_runs r where r.task_id = t.id and r.is_serial) as run
         from public.agent_tasks t where t.name = 'one of many' order by t.id desc limit 1`,
    );
    if (!last) throw new Error('There is no task.');
    await db.query(
      `update public.task_runs set status = 'completed', finished_at = now() where task_id = $1 and not is_serial`,
      [last.id],
    );
    let looks = 0;
    while ((await states([last.run]))[0] !== 'in' && looks < 1_000) {
      looks++;
      await admitWaitingRuns(db);
    }
    await db.query(`update agentd.queue_settings set workspace_ceiling = $1`, [CEILING]);
    expect(await states([last.run])).toEqual(['in']);
  });
});

describe('a paused workspace', () => {
  const pause = (): Promise<unknown> =>
    db.query(`insert into agentd.queue_controls (queue, workspace_id) values ('task-run', $1)`, [
      platform.workspaceId,
    ]);

  test('lets nobody in, and gives back at the claim what was let in before', async () => {
    const [before] = await addRuns(1);
    await admitArrivals(db);
    await pause();
    const [after] = await addRuns(1);
    expect(await admitArrivals(db)).toBe(0);
    const [claimed] = await claimRuns(db, [before as string], 'worker', 15);
    expect(claimed).toMatchObject({ refused: true, again_in_ms: null });
    expect(await states([before, after] as string[])).toEqual(['parked', 'parked']);
    const [run] = await db.query('select status, lease_epoch from public.task_runs where id = $1', [before]);
    expect(run).toEqual({ status: 'queued', lease_epoch: 0 });
  });

  test('shows itself to the daemons when the pause ends, and wakes one', async () => {
    await pause();
    const ids = await addRuns(2);
    await admitArrivals(db);
    expect(await states(ids)).toEqual(['parked', 'parked']);
    await asleep();
    await db.query('delete from agentd.queue_controls');
    expect(await db.query('select 1 from agentd.sleepers')).toEqual([]);
    expect(await admitArrivals(db)).toBe(2);
  });

  test('goes on with a run that is being executed', async () => {
    const [id] = await addRuns(1);
    await admitArrivals(db);
    const [claimed] = await claimRuns(db, [id as string], 'worker', 15);
    await pause();
    expect(claimed).toMatchObject({ lease_epoch: 1 });
    expect(
      await db.query('select 1 from public.task_runs where id = $1 and status = $2', [id, 'running']),
    ).toHaveLength(1);
  });
});

test('a run without a place is not claimed, whatever old job asks for it', async () => {
  const [id] = await addRuns(1);
  const [claimed] = await claimRuns(db, [id as string], 'worker', 15);
  expect(claimed).toMatchObject({ refused: true, status: 'queued', again_in_ms: null });
});

// The embedded database has one backend: there is nobody to race with.
describe.runIf(onServer)('server-only: several at once', () => {
  type Open = pg.PoolClient & { finish(): Promise<void>; [Symbol.asyncDispose](): Promise<void> };

  /** A transaction that stays open until it is told; rolled back where a test ends before. */
  async function open(begin = 'begin', patience = '250ms'): Promise<Open> {
    const client = await db.pool.connect();
    await client.query(`${begin}; set local lock_timeout = '${patience}'`);
    let isOpen = true;
    const end = async (how: string): Promise<void> => {
      if (!isOpen) return;
      isOpen = false;
      await client.query(how).finally(() => client.release());
    };
    return Object.assign(client, {
      finish: () => end('commit'),
      [Symbol.asyncDispose]: () => end('rollback'),
    });
  }

  test('daemons that let in the same workspace’s runs never pass its ceiling', async () => {
    for (let round = 0; round < 10; round++) {
      await db.query('delete from public.task_runs');
      await addRuns(20);
      await Promise.all(Array.from({ length: 8 }, () => admitArrivals(db)));
      expect(await countOf('in')).toBe(CEILING);
    }
  });

  test('a daemon counts what another has let in but not committed yet, by waiting for it', async () => {
    const ids = await addRuns(CEILING + 2);
    await admitArrivals(db);
    await using one = await open();
    await using two = await open('begin', '20s');
    await end(ids.slice(0, 1), one);
    const second = end(ids.slice(1, 2), two);
    await until('the second waits at the door', async () => {
      const rows = await db.query(
        `select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`,
      );
      return rows.length > 0;
    });
    await one.finish();
    await second;
    await two.finish();
    expect(await states(ids)).toEqual(Array(CEILING + 2).fill('in'));
    expect(await countOf('in')).toBe(CEILING + 2);
    const [live] = await db.query(
      `select count(*)::integer as n from public.task_runs where status = 'queued' and job_id is not null`,
    );
    expect(live).toEqual({ n: CEILING });
  });

  test('an end that is not committed yet leaves its place to a run that comes meanwhile', async () => {
    const ids = await addRuns(CEILING);
    await admitArrivals(db);
    await using ending = await open();
    await end(ids.slice(0, 1), ending);
    const [late] = await addRuns(1);
    const look = admitArrivals(db);
    await ending.finish();
    await look;
    await admitArrivals(db);
    expect(await states([late as string])).toEqual(['in']);
  });

  test('a daemon waits for no transaction of an application, and passes no ceiling behind its back', async () => {
    await asleep();
    await using application = await open();
    await addRuns(1, application);
    const others = await addRuns(CEILING + 1);
    // without a lock_timeout, waiting would be for ever
    await admitArrivals(db);
    await end([]);
    expect(await countOf('in')).toBe(0);
    await application.finish();
    await admitArrivals(db);
    expect(await countOf('in')).toBe(CEILING);
    expect(await states(others.slice(CEILING - 1))).toEqual(['parked', 'parked']);
  });

  test('runs behind such a transaction do not stand before others’ for longer than a second', async () => {
    await asleep();
    await using application = await open();
    await addRuns(1, application);
    const mine = await addRuns(3);
    await admitArrivals(db);
    expect(await states(mine)).toEqual(['new', 'new', 'new']);
    await db.query(`update public.task_runs set created_at = created_at - interval '2 seconds'`);
    await admitArrivals(db);
    expect(await states(mine)).toEqual(['parked', 'parked', 'parked']);
    await application.finish();
    expect((await admitWaitingRuns(db)).admitted).toBe(3);
  });

  test('an insert whose transaction sees an old snapshot leaves its run to the daemons, and does not fail', async () => {
    await asleep();
    await using application = await open('begin isolation level repeatable read');
    await application.query('select 1');
    // takes the sleeper's row, which the application still sees
    await addRuns(CEILING);
    await admitArrivals(db);
    const [id] = await addRuns(1, application);
    await application.finish();
    expect(await states([id as string])).toEqual(['new']);
    expect(await admitArrivals(db)).toBe(0);
  });

  test('a cancellation with an old snapshot does not fail either', async () => {
    const ids = await addRuns(CEILING + 2);
    await admitArrivals(db);
    await using application = await open('begin isolation level repeatable read');
    await application.query('select 1');
    await end(ids.slice(0, 1));
    await application.query(`update public.task_runs set status = 'cancelled' where id = $1`, [ids[1]]);
    await application.finish();
    await admitWaitingRuns(db);
    expect(await states(ids)).toEqual(Array(CEILING + 2).fill('in'));
  });

  test('a cancellation waits for nobody who is behind the doors, and shows the next run to the daemons', async () => {
    const ids = await addRuns(CEILING + 1);
    await admitArrivals(db);
    await using daemon = await open();
    await end(ids.slice(0, 1), daemon);
    // without a lock_timeout, waiting would be for ever
    await db.query(`update public.task_runs set status = 'cancelled' where id = $1`, [ids[1]]);
    await daemon.finish();
    expect(await countOf('in')).toBe(CEILING + 1);
  });

  test('a door that stays shut costs a checkpoint its patience, not its transaction', async () => {
    const ids = await addRuns(CEILING + 1);
    await admitArrivals(db);
    await using other = await open();
    await other.query('select agentd.hold_lock(agentd.inner_door($1))', [platform.workspaceId]);
    await using worker = await open();
    await end(ids.slice(0, 1), worker);
    await worker.finish();
    expect(await states(ids.slice(CEILING))).toEqual(['parked']);
    await other.finish();
    expect((await admitWaitingRuns(db)).admitted).toBe(1);
  });

  test('two checkpoints that end runs of the same workspaces in opposite order both succeed', async () => {
    const second = await makePlatform(db);
    const both = [platform.workspaceId, second.workspaceId];
    await addRuns(CEILING + 3);
    await addRuns(CEILING + 3, db.pool, await makeTask(db, second));
    await admitArrivals(db);
    for (let round = 0; round < 20; round++) {
      await Promise.all(
        [both, both.toReversed()].map((order) =>
          db.query('select agentd.admit_workspaces($1::uuid[])', [order]),
        ),
      );
    }
    expect([await countOf('in'), await countOf('in', second.workspaceId)]).toEqual([CEILING, CEILING]);
  });
});
