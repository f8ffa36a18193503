/** Where daemons are killed, and the dice that decide when. */

/** Each window with what is true at that moment. */
export const WINDOWS = {
  claimed: 'the claim is committed, nothing else was done',
  intent: 'the intent is committed, the call was not sent',
  'in flight': 'the call was sent, the peer has it and has not answered',
  answered: 'the answer is there, its outcome was not sent to the database',
  'before commit': 'a checkpoint is on its way to the database',
  'after commit': 'a checkpoint was answered, nothing was done with the answer',
  drain: 'SIGTERM was received, runs and jobs are being handed back',
  'schedule open': 'runs are inserted and tasks advanced, not committed',
  'schedule done': 'the same, committed',
  anywhere: 'no particular place',
} as const;

export type Window = keyof typeof WINDOWS;

/** No end but a pause: the process stops itself with a checkpoint on its way, and is woken by the harness. */
export const FREEZE = 'freeze';

export const windows = Object.keys(WINDOWS) as Window[];

/** What a daemon is told: die in this window, at its so-manieth occurrence from now on. */
export type Order = {
  readonly window: Window | typeof FREEZE;
  readonly nth: number;
  /** Which daemon, as a part of those that are free: in [0, 1). */
  readonly pick: number;
  /** Milliseconds after a checkpoint was given to the driver: on the way, or committed and not answered. */
  readonly delayMs: number;
};

export type KillOrder = Order & { readonly window: Window };

/** Numbers in [0, 1) that are the same for the same seed (mulberry32). */
export type Dice = { next(): number; int(from: number, to: number): number; shuffle<T>(items: T[]): T[] };

export function dice(seed: number): Dice {
  let state = seed >>> 0;
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  const int = (from: number, to: number): number => from + Math.floor(next() * (to - from + 1));
  return {
    next,
    int,
    shuffle(items) {
      for (let i = items.length - 1; i > 0; i--) {
        const j = int(0, i);
        [items[i], items[j]] = [items[j] as (typeof items)[number], items[i] as (typeof items)[number]];
      }
      return items;
    },
  };
}

/** So many orders, as many in each window (give or take one), in the seed's order. */
export function orders(count: number, random: Dice): KillOrder[] {
  const chosen = Array.from({ length: count }, (_, i) => windows[i % windows.length] as Window);
  return random.shuffle(chosen).map((window) => ({
    window,
    nth: random.int(1, window.startsWith('schedule') ? 2 : window === 'drain' ? 5 : 6),
    pick: random.next(),
    delayMs: random.int(1, 5),
  }));
}
