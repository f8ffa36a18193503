import { describe, expect, test } from 'vitest';
import type { JobAborted } from '../../../src/queue/errors.ts';
import { Leases, type Renew } from '../../../src/queue/leases.ts';
import { silentLogger } from '../../../src/telemetry/logger.ts';
import { handClock } from '../../support/hand-clock.ts';

const LEASE_MS = 9_000;
const EVERY_MS = 3_000;

function setup(renew: Renew) {
  const clock = handClock();
  const leases = new Leases({
    clock,
    log: silentLogger(),
    leaseMs: LEASE_MS,
    everyMs: EVERY_MS,
    renew,
  });
  leases.start();
  const hold = (run: string, epoch = 1): AbortController => {
    const controller = new AbortController();
    leases.hold(run, epoch, controller);
    return controller;
  };
  return { clock, leases, hold };
}

const notRenewed = (...lost: string[]) => ({ lost: new Set(lost), locked: new Set<string>() });

const reason = (controller: AbortController): string | null =>
  controller.signal.aborted ? (controller.signal.reason as JobAborted).code : null;

describe('leases', () => {
  test('one renewal at a time covers all runs that are held, with their epochs', async () => {
    const asked: unknown[] = [];
    const { clock, leases, hold } = setup(async (held) => {
      asked.push(held);
      return notRenewed();
    });
    hold('a', 1);
    hold('b', 4);
    await clock.advance(EVERY_MS);
    leases.release('a', 1);
    await clock.advance(EVERY_MS);
    expect(asked).toEqual([
      [
        { run: 'a', epoch: 1 },
        { run: 'b', epoch: 4 },
      ],
      [{ run: 'b', epoch: 4 }],
    ]);
  });

  test('nothing is asked while nothing is held', async () => {
    let asked = 0;
    const { clock } = setup(async () => {
      asked++;
      return notRenewed();
    });
    await clock.advance(10 * EVERY_MS);
    expect(asked).toBe(0);
  });

  test('a run that is lost is stopped, and the others are not', async () => {
    const { clock, hold } = setup(async () => notRenewed('a'));
    const [a, b] = [hold('a'), hold('b')];
    await clock.advance(EVERY_MS);
    expect([reason(a), reason(b)]).toEqual(['lease_lost', null]);
  });

  test('a run is stopped when nothing has confirmed it for a whole lease', async () => {
    const { clock, hold } = setup(() => Promise.reject(new Error('away')));
    const run = hold('a');
    await clock.advance(LEASE_MS);
    expect(reason(run)).toBeNull();
    await clock.advance(EVERY_MS);
    expect(reason(run)).toBe('lease_lost');
  });

  test('a checkpoint confirms a run as a renewal does', async () => {
    const { clock, leases, hold } = setup(() => Promise.reject(new Error('away')));
    const [kept, left] = [hold('kept'), hold('left')];
    await clock.advance(2 * EVERY_MS);
    leases.confirm('kept', 1, clock.elapsed());
    await clock.advance(2 * EVERY_MS);
    expect([reason(kept), reason(left)]).toEqual([null, 'lease_lost']);
  });

  test('a checkpoint that was answered after its lease had lapsed stops the run: the process was frozen', () => {
    const { clock, leases, hold } = setup(async () => notRenewed());
    leases.stop();
    const run = hold('a');
    const sentAt = clock.elapsed();
    // frozen, no timer fires: the answer is what is seen first
    clock.elapsed = () => sentAt + LEASE_MS;
    leases.confirm('a', 1, sentAt);
    expect(reason(run)).toBeNull();
    clock.elapsed = () => sentAt + LEASE_MS + 1;
    leases.confirm('a', 1, sentAt);
    expect(reason(run)).toBe('lease_lost');
  });

  test('a renewal that failed is made again, and the run lives on', async () => {
    let tries = 0;
    const { clock, hold } = setup(async () => {
      if (++tries < 3) throw new Error('away');
      return notRenewed();
    });
    const run = hold('a');
    await clock.advance(10 * EVERY_MS);
    expect(tries).toBe(10);
    expect(reason(run)).toBeNull();
  });

  test('a newer attempt in the same process stops the older one and is untouched by its end', async () => {
    const asked: unknown[] = [];
    const { clock, leases, hold } = setup(async (held) => {
      asked.push(...held);
      return notRenewed();
    });
    const older = hold('a', 1);
    const newer = hold('a', 2);
    expect([reason(older), reason(newer)]).toEqual(['lease_lost', null]);
    leases.release('a', 1);
    await clock.advance(EVERY_MS);
    expect(asked).toEqual([{ run: 'a', epoch: 2 }]);
  });

  test('an answer about an older epoch does not stop the newer attempt', async () => {
    const { promise, resolve } = Promise.withResolvers<Awaited<ReturnType<Renew>>>();
    const { clock, hold } = setup(() => promise);
    hold('a', 1);
    await clock.advance(EVERY_MS);
    const newer = hold('a', 2);
    resolve(notRenewed('a'));
    await clock.settled();
    expect(reason(newer)).toBeNull();
  });

  test('a cancellation stops a run at once, and says whether it was here', () => {
    const { leases, hold } = setup(async () => notRenewed());
    const run = hold('a');
    expect(leases.abort('a', 'cancelled')).toBe(true);
    expect(leases.abort('b', 'cancelled')).toBe(false);
    expect(reason(run)).toBe('cancelled');
  });

  test('are renewed at once when the database is back, one renewal at a time', async () => {
    const { promise, resolve } = Promise.withResolvers<Awaited<ReturnType<Renew>>>();
    let asked = 0;
    const { clock, leases, hold } = setup(() => {
      asked++;
      return promise;
    });
    hold('a');
    leases.renewNow();
    leases.renewNow();
    expect(asked).toBe(1);
    resolve(notRenewed());
    await clock.settled();
    leases.renewNow();
    expect(asked).toBe(2);
  });

  test('after a stop nothing is renewed any more', async () => {
    let asked = 0;
    const { clock, leases, hold } = setup(async () => {
      asked++;
      return notRenewed();
    });
    hold('a');
    leases.stop();
    await clock.advance(5 * EVERY_MS);
    expect(asked).toBe(0);
  });

  test('a run whose row somebody else holds is not taken for renewed: it is stopped when its lease is over', async () => {
    const { clock, hold } = setup(async (held) => ({
      lost: new Set<string>(),
      locked: new Set(held.map((one) => one.run).filter((run) => run === 'a')),
    }));
    const [held, free] = [hold('a', 1), hold('b', 1)];
    await clock.advance(LEASE_MS + EVERY_MS + 1);
    expect(reason(held)).toBe('lease_lost');
    expect(reason(free)).toBeNull();
  });
});
