/** A clock that a test moves by hand. */
import type { Clock } from '../../src/clock.ts';

export type HandClock = Clock & {
  /** Moves the time on, runs what falls due in its order, and lets what that starts settle. */
  advance(ms: number): Promise<void>;
  /** Resolves when all that is ready to run has run. */
  settled(): Promise<void>;
};

/** Starts at 2026-01-01 unless told otherwise. */
export function handClock(start = Date.UTC(2026, 0, 1)): HandClock {
  let now = start;
  let timers: { at: number; fn: () => void }[] = [];
  // Promise callbacks run before the next turn of the event loop; a few turns cover those that await others.
  const settled = async (): Promise<void> => {
    for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
  };
  return {
    now: () => now,
    elapsed: () => now,
    after(ms, fn) {
      const timer = { at: now + ms, fn };
      timers.push(timer);
      return {
        cancel() {
          timers = timers.filter((other) => other !== timer);
        },
      };
    },
    settled,
    async advance(ms) {
      const end = now + ms;
      for (;;) {
        const next = timers.filter((timer) => timer.at <= end).sort((a, b) => a.at - b.at)[0];
        if (!next) break;
        timers = timers.filter((timer) => timer !== next);
        now = Math.max(now, next.at);
        next.fn();
        await settled();
      }
      now = end;
      await settled();
    },
  };
}
