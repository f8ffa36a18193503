/** How a run, a step or a call of one fails: always with a code and a sentence that says what to do. */

/** The run can't go on and ends as failed. */
export class RunFailure extends Error {
  override readonly name = 'RunFailure';
  readonly code: string;
  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** An attempt of a step failed; another attempt may succeed. */
export class StepFailure extends Error {
  override readonly name = 'StepFailure';
  readonly code: string;
  readonly retryable: boolean;
  constructor(code: string, message: string, retryable: boolean) {
    super(message);
    this.code = code;
    this.retryable = retryable;
  }
}

/** The run must wait and holds no slot meanwhile. */
export class RunMustWait extends Error {
  override readonly name = 'RunMustWait';
  readonly code: string;
  readonly waitMs: number;
  constructor(code: string, message: string, waitMs: number) {
    super(message);
    this.code = code;
    this.waitMs = waitMs;
  }
}
