/** Many tenants on several daemons: ceilings, order, pauses. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { type TestDaemon, testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform, makeTask } from '../support/platform.ts';
import { until } from '../support/runs.ts';

const CEILING = 3;
const SLOTS = 8;

let db: TestDatabase;
let model: ModelServer;
let daemons: TestDaemon[];
/** Requests under way, by tenant, and the most there were at once. */
let under: Map<string, number>;
let most: Map<string, number>;
let held: (() => void)[];

beforeEach(async () => {
  if (!onServer) return;
  db = await testDatabase();
  model = await startModelServer();
  await db.query('update agentd.queue_settings set workspace_ceiling = $1', [CEILING]);
  [under, most, held] = [new Map(), new Map(), []];
  model.respond(async ({ userText }) => {
    const now = (under.get(userText) ?? 0) + 1;
    under.set(userText, now);
    most.set(userText, Math.max(most.get(userText) ?? 0, now));
    await new Promise<void>((resolve) => held.push(resolve));
    under.set(userText, (under.get(userText) ?? 1) - 1);
    return { content: 'done' };
  });
  daemons = await Promise.all(
    [1, 2, 3].map(() =>
      testDaemon(db, model, { env: { AGENTD_QUEUES: `task-run=${SLOTS}` }, leaseSeconds: 30 }),
    ),
  );
});
afterEach(async () => {
  if (!onServer) return;
  for (const release of held) release();
  await Promise.all(daemons.map((daemon) => daemon.stop()));
  expect(model.rejected).toEqual([]);
  await model.close();
  await db.dispose();
});

type Tenant = { readonly name: string; readonly workspaceId: string; readonly taskId: string };

async function makeTenant(name: string): Promise<Tenant> {
  const { workspaceId, ...rest } = await makePlatform(db);
  const taskId = await makeTask(db, { workspaceId, ...rest }, { instructions: name });
  return { name, workspaceId, taskId };
}

const addRuns = (tenant: Tenant, count: number): Promise<unknown> =>
  db.query('insert into public.task_runs (task_id) select $1 from generate_series(1, $2::integer)', [
    tenant.taskId,
    count,
  ]);

async function completed(tenant: Tenant): Promise<number> {
  const [row] = await db.query<{ n: number }>(
    `select count(*)::integer as n from public.task_runs where task_id = $1 and status = 'completed'`,
    [tenant.taskId],
  );
  return row?.n ?? 0;
}

/** Lets the model answer whatever it is asked until so many of the tenant's runs have ended. */
const untilCompleted = (tenant: Tenant, count: number): Promise<true> =>
  until(`${count} runs of ${tenant.name} have ended`, async () => {
    for (const release of held.splice(0)) release();
    return (await completed(tenant)) >= count;
  });

/** The most places that a workspace had, as each transaction that changed a run saw it at its end. */
async function watchPlaces(): Promise<() => Promise<Record<string, number>>> {
  await db.query(`
    create table public.places (workspace_id uuid not null, taken integer not null);
    create function public.count_places() returns trigger language plpgsql security definer as $$
    begin
      insert into public.places
      select workspace_id, count(*) from public.task_runs
       where status = 'running' or (status = 'queued' and job_id is not null)
       group by workspace_id;
      return null;
    end $$;
    create trigger count_places after insert or update on public.task_runs
      for each statement execute function public.count_places();
  `);
  return async () => {
    const rows = await db.query<{ workspace_id: string; most: number }>(
      'select workspace_id, max(taken) as most from public.places group by workspace_id',
    );
    return Object.fromEntries(rows.map((row) => [row.workspace_id, row.most]));
  };
}

describe.runIf(onServer)('server-only: three daemons', () => {
  test('pass no ceiling, keep the order, and let no tenant wait behind another’s backlog', async () => {
    const large = await makeTenant('large');
    const small = await Promise.all(['a', 'b', 'c', 'd'].map(makeTenant));
    const mostPlaces = await watchPlaces();
    const runs = 40;
    await addRuns(large, runs);
    await until('the large one fills its places', () => (under.get('large') ?? 0) === CEILING);
    for (const tenant of small) await addRuns(tenant, 2);
    await until('all of the small ones are under way', () =>
      small.every((tenant) => under.get(tenant.name) === 2),
    );
    // although nothing of the large one has ended
    expect(await completed(large)).toBe(0);

    await untilCompleted(large, runs);
    expect(most.get('large')).toBe(CEILING);
    for (const taken of Object.values(await mostPlaces())) expect(taken).toBeLessThanOrEqual(CEILING);
    const places = await db.query<{ late: number }>(
      `select abs(row_number() over (order by started_at) - row_number() over (order by seq))::integer as late
         from public.task_runs where task_id = $1`,
      [large.taskId],
    );
    expect(Math.max(...places.map((row) => row.late))).toBeLessThan(CEILING);
    expect(await db.query('select 1 from public.task_runs where lease_epoch <> 1')).toEqual([]);
  });

  test('claim nothing of a paused workspace, go on with the others, and take it up again at once', async () => {
    const [paused, other] = [await makeTenant('paused'), await makeTenant('other')];
    await addRuns(paused, 12);
    await until('it fills its places', () => (under.get('paused') ?? 0) === CEILING);
    const [pause] = await db.query<{ paused_at: Date }>(
      `insert into agentd.queue_controls (queue, workspace_id, paused_at) values ('task-run', $1, agentd.now()) returning paused_at`,
      [paused.workspaceId],
    );
    if (!pause) throw new Error('It is not paused.');
    await addRuns(paused, 3);
    await addRuns(other, 12);
    await untilCompleted(other, 12);
    // what ran has gone on to its end
    await untilCompleted(paused, CEILING);
    expect(await completed(paused)).toBe(CEILING);
    expect(under.get('paused')).toBe(0);
    const late = await db.query('select 1 from public.task_runs where task_id = $1 and started_at > $2', [
      paused.taskId,
      pause.paused_at,
    ]);
    expect(late).toEqual([]);

    await db.query('delete from agentd.queue_controls');
    await until('it goes on', () => (under.get('paused') ?? 0) === CEILING);
    await untilCompleted(paused, 15);
    expect(most.get('paused')).toBe(CEILING);
  });

  test('begin nothing while the whole queue is paused, and all obey within a second', async () => {
    const tenant = await makeTenant('tenant');
    const said = (event: string): Promise<true> =>
      until(`all daemons say ${event}`, () =>
        daemons.every((daemon) => daemon.log.some((line) => line.includes(`"event":"${event}"`))),
      );
    const began = performance.now();
    await db.query(`insert into agentd.queue_controls (queue) values ('task-run')`);
    await said('queue_paused');
    expect(performance.now() - began).toBeLessThan(5_000);
    await addRuns(tenant, 5);
    // long enough for each of them to have looked: the repairs let the runs in meanwhile
    await until('they are let in', async () => {
      const rows = await db.query(`select 1 from public.task_runs where job_id is not null`);
      return rows.length === CEILING;
    });
    expect(model.requests).toEqual([]);
    const [resumed] = await db.query<{ at: Date }>(
      `with gone as (delete from agentd.queue_controls returning 1) select agentd.now() as at from gone`,
    );
    await untilCompleted(tenant, 5);
    const early = await db.query('select 1 from public.task_runs where started_at < $1', [resumed?.at]);
    expect(early).toEqual([]);
  });
});
