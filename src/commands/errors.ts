/** Every failure of a command becomes a message, a next step and an exit code here. */
import { CommanderError } from 'commander';
import { ConfigError } from '../config.ts';
import { describeError } from '../telemetry/logger.ts';

/** Done, failed, wrong usage or configuration. */
export const EXIT = { done: 0, failed: 1, usage: 2 } as const;

/** The command was called wrongly; nothing was done. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
  readonly nextStep: string;
  constructor(message: string, nextStep: string) {
    super(message);
    this.nextStep = nextStep;
  }
}

/** The command could not do what it was asked for. */
export class CommandError extends Error {
  override readonly name = 'CommandError';
  readonly nextStep: string;
  constructor(message: string, nextStep: string) {
    super(message);
    this.nextStep = nextStep;
  }
}

/** A failure as it is printed. */
export type Failure = {
  readonly message: string;
  readonly nextStep: string | null;
  readonly reasonCode: string | null;
  readonly exitCode: number;
  /** Null for failures that carry their own explanation: a stack would only hide it. */
  readonly stack: string | null;
};

/** Errors of Postgres that have one likely cause. */
const BY_SQLSTATE: Readonly<Record<string, string>> = {
  '3F000': 'The database is not migrated, or only in part. Run: agentd migrate up',
  '42P01': 'The database is not migrated, or only in part. Run: agentd migrate up',
  '42883': 'The database is older than this agentd. Run: agentd migrate up',
  '42703': 'The database is older than this agentd. Run: agentd migrate up',
  '42501': 'This role lacks rights. Run agentd doctor: it says which; then connect as a role that has them.',
  '28P01': 'Check the password in DATABASE_URL.',
  '3D000': 'Create the database, or correct its name in DATABASE_URL.',
  '57014':
    'The statement took too long and was stopped by the server. Try again; agentd status shows the load.',
  '53300': 'The server has no connection left. Raise max_connections or use a pooler.',
};

const BY_SYSTEM_CODE: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'Check DATABASE_URL and that the server runs.',
  ECONNRESET: 'The connection broke. Try again; if it lasts, look at the server’s log.',
  ENOTFOUND: 'Check the host name in DATABASE_URL.',
  ETIMEDOUT: 'Check the network between this machine and the database.',
};

/** What to print for a thrown value. Never fails. */
export function explain(error: unknown): Failure {
  if (error instanceof CommanderError) {
    return plain(error.message.replace(/^error: /, ''), 'Run agentd --help to see the commands.', EXIT.usage);
  }
  if (error instanceof ConfigError) {
    return plain(
      error.message,
      'docs/operating.md lists every variable. agentd doctor shows what is in force.',
      EXIT.usage,
    );
  }
  if (error instanceof UsageError) return plain(error.message, error.nextStep, EXIT.usage);
  const described = describeError(error);
  const { hint } = (error ?? {}) as { hint?: unknown };
  const byCode =
    described.reason_code === null
      ? undefined
      : (BY_SQLSTATE[described.reason_code] ?? BY_SYSTEM_CODE[described.reason_code]);
  const own = described.next_step ?? (typeof hint === 'string' && hint !== '' ? hint : undefined);
  return {
    message: described.message === '' ? described.type : described.message,
    nextStep: own ?? byCode ?? null,
    reasonCode: described.reason_code,
    exitCode: EXIT.failed,
    stack: described.stack ?? null,
  };
}

function plain(message: string, nextStep: string, exitCode: number): Failure {
  return { message, nextStep, reasonCode: null, exitCode, stack: null };
}
