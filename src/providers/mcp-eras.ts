/** Which servers speak only older revisions of the protocol, so that not every session begins with asking. */
import type { Clock } from '../clock.ts';

/** A server that learns a newer revision is asked about it within this time, in milliseconds. */
const KEPT_MS = 3_600_000;
const MAX_SERVERS = 10_000;

/** A hint: whoever finds that a server has changed forgets it and asks. */
export class McpEras {
  readonly #clock: Clock;
  /** Until when, by the monotonic clock; the one that was learnt longest ago first. */
  readonly #legacy = new Map<string, number>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  isLegacy(url: string): boolean {
    const until = this.#legacy.get(url);
    if (until === undefined) return false;
    if (until > this.#clock.elapsed()) return true;
    this.#legacy.delete(url);
    return false;
  }

  /** Has no effect on what is known: the server is asked again in time. */
  learn(url: string): void {
    if (this.#legacy.has(url)) return;
    for (const oldest of this.#legacy.keys()) {
      if (this.#legacy.size < MAX_SERVERS) break;
      this.#legacy.delete(oldest);
    }
    this.#legacy.set(url, this.#clock.elapsed() + KEPT_MS);
  }

  forget(url: string): void {
    this.#legacy.delete(url);
  }
}
