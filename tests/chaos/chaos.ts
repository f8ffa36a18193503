/**
 * Many daemons work a load while they are killed at named places, told to stop, frozen, cut off from their database
 * and restarted with it. Then everything is let end, and what the database and the outside world hold is compared.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Database, openDatabase } from '../../src/db/database.ts';
import { callWrites, installAudit, runEvents } from './audit.ts';
import { checkDatabase, type Violation } from './checks.ts';
import { Fleet } from './fleet.ts';
import { type History, readHistory } from './history.ts';
import { countAll, makeLoad, patiently } from './load.ts';
import { startPeers } from './peers.ts';
import { disturb, feed, type Scene, waitForTheEnd } from './phases.ts';
import type { RestartMode } from './server.ts';
import { dice } from './windows.ts';

export type ChaosPlan = {
  /** A migrated database of its own. */
  readonly databaseUrl: string;
  readonly seed: number;
  /** Runs at least. */
  readonly runs: number;
  readonly kills: number;
  /** Daemons frozen for longer than their lease. */
  readonly stalls: number;
  /** SIGTERMs under load. */
  readonly drains: number;
  /** A daemon's patience when it is told to stop: from none to so many seconds. */
  readonly longestDrainSeconds: number;
  /** Connections ended by the server, and in how many goes. */
  readonly cuts: number;
  readonly cutsAtOnce: number;
  /** Restarts of the server; none where it is not ours. */
  readonly restarts: number;
  readonly restart?: (mode: RestartMode) => Promise<void>;
  readonly daemons: number;
  /** Runs that each daemon executes at once. */
  readonly concurrency: number;
  readonly leaseSeconds: number;
  readonly modelMs: readonly [number, number];
  readonly toolMs: readonly [number, number];
  /** A run needs some peace to get on: milliseconds and calls at the peers between two kills of a lane (there are two). */
  readonly betweenKills: { readonly ms: number; readonly calls: number };
  /** Lets jobs of dead workers that were never claimed count as old at once, instead of after half a minute. */
  readonly ageJobs: boolean;
  readonly say: (line: string) => void;
};

export type ChaosReport = {
  readonly runs: number;
  readonly occurrences: number;
  readonly calls: number;
  readonly kills: number;
  readonly cuts: number;
  readonly restarts: number;
  readonly drains: readonly number[];
  readonly stalls: number;
  readonly checks: number;
  readonly seconds: number;
  readonly events: ReadonlyMap<string, number>;
  /** A line of the log for each event that is an error. */
  readonly errors: readonly string[];
  readonly history: History;
  readonly violations: readonly Violation[];
};

/** Does it. Rejects only where the harness itself is at fault; what agentd does wrong is in `violations`. */
export async function runChaos(plan: ChaosPlan): Promise<ChaosReport> {
  const { say } = plan;
  const started = Date.now();
  const random = dice(plan.seed);
  const own = openDatabase({
    url: plan.databaseUrl,
    embedded: false,
    max: 4,
    applicationName: 'chaos',
    onError: () => {},
  });
  // what the harness asks can be asked again
  const db: Database = { ...own, query: (text, values) => patiently(() => own.query(text, values)) };
  await installAudit(db);
  const load = await makeLoad(db, {
    workspaces: 12,
    scheduledTasks: 6,
    periodSeconds: 2,
    random: dice(plan.seed + 1),
  });
  const patience = dice(plan.seed + 3);
  const compileCache = await mkdtemp(join(tmpdir(), 'agentd-code-'));
  let fleet: Fleet | null = null;
  const peers = await startPeers({
    random: dice(plan.seed + 2),
    onCall: (call) => fleet?.incarnation(call.incarnation)?.onCall() ?? false,
    modelMs: plan.modelMs,
    toolMs: plan.toolMs,
  });
  fleet = new Fleet({
    databaseUrl: plan.databaseUrl,
    toolsUrl: peers.toolsUrl,
    modelUrl: peers.model.url,
    admit: peers.admit,
    leaseSeconds: plan.leaseSeconds,
    concurrency: plan.concurrency,
    compileCache,
    drainSeconds: () => patience.int(0, plan.longestDrainSeconds),
  });
  const scene: Scene = { db, fleet, load, peers, plan, random };
  const feeding = new AbortController();
  const fed = feed(scene, feeding.signal);
  let done: Awaited<ReturnType<typeof disturb>>;
  let late: Violation[];
  try {
    await fleet.start(plan.daemons);
    say(`${plan.daemons} daemons work; seed ${plan.seed}`);
    done = await disturb(scene).finally(() => feeding.abort());
    await fed;
    say('everything is let end');
    await load.endSchedules();
    await load.fill(plan.runs - (await countAll(db)));
    late = await waitForTheEnd(scene);
  } finally {
    feeding.abort();
    await fleet.stop();
    await peers.close();
    await rm(compileCache, { recursive: true, force: true });
  }

  const { checked, violations: inDatabase } = await checkDatabase(db, load);
  const history = readHistory({
    incarnations: fleet.all,
    calls: peers.calls,
    runEvents: await runEvents(db),
    callWrites: await callWrites(db),
    restarts: done.restarts,
    leaseSeconds: plan.leaseSeconds,
  });
  const violations = [...late, ...inDatabase, ...history.violations];
  const itself = fleet.all.filter((one) => one.endedByItself);
  if (itself.length > 0)
    violations.push({
      invariant: 'no daemon ends by itself, and each ends when told to',
      count: itself.length,
      examples: itself.slice(0, 3).map((one) => one.lastWords()),
    });
  if (peers.model.rejected.length > 0)
    violations.push({
      invariant: 'no request is malformed',
      count: peers.model.rejected.length,
      examples: peers.model.rejected.slice(0, 5),
    });
  const report: ChaosReport = {
    runs: await countAll(db),
    occurrences: Number(
      (await db.query<{ n: number }>('select count(scheduled_for) as n from public.task_runs'))[0]?.n,
    ),
    calls: peers.calls.length,
    kills: done.kills,
    cuts: done.cuts,
    restarts: done.restarts.length,
    drains: done.drains,
    stalls: fleet.all.reduce((sum, one) => sum + one.stalls.length, 0),
    checks: checked,
    seconds: (Date.now() - started) / 1000,
    events: fleet.events,
    errors: [...fleet.errors.values()],
    history,
    violations,
  };
  await own.close();
  return report;
}
