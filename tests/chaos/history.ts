/** Puts what the peers saw beside what the database saw: which calls were repeated, by whom, and why. */
import type { CallWrite, RunEvent } from './audit.ts';
import type { Violation } from './checks.ts';
import type { Incarnation } from './fleet.ts';
import type { Call } from './peers.ts';
import type { Window } from './windows.ts';

/** Why a daemon lost a run: it was killed, told to stop, frozen, without a database, or too slow to keep its lease. */
export type Cause = Window | 'SIGTERM' | 'stalled' | 'restart' | 'slow';

export type Tally = {
  /** Daemons that ended so. */
  ends: number;
  /** Calls that a peer had and whose outcome the daemon did not get committed. */
  unrecorded: number;
  repeats: number;
  unknownWrites: number;
  /** For each run that it lost: milliseconds from its end until that was noticed, and until the next claim. */
  takeovers: { noticedMs: number; claimedMs: number }[];
  handedBack: number;
};

export type History = {
  readonly tallies: ReadonlyMap<Cause, Tally>;
  readonly repeats: number;
  /** Calls that a daemon sent after it had lost the run and before it could know: it had been frozen, or starved. */
  readonly lateCalls: number;
  readonly violations: Violation[];
};

export type Evidence = {
  readonly incarnations: readonly Incarnation[];
  readonly calls: readonly Call[];
  readonly runEvents: readonly RunEvent[];
  readonly callWrites: readonly CallWrite[];
  /** Restarts of the database, from the order to the first answer. */
  readonly restarts: readonly { from: number; to: number }[];
  readonly leaseSeconds: number;
};

type Handover = {
  run: string;
  from: string;
  at: number;
  kind: 'handed back' | 'lapsed';
  claimedAt: number | null;
};

const SETTLED = new Set(['completed', 'failed', 'unknown', 'denied']);

export function readHistory(evidence: Evidence): History {
  const { incarnations, calls, callWrites } = evidence;
  const byWorker = new Map(incarnations.map((one) => [one.workerId, one]));
  const found = new Map<string, unknown[]>();
  const wrong = (invariant: string, fact: unknown): void => {
    found.set(invariant, [...(found.get(invariant) ?? []), fact]);
  };
  const tallies = new Map<Cause, Tally>();
  const tally = (cause: Cause): Tally => {
    const known = tallies.get(cause) ?? emptyTally();
    tallies.set(cause, known);
    return known;
  };

  const settledAt = new Map<string, number>();
  const settledBy = new Map<string, string>();
  const lastStatus = new Map<string, CallWrite>();
  const intentBy = new Map<string, CallWrite>();
  for (const write of callWrites) {
    lastStatus.set(write.key, write);
    if (write.status === 'started') intentBy.set(write.key, write);
    if (!SETTLED.has(write.status)) continue;
    if (settledAt.has(write.key)) wrong('an outcome is written once', write);
    settledAt.set(write.key, write.at);
    settledBy.set(write.key, write.writer);
  }

  const handovers = findHandovers(evidence.runEvents);
  const lapsed = new Map<string, Handover[]>();
  for (const one of handovers)
    if (one.kind === 'lapsed') lapsed.set(one.run, [...(lapsed.get(one.run) ?? []), one]);
  for (const one of handovers) {
    const from = byWorker.get(one.from);
    if (!from) {
      wrong('every worker is one of ours', one);
      continue;
    }
    if (one.kind === 'handed back') tally(from.killedIn ?? 'SIGTERM').handedBack++;
    else {
      const cause = causeOf(from, one.at, one.at, evidence) ?? 'slow';
      const stall = from.stalls.findLast((s) => s.from <= one.at);
      const lostAt =
        from.exitedAt !== null && from.exitedAt <= one.at ? from.exitedAt : (stall?.from ?? one.at);
      tally(cause).takeovers.push({
        noticedMs: one.at - lostAt,
        claimedMs: (one.claimedAt ?? one.at) - lostAt,
      });
    }
  }

  // Ends, and what was open at each.
  const openBy = new Map<Incarnation, number>();
  const callsBy = Map.groupBy(calls, (call) => call.incarnation);
  for (const one of incarnations) {
    for (const [cause, from, to] of endsOf(one)) {
      const open = new Set(
        (callsBy.get(one.number) ?? [])
          .filter((call) => call.arrivedAt >= from && call.arrivedAt <= to)
          .filter((call) => settledBy.get(call.key) !== `agentd ${one.workerId}`)
          .map((call) => call.key),
      );
      const here = tally(cause);
      here.ends++;
      here.unrecorded += open.size;
      openBy.set(one, (openBy.get(one) ?? 0) + open.size);
    }
  }

  let repeats = 0;
  let lateCalls = 0;
  const repeatsBy = new Map<Incarnation, number>();
  for (const [key, made] of Map.groupBy(calls, (call) => call.key)) {
    const last = lastStatus.get(key);
    if (!last) wrong('every call has its intent in the journal', made[0]);
    if (made.some((call) => call.kind === 'write') && made.length > 1)
      wrong('a call that writes is never repeated', made);
    repeats += made.length - 1;
    const lostBefore = (one: Incarnation | undefined, at: number): boolean =>
      (lapsed.get(last?.run ?? '') ?? []).some((h) => h.from === one?.workerId && h.at <= at);
    for (const [i, call] of made.entries()) {
      const by = incarnations[call.incarnation];
      // frozen, or without a processor for longer than its lease: it can't know that it has lost the run
      const isLate = lostBefore(by, call.arrivedAt) && !holdsAgain(evidence, last, by, call);
      if (isLate) lateCalls++;
      const settled = settledAt.get(key) ?? Number.POSITIVE_INFINITY;
      if (call.arrivedAt > settled + 1 && !isLate)
        wrong('a call whose outcome is committed is not made again', { ...call, settled });
      const before = made[i - 1];
      if (!before || isLate) continue;
      const first = incarnations[before.incarnation];
      const slow = lostBefore(first, call.arrivedAt);
      const cause =
        first && (causeOf(first, before.arrivedAt, call.arrivedAt, evidence) ?? (slow ? 'slow' : null));
      if (!first || !cause) wrong('a call is repeated only after its daemon has ended', [before, call]);
      else {
        tally(cause).repeats++;
        if (first.killedIn !== null) repeatsBy.set(first, (repeatsBy.get(first) ?? 0) + 1);
      }
    }
  }
  for (const [one, count] of repeatsBy) {
    if (count > (openBy.get(one) ?? 0))
      wrong('no more repeats than calls under way', {
        daemon: one.number,
        count,
        open: openBy.get(one) ?? 0,
      });
  }

  const sent = new Set(calls.map((call) => call.key));
  for (const write of lastStatus.values()) {
    const atPeer = write.tool === null || write.tool.startsWith('chaos_');
    if (write.status === 'completed' && atPeer && !sent.has(write.key))
      wrong('what is completed was made', write);
    if (write.status !== 'unknown') continue;
    const by = byWorker.get(intentBy.get(write.key)?.owner ?? null);
    const cause = by && (causeOf(by, intentBy.get(write.key)?.at ?? 0, write.at, evidence) ?? 'slow');
    if (cause) tally(cause).unknownWrites++;
    else wrong('an unknown write has a dead daemon', write);
  }
  return {
    tallies,
    repeats,
    lateCalls,
    violations: [...found].map(([invariant, facts]) => ({
      invariant,
      count: facts.length,
      examples: facts.slice(0, 5),
    })),
  };
}

