/**
 * The leases of the runs that this process executes: one statement renews them all.
 *
 * A run whose lease is gone (cancelled, taken over, deleted) has its signal fired, and so have all of them
 * when the database has not confirmed them for a whole lease: another worker may have them by then, and
 * going on would only spend money.
 */
import type { Logger } from 'pino';
import type { Clock, Timer } from '../clock.ts';
import { JobAborted } from './errors.ts';

/** Renews, and returns the runs that are lost and those whose rows somebody holds: these were not renewed. */
export type Renew = (
  held: readonly { run: string; epoch: number }[],
) => Promise<{ readonly lost: ReadonlySet<string>; readonly locked: ReadonlySet<string> }>;

type Held = { readonly epoch: number; readonly controller: AbortController; confirmedAt: number };

export class Leases {
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #renew: Renew;
  readonly #leaseMs: number;
  readonly #everyMs: number;
  readonly #held = new Map<string, Held>();
  #timer: Timer | null = null;
  #renewing = false;
  #stopped = false;

  constructor(options: { clock: Clock; log: Logger; renew: Renew; leaseMs: number; everyMs: number }) {
    this.#clock = options.clock;
    this.#log = options.log;
    this.#renew = options.renew;
    this.#leaseMs = options.leaseMs;
    this.#everyMs = options.everyMs;
  }

  start(): void {
    this.#schedule();
  }

  stop(): void {
    this.#stopped = true;
    this.#timer?.cancel();
  }

  /**
   * Holds a claimed run until `release`. An older claim of the same run by this process (it had lost the lease
   * without noticing) is stopped.
   */
  hold(run: string, epoch: number, controller: AbortController): void {
    this.abort(run, 'lease_lost');
    this.#held.set(run, { epoch, controller, confirmedAt: this.#clock.elapsed() });
  }

  /**
   * A checkpoint extended the lease, at the earliest when it was sent. If that is longer ago than a lease, as in a
   * process that was frozen meanwhile, the run is stopped before it makes the call that the checkpoint announced.
   *
   * @param sentAt by the clock's `elapsed`
   */
  confirm(run: string, epoch: number, sentAt: number): void {
    const held = this.#held.get(run);
    if (held?.epoch !== epoch) return;
    held.confirmedAt = Math.max(held.confirmedAt, sentAt);
    if (this.#clock.elapsed() - held.confirmedAt > this.#leaseMs) this.abort(run, 'lease_lost');
  }

  release(run: string, epoch: number): void {
    if (this.#held.get(run)?.epoch === epoch) this.#held.delete(run);
  }

  /** The runs that this process executes, and under which claim. */
  held(): { readonly run: string; readonly epoch: number }[] {
    return [...this.#held].map(([run, { epoch }]) => ({ run, epoch }));
  }

  /** Stops a run whose claim is known to be gone; a newer claim of it goes on. */
  lose(run: string, epoch: number): void {
    if (this.#held.get(run)?.epoch === epoch) this.abort(run, 'cancelled');
  }

  /** Stops a run of this process at once; returns whether it was here. */
  abort(run: string, code: JobAborted['code']): boolean {
    const held = this.#held.get(run);
    held?.controller.abort(new JobAborted(code));
    return held !== undefined;
  }

  /** Expiry and renewal are apart: a renewal that hangs must not keep anyone from noticing that the lease is gone. */
  #schedule(): void {
    if (this.#stopped) return;
    this.#timer = this.#clock.after(this.#everyMs, () => {
      this.#expire();
      this.renewNow();
      this.#schedule();
    });
  }

  /** Renews all that is held, unless that is under way: the database is back, and nobody is to think that we are not. */
  renewNow(): void {
    if (this.#stopped || this.#renewing) return;
    this.#renewing = true;
    void this.#renewAll().finally(() => {
      this.#renewing = false;
    });
  }

  #expire(): void {
    const now = this.#clock.elapsed();
    for (const [run, held] of this.#held) {
      if (now - held.confirmedAt > this.#leaseMs) this.abort(run, 'lease_lost');
    }
  }

  async #renewAll(): Promise<void> {
    const now = this.#clock.elapsed();
    if (this.#held.size === 0) return;
    const asked = [...this.#held].map(([run, { epoch }]) => ({ run, epoch }));
    try {
      const { lost, locked } = await this.#renew(asked);
      for (const { run, epoch } of asked) {
        const held = this.#held.get(run);
        if (!held || held.epoch !== epoch) continue;
        if (lost.has(run)) this.abort(run, 'lease_lost');
        // a row that a checkpoint holds is confirmed by that, one that somebody else holds by nobody
        else if (!locked.has(run)) held.confirmedAt = Math.max(held.confirmedAt, now);
      }
    } catch (error) {
      this.#log.warn(
        { event: 'lease_renewal_failed', err: error, runs: asked.length },
        'could not renew leases',
      );
    }
  }
}
