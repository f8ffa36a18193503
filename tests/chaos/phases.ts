/** What is done to the daemons while they work, one thing after the other. */
import { setTimeout as pause } from 'node:timers/promises';
import type { Database } from '../../src/db/database.ts';
import type { ChaosPlan } from './chaos.ts';
import type { Violation } from './checks.ts';
import type { Fleet, Incarnation } from './fleet.ts';
import { countRuns, type Load } from './load.ts';
import type { Peers } from './peers.ts';
import { type Dice, orders } from './windows.ts';

/** So many failed runs are enough to know. */
const HOPELESS = 50;
/** A window that has not come after so long is left for later, in milliseconds. */
const WINDOW_PATIENCE_MS = 6_000;
/** So many running runs are a load. */
const BUSY = 12;
/** However slow the machine, kills go on after so many milliseconds. */
const LONGEST_PEACE_MS = 15_000;
/** Runs that do not become fewer for so long will not end, in milliseconds. */
const END_PATIENCE_MS = 90_000;

export type Scene = {
  readonly db: Database;
  readonly fleet: Fleet;
  readonly load: Load;
  readonly peers: Peers;
  readonly plan: ChaosPlan;
  readonly random: Dice;
};

export type Disturbances = {
  readonly kills: number;
  /** How long each SIGTERM took to end its daemon, in milliseconds. */
  readonly drains: readonly number[];
  readonly cuts: number;
  readonly restarts: readonly { from: number; to: number }[];
};

/** Kills, stops, cuts and restarts, as many as planned. */
export async function disturb(scene: Scene): Promise<Disturbances> {
  const { plan } = scene;
  const kills = await killDaemons(scene);
  plan.say(`${kills} kills are done; now ${plan.drains} × SIGTERM`);
  const drains: number[] = [];
  for (let i = 0; i < plan.drains; i++) {
    await underLoad(scene);
    drains.push(await scene.fleet.terminateOne(scene.random.next()));
    await pause(200);
  }
  return { kills, drains, ...(await cutAndRestart(scene)) };
}

/** Resolves when the daemons are busy, or after a while: whoever is told to stop is to have something in hand. */
async function underLoad({ db }: Scene): Promise<void> {
  for (let look = 0; look < 100; look++) {
    const [row] = await db.query<{ running: number }>(
      `select count(*)::integer as running from public.task_runs where status = 'running'`,
    );
    if ((row?.running ?? 0) >= BUSY) return;
    await pause(50);
  }
}

/** Two daemons at a time have an order, so that one whose moment does not come holds up nobody. */
async function killDaemons(scene: Scene): Promise<number> {
  const { plan, fleet, random, db } = scene;
  const waiting = orders(plan.kills, random);
  const stallEvery = plan.stalls > 0 ? Math.ceil(plan.kills / plan.stalls) : Number.POSITIVE_INFINITY;
  let kills = 0;
  let misses = 0;
  const lane = async (): Promise<void> => {
    for (let order = waiting.shift(); order; order = waiting.shift()) {
      if (!(await fleet.kill(order, WINDOW_PATIENCE_MS))) {
        // its moment did not come: later, and sooner
        waiting.push({ ...order, nth: 1 });
        if (++misses > plan.kills + 20) throw new Error(`The windows do not come: ${JSON.stringify(order)}`);
        continue;
      }
      const count = ++kills;
      const failed = await countRuns(db, ['failed']);
      if (failed > HOPELESS) waiting.length = 0;
      if (count % 25 === 0) {
        plan.say(`${count} kills, ${await countRuns(db, ['completed'])} runs completed, ${failed} failed`);
      }
      if (count % stallEvery === 0) await stallOne(scene);
      await peace(scene);
    }
  };
  await Promise.all([lane(), lane()]);
  return kills;
}

async function peace({ peers, plan }: Scene): Promise<void> {
  const { ms, calls } = plan.betweenKills;
  const from = Date.now();
  const enough = peers.calls.length + calls;
  await pause(ms);
  while (peers.calls.length < enough && Date.now() - from < LONGEST_PEACE_MS) await pause(50);
}

