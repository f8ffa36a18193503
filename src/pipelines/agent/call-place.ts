/** A model call's turn under the rate limit of its key: waited for in the slot while that is short, else without it. */
import { sleep } from '../../clock.ts';
import type { Ticket } from '../../db/rate-limits.ts';
import type { ModelCallChange } from '../../db/runs.ts';
import type { UsableModel } from './credentials.ts';
import { RunMustWait } from './errors.ts';
import type { RunJournal } from './journal.ts';
import type { ModelCall, ModelCallDeps } from './model-call.ts';
import type { Place } from './rate-limiter.ts';

/** Waits up to this long keep the slot; longer ones give it back. */
export const HOLD_SLOT_MS = 5_000;

/** How a call has waited so far. */
export type Waiting = {
  /** Milliseconds in the slot. */
  held: number;
  /** Those of them for a place under a rate limit. */
  heldForPlace: number;
  ticket: Ticket | null;
  /** Its provider has refused it: it goes before newcomers. */
  returns: boolean;
};

/** Asks for the call's turn under its key's rate limit; null where there is none, or nobody knows. */
export function askPlace(
  deps: ModelCallDeps,
  model: UsableModel,
  call: ModelCall,
  wait: Waiting,
): Promise<Place | null> | null {
  return (
    deps.limiter?.place({
      key: model.limitKey,
      workspaceId: call.workspaceId,
      requestLength: () => requestLength(call),
      maxTokens: call.maxTokens,
      ticket: wait.ticket,
      returns: wait.returns,
    }) ?? null
  );
}

/** Waits for the call's turn under its key's rate limit. Null, at once, where there is none. */
export async function takePlace(
  deps: ModelCallDeps,
  journal: RunJournal,
  model: UsableModel,
  call: ModelCall,
  row: ModelCallChange,
  wait: Waiting,
  signal: AbortSignal,
): Promise<Place | null> {
  for (;;) {
    const asked = askPlace(deps, model, call, wait);
    if (!asked) return null;
    const place = await asked;
    if (signal.aborted) throw signal.reason;
    if (place === null) return null;
    if (place.kind === 'place' && place.waitMs <= 0) return place;
    const holds = wait.heldForPlace + place.waitMs <= HOLD_SLOT_MS;
    deps.metrics.rateLimits.waited(model.provider, holds ? 'held' : 'released', place.waitMs / 1000);
    if (!holds) {
      journal.modelCall({
        ...row,
        status: 'waiting',
        error_code: row.error_code ?? 'rate_limit',
        error: row.error ?? LIMITED,
        ticket_at: place.ticket.at,
        ticket_kind: place.kind,
      });
      throw new RunMustWait(
        'rate_limit',
        `${row.error ?? LIMITED} Its turn comes in ${Math.ceil(place.waitMs / 1000)} s.`,
        place.waitMs,
      );
    }
    wait.heldForPlace += place.waitMs;
    wait.ticket = place.ticket;
    await sleep(deps.clock, place.waitMs, signal);
    if (place.kind === 'place') return place;
  }
}

const LIMITED = 'The rate limit of the model is used up, and the call waits for its turn.';

/** Characters that are sent. */
export function requestLength(call: ModelCall): number {
  return (
    JSON.stringify(call.messages).length + (call.tools.length > 0 ? JSON.stringify(call.tools).length : 0)
  );
}
