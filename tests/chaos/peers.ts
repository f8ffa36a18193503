/** The outside world: a model and a server of tools that write down every request, by whom and with which key. */
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { answerTo, EFFECTS, type ToolName } from './script.ts';
import type { Dice } from './windows.ts';

/** A request as a peer saw it. Times are in milliseconds since the epoch. */
export type Call = {
  readonly key: string;
  readonly kind: 'model' | 'read' | 'idempotent' | 'write';
  /** Number of the daemon that sent it. */
  readonly incarnation: number;
  readonly arrivedAt: number;
};

export type Peers = {
  readonly calls: readonly Call[];
  readonly model: Pick<ModelServer, 'url' | 'rejected'>;
  readonly toolsUrl: string;
  /** The key with which a daemon's model client shows who it is. Call before it starts. */
  admit(incarnation: number): string;
  close(): Promise<void>;
};

export type PeerOptions = {
  readonly random: Dice;
  /** Told of a request when it has arrived; true lets it wait for ever: its daemon is dead. */
  readonly onCall: (call: Call) => boolean;
  /** Milliseconds that an answer takes, from and to. */
  readonly modelMs: readonly [number, number];
  readonly toolMs: readonly [number, number];
};

const KEY_PREFIX = 'sk-chaos-';

export async function startPeers(options: PeerOptions): Promise<Peers> {
  const { random, onCall, modelMs, toolMs } = options;
  const calls: Call[] = [];
  const apiKeys = [`${KEY_PREFIX}nobody`];
  const model = await startModelServer({ apiKeys });
  const arrive = (key: string | null, kind: Call['kind'], incarnation: number): boolean => {
    const call = { key: key ?? 'without a key', kind, incarnation, arrivedAt: Date.now() };
    calls.push(call);
    return onCall(call);
  };
  model.respond((request) => {
    // what it keeps for other tests would fill the memory here
    model.requests.length = 0;
    const incarnation = Number(request.apiKey?.slice(KEY_PREFIX.length));
    if (arrive(request.idempotencyKey, 'model', incarnation)) return { hang: true };
    return { ...answerTo(request), delay: pause(random.int(...modelMs)) };
  });
  const tools = createServer((incoming, response) => {
    const name = incoming.url?.slice(1) as ToolName;
    incoming.resume();
    const key = incoming.headers['idempotency-key'];
    const dead = arrive(String(key), EFFECTS[name], Number(incoming.headers['x-incarnation']));
    if (!dead) setTimeout(() => response.end(`${name} done`), random.int(...toolMs));
  });
  // An idle connection that the server closes just when a request comes would look like a failed call.
  tools.keepAliveTimeout = 3_600_000;
  tools.listen(0, '127.0.0.1');
  await once(tools, 'listening');
  return {
    calls,
    model,
    toolsUrl: `http://127.0.0.1:${(tools.address() as AddressInfo).port}`,
    admit(incarnation) {
      const key = `${KEY_PREFIX}${incarnation}`;
      apiKeys.push(key);
      return key;
    },
    async close() {
      await model.close();
      const closed = once(tools, 'close');
      tools.close();
      tools.closeAllConnections();
      await closed;
    },
  };
}
