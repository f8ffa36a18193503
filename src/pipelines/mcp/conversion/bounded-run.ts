import { createContext, Script } from 'node:vm';

const CODE = new Script('run()');
// one for all: it takes longer to make than most functions to run
const CONTEXT = createContext({ run: () => current() });
let current: () => void = () => {};

/** Thrown by `boundedRun` when the time is over. */
export class OutOfTime extends Error {
  override name = 'OutOfTime';
}

/**
 * Runs a function for so many milliseconds at most; throws `OutOfTime` after that, wherever it is.
 *
 * V8 also stops regular expressions and generated code this way, which no check of the time within them could. The event loop waits for as
 * long; a worker would not make it wait, but costs a thread and a copy of schema and arguments for each call, which nearly always takes
 * less than 5 ms. What the function was changing is half changed: it must be thrown away. It must not call `boundedRun` itself.
 */
export function boundedRun<T>(milliseconds: number, run: () => T): T {
  let result: { value: T } | null = null;
  current = () => {
    result = { value: run() };
  };
  try {
    CODE.runInContext(CONTEXT, { timeout: milliseconds });
  } catch (error) {
    if ((error as { code?: unknown }).code === 'ERR_SCRIPT_EXECUTION_TIMEOUT')
      throw new OutOfTime('Out of time.');
    throw error;
  } finally {
    current = () => {};
  }
  return (result as unknown as { value: T }).value;
}
