/** A stretch of network between a worker and a server that a test can silence and cut. */
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';

export type Network = {
  /** The same URL by way of this network. */
  through(url: string): string;
  /**
   * From now on bytes vanish on their way, of connections that are there and of new ones; nobody is told. What was
   * sent meanwhile arrives at `heal()`, as TCP sends it again, unless it was forgotten.
   */
  silence(direction?: 'to server' | 'to client' | 'both'): void;
  /** Connections that are there never say anything again, as when a firewall has forgotten them; new ones work. */
  forget(): void;
  /** Ends every connection and refuses new ones. */
  cut(): void;
  /** Works again. */
  heal(): void;
  /** Connections that are open. */
  readonly connections: number;
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
};

type Pair = { readonly client: Socket; readonly server: Socket; forgotten: boolean };

/** A network to the server of a URL. */
export async function networkTo(url: string): Promise<Network> {
  const target = new URL(url);
  const pairs = new Set<Pair>();
  let silent = { toServer: false, toClient: false };
  let isCut = false;

  const apply = (pair: Pair): void => {
    flow(pair.client, !silent.toServer && !pair.forgotten);
    flow(pair.server, !silent.toClient && !pair.forgotten);
  };
  const listener = createServer((client) => {
    if (isCut) {
      client.destroy();
      return;
    }
    const server = connect(Number(target.port), target.hostname);
    const pair: Pair = { client, server, forgotten: false };
    pairs.add(pair);
    for (const [from, to] of [
      [client, server],
      [server, client],
    ] as const) {
      from.setNoDelay(true);
      from.on('data', (bytes) => to.write(bytes));
      from.on('error', () => {});
      from.on('close', () => {
        pairs.delete(pair);
        to.destroy();
      });
    }
    apply(pair);
  });
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  const { port } = listener.address() as AddressInfo;

  const close = async (): Promise<void> => {
    const closed = once(listener, 'close');
    listener.close();
    for (const { client, server } of pairs) {
      client.destroy();
      server.destroy();
    }
    await closed;
  };
  return {
    through(original) {
      const changed = new URL(original);
      changed.hostname = '127.0.0.1';
      changed.port = String(port);
      return changed.toString();
    },
    silence(direction = 'both') {
      silent = { toServer: direction !== 'to client', toClient: direction !== 'to server' };
      for (const pair of pairs) apply(pair);
    },
    forget() {
      for (const pair of pairs) {
        pair.forgotten = true;
        apply(pair);
      }
    },
    cut() {
      isCut = true;
      for (const { client, server } of pairs) {
        client.destroy();
        server.destroy();
      }
    },
    heal() {
      isCut = false;
      silent = { toServer: false, toClient: false };
      for (const pair of pairs) apply(pair);
    },
    get connections() {
      return pairs.size;
    },
    close,
    [Symbol.asyncDispose]: close,
  };
}

/** A paused socket keeps what comes, and its sender sees nothing of that. */
function flow(from: Socket, flows: boolean): void {
  if (flows) from.resume();
  else from.pause();
}
