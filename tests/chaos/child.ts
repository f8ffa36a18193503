/**
 * A daemon that can be told to kill itself at a certain place: as the product's, but for a short lease, three more
 * tools, and a model client and tools that know whether their moment has come.
 */
import { flushCompileCache } from 'node:module';
import { loadConfig } from '../../src/config.ts';
import { startDaemon, type TestSignal } from '../../src/daemon.ts';
import type { Tool } from '../../src/pipelines/agent/tools.ts';
import { type ModelClient, openAiModelClient } from '../../src/providers/models.ts';
import { createLogger } from '../../src/telemetry/logger.ts';
import { EFFECTS } from './script.ts';
import { FREEZE, type Order } from './windows.ts';

const { CHAOS_TOOLS_URL = '', CHAOS_INCARNATION = '', CHAOS_LEASE_SECONDS = '3' } = process.env;

let order: Order | null = null;
let left = 0;
let draining = false;

/** SIGKILL, from which nobody recovers: no handler, no finally, no flush. */
function die(): void {
  process.kill(process.pid, 'SIGKILL');
}

/** SIGSTOP: whatever arrives, waits until the process is woken. */
function freeze(): void {
  process.send?.({ frozen: true });
  process.kill(process.pid, 'SIGSTOP');
}

/** Counts an occurrence of a window; true for the one at which this process is to die. */
function isTheMoment(window: Order['window']): boolean {
  return order?.window === window && --left === 0;
}

const places: Partial<Record<TestSignal, Order['window']>> = {
  claimed: 'claimed',
  checkpoint_answered: 'after commit',
  schedule_written: 'schedule open',
  schedule_committed: 'schedule done',
};

function onSignal(at: TestSignal): void {
  const window = places[at];
  if (window && isTheMoment(window)) die();
  if (at === 'checkpoint_sent' && isTheMoment('before commit')) setTimeout(die, order?.delayMs);
  if (at === 'checkpoint_sent' && isTheMoment(FREEZE)) setTimeout(freeze, order?.delayMs);
  if (draining && isTheMoment('drain')) die();
}

async function watched<T>(call: () => Promise<T>): Promise<T> {
  if (isTheMoment('intent')) die();
  const answer = await call();
  if (isTheMoment('answered')) die();
  return answer;
}

function watchedClient(options: Parameters<typeof openAiModelClient>[0]): ModelClient {
  const client = openAiModelClient(options);
  return { complete: (request, signal) => watched(() => client.complete(request, signal)) };
}

const tools: Tool[] = Object.entries(EFFECTS).map(([name, effect]) => ({
  definition: {
    type: 'function',
    function: {
      name,
      description: `A call that is ${effect}.`,
      parameters: { type: 'object', properties: {} },
    },
  },
  source: 'chaos',
  effect,
  call: (_args, { idempotencyKey, signal }) =>
    watched(async () => {
      const response = await fetch(`${CHAOS_TOOLS_URL}/${name}`, {
        method: 'POST',
        headers: { 'idempotency-key': idempotencyKey, 'x-incarnation': CHAOS_INCARNATION },
        signal,
      });
      if (!response.ok) throw new Error(`The tool peer answered ${response.status}.`);
      return { content: await response.text() };
    }),
}));

process.on('message', (message: { order: Order | null }) => {
  order = message.order;
  left = order?.nth ?? 0;
  if (order === null) process.send?.({ awake: true });
});

const daemon = await startDaemon(loadConfig(), {
  logger: createLogger({ level: 'info' }),
  probes: false,
  leaseSeconds: Number(CHAOS_LEASE_SECONDS),
  toolSources: [{ name: 'chaos', list: async () => tools }],
  createModelClient: watchedClient,
  testSignal: onSignal,
});
// a harness that is gone leaves nobody behind
process.on('disconnect', () => process.exit(draining ? 0 : 1));
process.on('SIGTERM', () => {
  draining = true;
  void daemon.stop();
});
process.send?.({ workerId: daemon.workerId });
// processes that are killed leave no compiled code behind; the first one does it for all
if (CHAOS_INCARNATION === '0') flushCompileCache();
await daemon.stopped;
process.disconnect?.();
