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
  override readonly name: string = 'StepFailure';
  readonly code: string;
  readonly retryable: boolean;
  constructor(code: string, message: string, retryable: boolean) {
    super(message);
    this.code = code;
    this.retryable = retryable;
  }
}

/** The conversation is too long for the model: it can be asked again with a shorter one. */
export class ContextOverflow extends StepFailure {
  override readonly name = 'ContextOverflow';
  constructor(message: string) {
    super('context_length_exceeded', message, false);
  }
}

/** The run must wait and holds no slot meanwhile. */
export class RunMustWait extends Error {
  override readonly name = 'RunMustWait';
  readonly code: string;
  /** Null: until the row changes. */
  readonly waitMs: number | null;
  /** Whether it waits for a person or a budget, and not for a moment. */
  readonly forSomebody: boolean;
  constructor(code: string, message: string, waitMs: number | null, forSomebody = false) {
    super(message);
    this.code = code;
    this.waitMs = waitMs;
    this.forSomebody = forSomebody;
  }
}
