/** Tool servers that are commands on this machine. Only the operator names them; a tenant chooses among the names. */
import { type ChildProcess, spawn } from 'node:child_process';
import {
  type JSONRPCMessage,
  ReadBuffer,
  serializeMessage,
  type Transport,
} from '@modelcontextprotocol/client';
import { McpError } from './mcp-error.ts';

/** A command that the operator allows. */
export type StdioServer = {
  readonly command: string;
  readonly args: readonly string[];
  /** The whole environment of the command, beside a PATH; nothing of agentd's own is in it. */
  readonly env: Readonly<Record<string, string>>;
  readonly cwd?: string | undefined;
};

const SCHEME = 'stdio:';
const PATH = '/usr/local/bin:/usr/bin:/bin';
/** How long a command may take to end by itself once its input has ended, and then once it was asked to. */
const END_MS = 500;

/** The name in a server_url such as `stdio:files`; null for any other URL. */
export function stdioName(url: string): string | null {
  return url.startsWith(SCHEME) ? url.slice(SCHEME.length).replace(/^\/\//, '') : null;
}

/** The command of that name. Throws McpError `not_listed`. */
export function listedServer(name: string, servers: Readonly<Record<string, StdioServer>>): StdioServer {
  const server = Object.hasOwn(servers, name) ? servers[name] : undefined;
  if (server) return server;
  throw new McpError('not_listed', 'The operator lists no stdio server of this name.', {
    nextStep: 'Use a name that the operator lists in AGENTD_MCP_STDIO, or the URL of a server.',
  });
}

/**
 * A child process that speaks MCP on its input and output: without our environment, in a process group of its own that is
 * killed as a whole, with a bound for each message. What it writes to its error output is thrown away.
 *
 * `stderr` and `pid` are there because the protocol's client takes a transport that has both for one over pipes.
 */
export class StdioTransport implements Transport {
  onclose?: () => void;
  onerror?: (error: Error) => void;
  onmessage?: (message: JSONRPCMessage) => void;
  readonly stderr = null;
  readonly #server: StdioServer;
  readonly #buffer: ReadBuffer;
  #child: ChildProcess | null = null;

  constructor(server: StdioServer, maxBytes: number) {
    this.#server = server;
    this.#buffer = new ReadBuffer({ maxBufferSize: maxBytes });
  }

  get pid(): number | null {
    return this.#child?.pid ?? null;
  }

  start(): Promise<void> {
    const { command, args, env, cwd } = this.#server;
    return new Promise((resolve, reject) => {
      const child = spawn(command, [...args], {
        env: { PATH, ...env },
        stdio: ['pipe', 'pipe', 'ignore'],
        detached: true,
        ...(cwd === undefined ? {} : { cwd }),
      });
      this.#child = child;
      child.once('spawn', resolve);
      child.once('error', (error: NodeJS.ErrnoException) => {
        reject(
          new McpError(
            'process_failed',
            `The command of the server can't be started (${error.code ?? 'error'}).`,
            {
              nextStep: 'Correct the command in AGENTD_MCP_STDIO.',
            },
          ),
        );
      });
      child.once('close', () => {
        this.#child = null;
        this.onclose?.();
      });
      child.stdin?.on('error', (error) => this.onerror?.(error));
      child.stdout?.on('error', (error) => this.onerror?.(error));
      child.stdout?.on('data', (piece: Buffer) => this.#read(piece));
    });
  }

  #read(piece: Buffer): void {
    try {
      this.#buffer.append(piece);
    } catch {
      this.onerror?.(new McpError('too_large', 'A message of the server is over the limit.'));
      void this.close();
      return;
    }
    for (;;) {
      try {
        const message = this.#buffer.readMessage();
        if (message === null) return;
        this.onmessage?.(message);
      } catch (error) {
        // a line that is no message: commands print all kinds of things
        this.onerror?.(error as Error);
      }
    }
  }

  send(message: JSONRPCMessage): Promise<void> {
    const input = this.#child?.stdin;
    if (!input?.writable) {
      return Promise.reject(
        new McpError('connection_lost', 'The process of the server has ended.', { transient: true }),
      );
    }
    return new Promise((resolve, reject) => {
      input.write(serializeMessage(message), (error) => {
        if (!error) resolve();
        else
          reject(
            new McpError('connection_lost', 'The process of the server has ended.', { transient: true }),
          );
      });
    });
  }

  /** Ends the process, and whatever it has started in its group. */
  async close(): Promise<void> {
    const child = this.#child;
    if (!child) return;
    const closed = new Promise<void>((resolve) => child.once('close', () => resolve()));
    child.stdin?.end();
    for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
      if (await within(closed, END_MS)) break;
      killGroup(child, signal);
    }
    // what the process has left behind in its group
    killGroup(child, 'SIGKILL');
    child.stdout?.destroy();
    this.#buffer.clear();
    if (this.#child === child) {
      this.#child = null;
      this.onclose?.();
    }
  }
}

function killGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.pid === undefined) return;
  try {
    process.kill(-child.pid, signal);
  } catch {
    // it has ended
  }
}

async function within(promise: Promise<void>, ms: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<boolean>((resolve) => {
    timer = setTimeout(() => resolve(false), ms);
  });
  try {
    return await Promise.race([promise.then(() => true), late]);
  } finally {
    clearTimeout(timer);
  }
}