function emptyTally(): Tally {
  return { ends: 0, unrecorded: 0, repeats: 0, unknownWrites: 0, takeovers: [], handedBack: 0 };
}

/** What ended a daemon's hold on its runs, each with the time from which and to which it made calls before. */
function endsOf(one: Incarnation): [Cause, number, number][] {
  const ends: [Cause, number, number][] = [];
  let from = 0;
  for (const stall of one.stalls) {
    ends.push(['stalled', from, stall.from]);
    from = stall.from;
  }
  const last = one.killedIn ?? (one.termAt === null ? null : 'SIGTERM');
  if (last !== null) ends.push([last, from, Number.POSITIVE_INFINITY]);
  return ends;
}

/** Whether the daemon that lost the run had claimed it anew when it made the call. */
function holdsAgain(
  { runEvents }: Evidence,
  write: CallWrite | undefined,
  by: Incarnation | undefined,
  call: Call,
): boolean {
  const claim = runEvents.findLast(
    (event) => event.run === write?.run && event.status === 'running' && event.at <= call.arrivedAt,
  );
  return claim?.owner === by?.workerId;
}

/** Why a daemon let go of a run or a call that it had at `from` and another had at `to`; null if nothing is known. */
function causeOf(one: Incarnation, from: number, to: number, evidence: Evidence): Cause | null {
  if (one.killedIn !== null && (one.termAt ?? one.exitedAt ?? Number.POSITIVE_INFINITY) <= to)
    return one.killedIn;
  if (one.termAt !== null && one.termAt <= to) return 'SIGTERM';
  const lease = evidence.leaseSeconds * 1000;
  // what lapses, lapses at the latest some seconds after the daemon was well again
  if (one.stalls.some((stall) => stall.from <= to && stall.to + lease >= from)) return 'stalled';
  if (evidence.restarts.some((restart) => restart.from <= to && restart.to + 3 * lease >= from))
    return 'restart';
  return null;
}

function findHandovers(events: readonly RunEvent[]): Handover[] {
  const handovers: Handover[] = [];
  for (const [run, story] of Map.groupBy(events, (event) => event.run)) {
    let holder: string | null = null;
    let open: Handover | null = null;
    for (const event of story) {
      if (event.status === 'running') {
        if (holder !== null) open = { run, from: holder, at: event.at, kind: 'lapsed', claimedAt: null };
        if (open) {
          open.claimedAt = event.at;
          handovers.push(open);
        }
        open = null;
        holder = event.owner;
      } else {
        if (event.status === 'queued' && holder !== null) {
          const itself = event.writer === `agentd ${holder}`;
          open = {
            run,
            from: holder,
            at: event.at,
            kind: itself ? 'handed back' : 'lapsed',
            claimedAt: null,
          };
        }
        holder = null;
      }
    }
  }
  return handovers;
}
