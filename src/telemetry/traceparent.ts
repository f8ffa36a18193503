/** W3C trace context, as an application writes it into `task_runs.traceparent`: https://www.w3.org/TR/trace-context/ */

/** The span of another process under which a trace goes on. */
export type RemoteParent = {
  /** 32 lower-case hexadecimal digits. */
  readonly traceId: string;
  /** 16 lower-case hexadecimal digits. */
  readonly spanId: string;
  readonly sampled: boolean;
};

const SHAPE = /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/;

/** Null for what is not a trace context: a run is never refused for what its application writes there. */
export function parseTraceparent(text: string | null | undefined): RemoteParent | null {
  const match = SHAPE.exec(text?.trim() ?? '');
  if (!match) return null;
  const [, version = '', traceId = '', spanId = '', flags = '', more] = match;
  // Later versions may add fields; 00 has none, and ff is no version.
  if (version === 'ff' || (version === '00' && more !== undefined)) return null;
  if (isZero(traceId) || isZero(spanId)) return null;
  return { traceId, spanId, sampled: (Number.parseInt(flags, 16) & 1) === 1 };
}

/**
 * The trace of a run that no application has put into one of its own: the run's id without dashes, so that whoever has the one has
 * the other. Null for the id that is no trace id, all zeros.
 */
export function traceIdOfRun(runId: string): string | null {
  const id = runId.replaceAll('-', '').toLowerCase();
  return /^[0-9a-f]{32}$/.test(id) && !isZero(id) ? id : null;
}

function isZero(digits: string): boolean {
  return /^0+$/.test(digits);
}
