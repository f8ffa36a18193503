/** Why a credential has no usable token. */

/** Its message holds no secret. `retryAt`, milliseconds since the epoch by the worker's clock, where it is known when to ask again. */
export class CredentialError extends Error {
  override readonly name = 'CredentialError';
  readonly code: string;
  readonly nextStep: string;
  /** Whether it may pass without a person. */
  readonly transient: boolean;
  readonly retryAt: Date | null;
  constructor(
    code: string,
    message: string,
    more: { nextStep: string; transient?: boolean; retryAt?: Date | null; cause?: unknown },
  ) {
    super(message, { cause: more.cause });
    this.code = code;
    this.nextStep = more.nextStep;
    this.transient = more.transient ?? false;
    this.retryAt = more.retryAt ?? null;
  }
}
