/** Why a schedule cannot be used. Stable: applications and the audit log match on it. */
export type ScheduleErrorCode = 'invalid_cron' | 'invalid_zone' | 'invalid_dates' | 'never_fires';

/**
 * A schedule that a person has to correct: retrying never helps, so callers pause the task and show `message` and `hint`.
 *
 * `message` is a sentence that says what is wrong; `hint` says what to do next.
 */
export class ScheduleError extends Error {
  override readonly name = 'ScheduleError';
  readonly code: ScheduleErrorCode;
  readonly hint: string;

  constructor(code: ScheduleErrorCode, message: string, hint: string) {
    super(message);
    this.code = code;
    this.hint = hint;
  }
}
