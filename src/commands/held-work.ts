/** How `agentd status` and `agentd doctor` name what waits or was given up besides runs and documents. */
import type { HeldWork } from '../db/operations.ts';
import { count, cut } from './format.ts';
import { oneLine } from './output.ts';

type Words = { readonly one: string; readonly many: string; readonly nextStep: string };

const WORDS: Readonly<Record<HeldWork['kind'], Words>> = {
  stores_resting: {
    one: 'store of vectors rests',
    many: 'stores of vectors rest',
    nextStep:
      'Mend what the reason says (select datastore_id, reason from agentd.vector_stores); a changed datastores.config is tried at once.',
  },
  messages_waiting: {
    one: 'workspace’s messages wait to be embedded',
    many: 'workspaces’ messages wait to be embedded',
    nextStep:
      'Mend what the reason says, then: update agentd.message_workspaces set retry_at = null where id = …; their rows there have the reason.',
  },
  messages_given_up: {
    one: 'message will not be embedded',
    many: 'messages will not be embedded',
    nextStep:
      'They are found by their words. To try again what can be mended: update agentd.message_queue set failed_at = null, attempts = 0.',
  },
  moves_failed: {
    one: 'workspace was not moved to another embedding model',
    many: 'workspaces were not moved to another embedding model',
    nextStep: 'agentd embeddings status shows them; mend the reason, then: agentd embeddings migrate --yes.',
  },
  connections_failing: {
    one: 'connection to an MCP server fails',
    many: 'connections to MCP servers fail',
    nextStep:
      'agentd mcp list shows them; their tools stay as they were. A changed connection is looked at at once, or: agentd mcp refresh ID.',
  },
  providers_misconfigured: {
    one: 'provider refuses this platform’s client',
    many: 'providers refuse this platform’s client',
    nextStep:
      'Correct token_endpoint, or client_id and client_secret in configuration_metadata, of the provider in service_providers; its credentials follow by themselves.',
  },
  credentials_failing: {
    one: 'connected account needs its user',
    many: 'connected accounts need their users',
    nextStep: 'agentd credentials list --failing shows them; they have to be connected again.',
  },
};
const PAUSED =
  'An operator has paused them; to go on: update agentd.message_workspaces set retry_at = null where id = ….';

/** `3 stores of vectors rest`. */
export function headline({ kind, count: howMany }: HeldWork): string {
  const { one, many } = WORDS[kind];
  return `${count(howMany)} ${howMany === 1 ? one : many}`;
}

/** `credentials_refused (The key is refused.)`. */
export const problemOf = ({ reason_code, example }: HeldWork): string =>
  oneLine(`${reason_code}${example === null ? '' : ` (${cut(example, 120)})`}`);

/** What to do about it. */
export const nextStepOf = ({ kind, reason_code }: HeldWork): string =>
  reason_code === 'paused' ? PAUSED : WORDS[kind].nextStep;
