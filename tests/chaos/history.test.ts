import { describe, expect, test } from 'vitest';
import type { CallWrite, RunEvent } from './audit.ts';
import type { Incarnation } from './fleet.ts';
import { type Evidence, readHistory } from './history.ts';
import type { Call } from './peers.ts';

const LEASE_SECONDS = 3;

/** Daemon 0 (worker `a`) had the run from 0 and was killed at 100; daemon 1 (`b`) has it from 4,000 on. */
function incarnations(first: Partial<Incarnation> = {}): Incarnation[] {
  const alive = { order: null, termAt: null, exitedAt: null, killedIn: null, stalls: [] };
  return [
    { ...alive, number: 0, workerId: 'a', exitedAt: 100, killedIn: 'in flight', ...first },
    { ...alive, number: 1, workerId: 'b' },
  ] as unknown as Incarnation[];
}

const event = (
  at: number,
  status: string,
  owner: string | null,
  writer: string | null = owner,
): RunEvent => ({
  run: 'r',
  status,
  epoch: 1,
  owner,
  writer: `agentd ${writer}`,
  at,
});
const takenOver = [event(0, 'running', 'a'), event(3_500, 'queued', 'a', 'b'), event(4_000, 'running', 'b')];

const write = (at: number, status: string, owner: string, tool: string | null = null): CallWrite => ({
  key: 'k',
  run: 'r',
  tool,
  status,
  owner,
  writer: `agentd ${owner}`,
  at,
});
const call = (incarnation: number, arrivedAt: number, kind: Call['kind'] = 'model'): Call => ({
  key: 'k',
  kind,
  incarnation,
  arrivedAt,
});

function broken(evidence: Partial<Evidence>): string[] {
  return read(evidence).violations.map((violation) => violation.invariant);
}

function read(evidence: Partial<Evidence>) {
  return readHistory({
    incarnations: incarnations(),
    calls: [],
    runEvents: takenOver,
    callWrites: [],
    restarts: [],
    leaseSeconds: LEASE_SECONDS,
    ...evidence,
  });
}

describe('the history of chaos', () => {
  test('explains a call that is made again after its daemon was killed, and counts it there', () => {
    const history = read({
      calls: [call(0, 50), call(1, 4_100)],
      callWrites: [write(10, 'started', 'a'), write(4_200, 'completed', 'b')],
    });
    expect(history.violations).toEqual([]);
    expect(history.tallies.get('in flight')).toEqual({
      ends: 1,
      unrecorded: 1,
      repeats: 1,
      unknownWrites: 0,
      takeovers: [{ noticedMs: 3_400, claimedMs: 3_900 }],
      handedBack: 0,
    });
  });

  test('does not forgive a repetition while the first daemon lives', () => {
    const calls = [call(0, 50), call(1, 60)];
    const callWrites = [write(10, 'started', 'a'), write(70, 'completed', 'b')];
    const runEvents = [event(0, 'running', 'a')];
    expect(broken({ calls, callWrites, runEvents })).toContain(
      'a call is repeated only after its daemon has ended',
    );
  });

  test('does not forgive a repetition by the same daemon', () => {
    const calls = [call(1, 50), call(1, 60)];
    const callWrites = [write(10, 'started', 'b'), write(70, 'completed', 'b')];
    expect(broken({ calls, callWrites })).toContain('a call is repeated only after its daemon has ended');
  });

  test('does not forgive a call that is made again after its outcome was committed', () => {
    const calls = [call(0, 50), call(1, 4_100)];
    const callWrites = [write(10, 'started', 'a'), write(60, 'completed', 'a')];
    expect(broken({ calls, callWrites })).toContain('a call whose outcome is committed is not made again');
  });

  test('does not forgive a write that reaches its server twice, whoever died', () => {
    const calls = [call(0, 50, 'write'), call(1, 4_100, 'write')];
    const callWrites = [
      write(10, 'started', 'a', 'chaos_charge'),
      write(4_200, 'completed', 'b', 'chaos_charge'),
    ];
    expect(broken({ calls, callWrites })).toEqual(['a call that writes is never repeated']);
  });

  test('counts a write of unknown outcome where its daemon ended', () => {
    const history = read({
      calls: [call(0, 50, 'write')],
      callWrites: [write(10, 'started', 'a', 'chaos_charge'), write(4_200, 'unknown', 'b', 'chaos_charge')],
    });
    expect(history.violations).toEqual([]);
    expect(history.tallies.get('in flight')?.unknownWrites).toBe(1);
  });

  test('does not forgive a call without an intent, an outcome without a call, or two outcomes', () => {
    expect(broken({ calls: [call(0, 50)] })).toEqual(['every call has its intent in the journal']);
    expect(broken({ callWrites: [write(60, 'completed', 'a')] })).toEqual(['what is completed was made']);
    const callWrites = [write(60, 'completed', 'a'), write(70, 'completed', 'b')];
    expect(broken({ calls: [call(0, 50)], callWrites })).toContain('an outcome is written once');
  });

  test('counts the call of a frozen daemon that woke up without its run as late, a second write as broken', () => {
    const frozen = incarnations({ killedIn: null, exitedAt: null, stalls: [{ from: 60, to: 5_000 }] });
    const callWrites = [write(10, 'started', 'a'), write(4_200, 'completed', 'b')];
    const history = read({ incarnations: frozen, calls: [call(1, 4_100), call(0, 5_001)], callWrites });
    expect([history.lateCalls, history.violations]).toEqual([1, []]);
    const writes = [call(1, 4_100, 'write'), call(0, 5_001, 'write')];
    expect(broken({ incarnations: frozen, calls: writes, callWrites })).toEqual([
      'a call that writes is never repeated',
    ]);
  });

  test('does not know a worker that is none of ours', () => {
    const runEvents = [event(0, 'running', 'stranger'), event(4_000, 'running', 'b')];
    expect(broken({ runEvents })).toEqual(['every worker is one of ours']);
  });
});
