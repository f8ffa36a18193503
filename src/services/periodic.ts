/**
 * What every service is: a loop with a clock, a logger and one thing to do.
 *
 * A pass never overlaps itself. A pass that fails is logged and counted, and the next one comes as planned:
 * no service ends because the database was away.
 */
import type { Logger } from 'pino';
import type { Clock, Timer } from '../clock.ts';
import type { Metrics } from '../telemetry/metrics.ts';

export type ServiceDeps = { readonly clock: Clock; readonly log: Logger; readonly metrics: Metrics };

/** A background loop without a queue. */
export interface Service {
  readonly name: string;
  start(): void;
  /** Looks now instead of at the next planned time. */
  wake(): void;
  /** Resolves when the pass under way, if any, is over. */
  stop(): Promise<void>;
}

/**
 * Builds a service from its pass. The pass returns the milliseconds until the next one; after a failure it
 * comes after `afterFailureMs`. A long pass ends early on its signal, which is aborted when the service stops.
 */
export function periodic(
  name: string,
  deps: ServiceDeps,
  pass: (signal: AbortSignal) => Promise<number>,
  afterFailureMs = 1_000,
): Service {
  let timer: Timer | null = null;
  let running: Promise<void> | null = null;
  let again = false;
  let stopped = true;
  let abort = new AbortController();

  const run = (): void => {
    timer?.cancel();
    if (stopped) return;
    if (running) {
      again = true;
      return;
    }
    running = pass(abort.signal)
      .catch((error: unknown) => {
        deps.metrics.databaseErrors.inc(name);
        deps.log.warn(
          { event: 'service_failed', service: name, err: error },
          `the ${name} failed and tries again`,
        );
        return afterFailureMs;
      })
      .then((delay) => {
        running = null;
        if (stopped) return;
        if (again) {
          again = false;
          run();
        } else timer = deps.clock.after(delay, run);
      });
  };

  return {
    name,
    start() {
      stopped = false;
      abort = new AbortController();
      run();
    },
    wake: run,
    async stop() {
      stopped = true;
      abort.abort();
      timer?.cancel();
      await running;
    },
  };
}
