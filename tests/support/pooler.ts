/**
 * A pooler as small as it can be: each client's session (mode `sessions`) or transaction (mode `transactions`) has a
 * backend of the server to itself. The server must trust its clients.
 */
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';

export type PoolerOptions = {
  readonly mode: 'sessions' | 'transactions';
  /** Makes a client's prepared statements on whatever backend it gets, as newer poolers do. */
  readonly prepared?: boolean;
};

export type Pooler = {
  readonly url: string;
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
};

type Backend = {
  readonly socket: Socket;
  /** Prepared statements that were made here. */
  readonly statements: Set<string>;
  client: Client | null;
  /** Answers to statements that the client did not ask to prepare. */
  dropParseComplete: number;
};

type Client = { readonly socket: Socket; backend: Promise<Backend> | null; statements: Map<string, Buffer> };

const SSL_REQUEST = 80_877_103;

/** Starts a pooler in front of the server of a URL. */
export async function startPooler(url: string, options: PoolerOptions): Promise<Pooler> {
  const target = new URL(url);
  const free: Backend[] = [];
  const sockets = new Set<Socket>();
  let startup: Buffer = Buffer.alloc(0);
  let nextPid = 1_000_000;

  async function openBackend(): Promise<Backend> {
    const socket = connect(Number(target.port), target.hostname);
    sockets.add(socket);
    socket.on('error', () => {});
    const backend: Backend = { socket, statements: new Set(), client: null, dropParseComplete: 0 };
    const ready = Promise.withResolvers<void>();
    let isReady = false;
    socket.on(
      'data',
      framed((type, message) => {
        if (!isReady) {
          if (type === 'Z') {
            isReady = true;
            ready.resolve();
          }
          return;
        }
        if (type === '1' && backend.dropParseComplete > 0) {
          backend.dropParseComplete--;
          return;
        }
        const { client } = backend;
        // What comes while nobody has the backend, such as a notification, is nobody's.
        client?.socket.write(message);
        if (type === 'Z' && message[5] === 0x49 && options.mode === 'transactions' && client) {
          client.backend = null;
          backend.client = null;
          free.push(backend);
        }
      }),
    );
    socket.write(startup);
    await ready.promise;
    return backend;
  }

  async function acquire(client: Client): Promise<Backend> {
    const backend = free.pop() ?? (await openBackend());
    backend.client = client;
    return backend;
  }

  async function forward(client: Client, type: string, message: Buffer): Promise<void> {
    client.backend ??= acquire(client);
    const backend = await client.backend;
    if (options.prepared && type === 'P') {
      const name = textAt(message, 5);
      client.statements.set(name, message);
      if (name !== '' && backend.statements.has(name)) {
        client.socket.write(Buffer.from([0x31, 0, 0, 0, 4]));
        return;
      }
      if (name !== '') backend.statements.add(name);
    }
    if (options.prepared && type === 'B') {
      const name = textAt(message, 5 + textAt(message, 5).length + 1);
      const parse = client.statements.get(name);
      if (name !== '' && parse && !backend.statements.has(name)) {
        backend.statements.add(name);
        backend.dropParseComplete++;
        backend.socket.write(parse);
      }
    }
    backend.socket.write(message);
  }

  function greet(socket: Socket): void {
    const key = Buffer.alloc(13);
    key.write('K', 0);
    key.writeInt32BE(12, 1);
    key.writeInt32BE(nextPid++, 5);
    socket.write(
      Buffer.concat([Buffer.from([0x52, 0, 0, 0, 8, 0, 0, 0, 0]), key, Buffer.from('Z\0\0\0\x05I')]),
    );
  }

  const listener = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    const client: Client = { socket, backend: null, statements: new Map() };
    let greeted = false;
    let order = Promise.resolve();
    const messages = framed((type, message) => {
      if (type === 'X') socket.end();
      else order = order.then(() => forward(client, type, message)).catch(() => {});
    });
    socket.on('data', (bytes) => {
      if (greeted) return messages(bytes);
      if (bytes.readInt32BE(4) === SSL_REQUEST) return void socket.write('N');
      greeted = true;
      startup = Buffer.from(bytes);
      greet(socket);
    });
    socket.on('close', async () => {
      sockets.delete(socket);
      // A client that goes away in a session or a transaction takes its backend with it.
      (await client.backend)?.socket.destroy();
    });
  });
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  const own = new URL(url);
  own.hostname = '127.0.0.1';
  own.port = String((listener.address() as AddressInfo).port);
  const close = async (): Promise<void> => {
    const closed = once(listener, 'close');
    listener.close();
    for (const socket of sockets) socket.destroy();
    await closed;
  };
  return { url: own.toString(), close, [Symbol.asyncDispose]: close };
}

/** Cuts a stream into messages of the protocol: a type, a length, a body. */
function framed(take: (type: string, message: Buffer) => void): (bytes: Buffer) => void {
  let rest: Buffer = Buffer.alloc(0);
  return (bytes) => {
    rest = rest.length === 0 ? bytes : Buffer.concat([rest, bytes]);
    while (rest.length >= 5) {
      const length = 1 + rest.readInt32BE(1);
      if (rest.length < length) return;
      const message = rest.subarray(0, length);
      rest = rest.subarray(length);
      take(String.fromCharCode(message[0] ?? 0), message);
    }
  };
}

/** The text that ends with a zero byte. */
function textAt(message: Buffer, from: number): string {
  return message.toString('utf8', from, message.indexOf(0, from));
}
