/** What is left for later, each time for twice as long: so that what can't be done now holds up nothing else. */
import type { Clock } from '../clock.ts';

/** How long something is left, in milliseconds: the first time, and at most. */
export type Pause = { readonly firstMs: number; readonly longestMs: number };

/** Ids that are tried again after a growing pause. Each process knows its own. */
export class Postponed {
  readonly #clock: Clock;
  readonly #pauses = new Map<string, { readonly until: number; readonly ms: number }>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Leaves it, for twice as long as the last time. Returns for how many milliseconds. */
  postpone(id: string, { firstMs, longestMs }: Pause): number {
    const ms = Math.min(longestMs, Math.max(firstMs, 2 * (this.#pauses.get(id)?.ms ?? 0)));
    this.#pauses.set(id, { until: this.#clock.elapsed() + ms, ms });
    return ms;
  }

  /** It is done, or there is nothing to do: the next time begins with a short pause again. */
  settle(id: string): void {
    this.#pauses.delete(id);
  }

  /** All that were left, whether it is time for them or not. */
  all(): string[] {
    return [...this.#pauses.keys()];
  }

  /** Those whose pause goes on. */
  waiting(): string[] {
    const now = this.#clock.elapsed();
    return [...this.#pauses].filter(([, pause]) => pause.until > now).map(([id]) => id);
  }

  /** Those whose pause is over. */
  due(): string[] {
    const now = this.#clock.elapsed();
    return [...this.#pauses].filter(([, pause]) => pause.until <= now).map(([id]) => id);
  }
}
