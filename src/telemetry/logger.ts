/** One logger for the process: JSON lines on standard output, without secrets. docs/metrics.md lists the events. */
import { type DestinationStream, type Logger as PinoLogger, pino } from 'pino';
import { maskText, redact } from './redact.ts';

/** The structured logger: `log.info({ event: 'started', queues }, 'agentd is running')`. Children carry fixed fields. */
export type Logger = PinoLogger;

/** Options of {@link createLogger}. */
export type LoggerOptions = {
  /** trace, debug, info, warn, error, fatal or silent. */
  readonly level: string;
  /** Where lines go; standard output when left out. */
  readonly destination?: DestinationStream;
};

/** An error as it stands in a log line. */
export type LoggedError = {
  readonly type: string;
  readonly message: string;
  /** `reasonCode` or `code` of the error: an agentd reason, a SQLSTATE or a system code; null if it has none. */
  readonly reason_code: string | null;
  readonly next_step?: string;
  readonly stack?: string;
  readonly cause?: LoggedError;
};

/**
 * Creates the process's logger.
 *
 * Times are ISO 8601 in UTC, levels are words. Fields named like secrets are masked at any depth, passwords in URLs
 * everywhere; `err` and `error` are serialized by {@link describeError}.
 */
export function createLogger(options: LoggerOptions): Logger {
  const settings = {
    level: options.level,
    base: { pid: process.pid },
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: {
      level: (label: string) => ({ level: label }),
      log: (fields: Record<string, unknown>) => redact(fields) as Record<string, unknown>,
    },
    serializers: { err: describeUnknown, error: describeUnknown },
    hooks: {
      logMethod(this: Logger, args: Parameters<PinoLogger['info']>, method: PinoLogger['info']) {
        const cleaned: unknown[] = args.map((arg) => (typeof arg === 'string' ? maskText(arg) : arg));
        // Without a message pino takes the error's own, as it stands.
        if (cleaned.length === 1) {
          const [only] = cleaned as [unknown];
          const error = only instanceof Error ? only : (only as { err?: unknown } | null)?.err;
          if (error instanceof Error) cleaned.push(describeError(error).message);
        }
        method.apply(this, cleaned as Parameters<PinoLogger['info']>);
      },
    },
  };
  const logger = options.destination ? pino(settings, options.destination) : pino(settings);
  return guardChildren(logger);
}

/** A logger that says nothing: for tests and for commands that only read. */
export function silentLogger(): Logger {
  return createLogger({ level: 'silent' });
}

// pino formats the fixed fields of a child outside the formatters above (it resets them at each child()). Children
// have their parent as prototype, so that one guard on the root serves all of them.
function guardChildren(logger: Logger): Logger {
  const child = logger.child as (this: unknown, bindings: object, options?: object) => unknown;
  const guarded = function (this: unknown, bindings: object, options?: object): unknown {
    return child.call(this, redact(bindings) as object, options);
  };
  logger.child = guarded as unknown as Logger['child'];
  return logger;
}

/** What a log line or a row keeps of a thrown value. Never fails; secrets in messages are masked. */
export function describeError(error: unknown, depth = 0): LoggedError {
  if (!(error instanceof Error)) {
    return { type: typeof error, message: maskText(String(error)), reason_code: null };
  }
  const { reasonCode, code, nextStep } = error as Error & Record<'reasonCode' | 'code' | 'nextStep', unknown>;
  const reason = typeof reasonCode === 'string' ? reasonCode : typeof code === 'string' ? code : null;
  // A refused connection to a name with several addresses is an AggregateError without a message.
  const message =
    error.message ||
    (error instanceof AggregateError ? error.errors.map((e) => String(e?.message ?? e)).join(', ') : '');
  return {
    type: error.name,
    message: maskText(message),
    reason_code: reason,
    ...(typeof nextStep === 'string' ? { next_step: nextStep } : {}),
    ...(error.stack ? { stack: maskText(error.stack) } : {}),
    ...(error.cause !== undefined && depth < 3 ? { cause: describeError(error.cause, depth + 1) } : {}),
  };
}

function describeUnknown(value: unknown): unknown {
  if (value instanceof Error) return describeError(value);
  return typeof value === 'object' ? redact(value) : value;
}
