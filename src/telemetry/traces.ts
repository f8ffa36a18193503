/**
 * OpenTelemetry traces of runs, for processes that are configured to send them. docs/monitoring.md draws one.
 *
 * Off, this costs an import of a few lines. On, a run costs some objects for each of its calls; what a collector does costs nothing
 * but spans.
 */
import type { TracesConfig } from '../config.ts';
import type { RunEnding } from '../db/run-ending.ts';
import type { ClaimedRun } from '../db/runs.ts';
import type { Logger } from './logger.ts';
import { parseTraceparent, traceIdOfRun } from './traceparent.ts';
import { SEND_LIMIT_MS, type SpanOutcome, SpanQueue } from './traces-queue.ts';
import { RunTrace } from './traces-run.ts';

/** At a stop, what was still to be asked about lost runs is waited for this long, in milliseconds. */
const LAST_WORDS_MS = 100;

export type Tracing = {
  /** Observes a claimed run; null for one that is not sampled. Never throws. */
  run(run: ClaimedRun): RunTrace | null;
  /** Sends what is left; takes two seconds at most. Never rejects. */
  stop(): Promise<void>;
};

export type TracingOptions = {
  /** Null: off. */
  readonly config: TracesConfig | null;
  readonly workerId: string;
  readonly version: string;
  readonly log: Logger;
  /** This process's monotonic clock, in milliseconds. */
  readonly elapsed: () => number;
  readonly ending: (runId: string) => Promise<RunEnding | null>;
  readonly onOutcome: (outcome: SpanOutcome, spans: number) => void;
};

/** Loads what is needed and starts; null when traces are off, and then nothing is loaded. */
export async function startTracing(options: TracingOptions): Promise<Tracing | null> {
  const { config, log, elapsed } = options;
  if (config === null) return null;
  const { runSampler, spanFactory, spanSender } = await import('./traces-otel.ts');
  const isSampled = runSampler(config.sampler);
  const makeSpan = spanFactory(
    {
      'service.name': config.serviceName,
      'service.version': options.version,
      'service.instance.id': options.workerId,
    },
    options.version,
  );
  const sender = spanSender(config, SEND_LIMIT_MS);
  const queue = new SpanQueue({ send: sender.send, log, onOutcome: options.onOutcome });
  let faults = 0;
  const onError = (error: unknown): void => {
    // One is a sign, more are the same sign.
    if (faults++ > 0) return;
    log.warn({ event: 'trace_incomplete', err: error }, 'a part of a trace could not be made');
  };
  const asking = new Set<Promise<unknown>>();
  const ending = (runId: string): Promise<RunEnding | null> => {
    const asked = options.ending(runId);
    asking.add(asked);
    const forget = (): void => void asking.delete(asked);
    asked.then(forget, forget);
    return asked;
  };

  return {
    run(run) {
      try {
        const parent = parseTraceparent(run.traceparent);
        const traceId = parent?.traceId ?? traceIdOfRun(run.id);
        if (traceId === null || !isSampled(traceId, parent)) return null;
        return new RunTrace(run, parent?.spanId ?? null, {
          elapsed,
          emit: (span) => queue.add(makeSpan(traceId, parent, span)),
          ending,
          onError,
        });
      } catch (error) {
        onError(error);
        return null;
      }
    },
    async stop() {
      // what is being asked gets a moment, and no more: a stop does not wait for a collector
      let timer: NodeJS.Timeout | undefined;
      const enough = new Promise<void>((resolve) => {
        timer = setTimeout(resolve, LAST_WORDS_MS);
      });
      await Promise.race([Promise.allSettled(asking), enough]);
      clearTimeout(timer);
      await queue.stop();
      sender.close();
    },
  };
}
