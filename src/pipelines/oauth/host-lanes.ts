/**
 * How many requests one token endpoint gets at once from this process, so that one that hangs leaves the slots to the others.
 *
 * Whoever finds the way full waits a moment, in the order of coming, as long as the endpoint answers soon. Where it does not, he is sent
 * away at once: his slot is another's.
 */
import type { Clock } from '../../clock.ts';

/** An endpoint with a request under way for so long is slow, in milliseconds. */
const SLOW_MS = 2_000;
const PATIENCE_MS = 1_000;

type Lane = {
  readonly since: Set<{ at: number }>;
  readonly waiting: Set<(leave: (() => void) | null) => void>;
};

export class HostLanes {
  readonly #most: number;
  readonly #clock: Clock;
  readonly #hosts = new Map<string, Lane>();

  constructor(most: number, clock: Clock) {
    this.#most = most;
    this.#clock = clock;
  }

  /** A place on the way to `host`, to be given back; null when all are taken and none becomes free soon. */
  enter(host: string): Promise<(() => void) | null> {
    const lane = this.#hosts.get(host) ?? { since: new Set(), waiting: new Set() };
    this.#hosts.set(host, lane);
    if (lane.since.size < this.#most) return Promise.resolve(this.#take(host, lane));
    const [oldest] = lane.since;
    if (oldest && this.#clock.elapsed() - oldest.at > SLOW_MS) return Promise.resolve(null);
    return new Promise((resolve) => {
      const done = (leave: (() => void) | null): void => {
        timer.cancel();
        lane.waiting.delete(done);
        resolve(leave);
      };
      const timer = this.#clock.after(PATIENCE_MS, () => done(null));
      lane.waiting.add(done);
    });
  }

  #take(host: string, lane: Lane): () => void {
    const mine = { at: this.#clock.elapsed() };
    lane.since.add(mine);
    return () => {
      if (!lane.since.delete(mine)) return;
      const [next] = lane.waiting;
      if (next) next(this.#take(host, lane));
      else if (lane.since.size === 0) this.#hosts.delete(host);
    };
  }
}
