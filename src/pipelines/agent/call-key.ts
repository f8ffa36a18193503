import { createHash } from 'node:crypto';

/** The key of a call, as agentd.call_key() computes it: equal for every attempt at the same place of the same run. */
export function callKey(runId: string, order: number, turn: number, index?: number): string {
  const parts = index === undefined ? [runId, order, turn] : [runId, order, turn, index];
  return createHash('sha256').update(parts.join(':')).digest('hex');
}