async function cutAndRestart({ plan, fleet, db }: Scene): Promise<Pick<Disturbances, 'cuts' | 'restarts'>> {
  const { restart } = plan;
  const planned = restart ? plan.restarts : 0;
  plan.say(`now ${plan.cuts} cut connections and ${planned} restarts of the server`);
  const rounds = Math.max(Math.ceil(plan.cuts / plan.cutsAtOnce), planned);
  const restarts: { from: number; to: number }[] = [];
  let cuts = 0;
  await fleet.allReady();
  for (let i = 0; i < rounds || cuts < plan.cuts; i++) {
    if (cuts < plan.cuts) cuts += await cutConnections(db, Math.min(plan.cutsAtOnce, plan.cuts - cuts));
    await pause(250);
    if (!restart || restarts.length >= Math.floor(((i + 1) * planned) / rounds)) continue;
    const one = { from: Date.now(), to: Number.POSITIVE_INFINITY };
    restarts.push(one);
    await restart(restarts.length % 2 === 0 ? 'fast' : 'immediate');
    await db.query('select 1');
    one.to = Date.now();
    await pause(2_000);
  }
  return { cuts, restarts };
}

/** Keeps work waiting until told to stop. */
export async function feed({ load, plan }: Scene, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    await load.fill(plan.daemons * plan.concurrency);
    await pause(300, undefined, { signal }).catch(() => {});
  }
}

/** Freezes a daemon that has runs until others have all of them and have gone on with them. */
async function stallOne({ db, fleet, plan: { leaseSeconds }, random }: Scene): Promise<void> {
  const held = async (one: Incarnation): Promise<number> => {
    const [row] = await db.query<{ n: number }>(
      `select count(*) as n from public.task_runs where worker_id = $1 and status in ('running', 'queued')`,
      [one.workerId],
    );
    return row?.n ?? 0;
  };
  for (;;) {
    const one = await fleet.free(random.next());
    if ((await held(one)) < 3) {
      one.isTaken = false;
      await pause(100);
      continue;
    }
    await one.stall(random.int(1, 4), async () => {
      const deadline = Date.now() + (leaseSeconds + 20) * 1000;
      await pause((leaseSeconds + 1) * 1000);
      while ((await held(one)) > 0 && Date.now() < deadline) await pause(100);
    });
    one.isTaken = false;
    return;
  }
}

/** Ends random sessions of agentd; returns how many. */
async function cutConnections(db: Database, count: number): Promise<number> {
  const cut = await db.query(
    `select pg_terminate_backend(pid)
         from (select pid from pg_stat_activity
                where datname = current_database() and application_name like 'agentd%'
                order by random() limit $1) chosen`,
    [count],
  );
  return cut.length;
}

/** Resolves when no run is open. If they do not become fewer for a while, those that are left are violations. */
export async function waitForTheEnd({ db, plan }: Scene): Promise<Violation[]> {
  let fewest = Number.POSITIVE_INFINITY;
  let since = Date.now();
  for (;;) {
    const open = await db.query(
      `select id, status, reason_code, worker_id, job_id, is_parked, claims_without_progress from public.task_runs
        where status in ('queued', 'running', 'waiting')`,
    );
    if (open.length === 0) return [];
    if (open.length < fewest) {
      fewest = open.length;
      since = Date.now();
    } else if (Date.now() - since > END_PATIENCE_MS) {
      return [{ invariant: 'everything ends', count: open.length, examples: open.slice(0, 5) }];
    }
    if (plan.ageJobs) await ageJobs(db);
    await pause(200);
  }
}

/** What half a minute would do. */
async function ageJobs(db: Database): Promise<void> {
  await db.query(
    `update pgboss.job set started_on = started_on - interval '1 minute'
      where name = 'task-run' and state = 'active' and started_on < now() - interval '3 seconds'
        and started_on > now() - interval '30 seconds'
        and not exists (select 1 from public.task_runs r where r.id::text = singleton_key and r.status = 'running')`,
  );
}
