/** The daemons: started, told when to die, stopped, stalled; and what became of each. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { FREEZE, type KillOrder, type Order, type Window } from './windows.ts';

const CHILD = fileURLToPath(new URL('child.ts', import.meta.url));

/** Daemons that end by themselves: after so many no other is started, or a broken machine would be kept busy for ever. */
const MOST_ACCIDENTS = 10;

export type FleetOptions = {
  readonly databaseUrl: string;
  readonly toolsUrl: string;
  readonly modelUrl: string;
  readonly admit: (incarnation: number) => string;
  readonly leaseSeconds: number;
  readonly concurrency: number;
  /** Folder for compiled code, which spares each process most of its start. */
  readonly compileCache: string;
  /** Patience of each daemon's drain in seconds. */
  readonly drainSeconds: () => number;
};

/** One process of a daemon. Times are in milliseconds since the epoch. */
export class Incarnation {
  readonly number: number;
  readonly process: ChildProcess;
  /** Resolves when it works; rejects with its last words if it ends before. */
  readonly ready: Promise<void>;
  /** Resolves when the process is gone. */
  readonly gone: Promise<void>;
  workerId: string | null = null;
  /** Somebody has chosen it and is about to do something to it. */
  isTaken = false;
  #lastOrder: KillOrder | null = null;
  /** It did not stop when told to, and was ended by force. */
  isOverdue = false;
  /** When SIGTERM was sent. */
  termAt: number | null = null;
  exitedAt: number | null = null;
  /** The window in which it was killed. */
  killedIn: Window | null = null;
  /** Intervals for which it was frozen. */
  readonly stalls: { from: number; to: number }[] = [];
  /** Occurrences of the armed window that only its peers see. */
  #leftInFlight = 0;
  #isReady = false;
  readonly #lines: string[] = [];

  constructor(number: number, options: FleetOptions, onEvent: (event: string, line: string) => void) {
    this.number = number;
    this.process = spawn(process.execPath, [CHILD], {
      env: {
        PATH: process.env.PATH,
        NODE_COMPILE_CACHE: options.compileCache,
        DATABASE_URL: options.databaseUrl,
        OPENAI_API_KEY: options.admit(number),
        OPENAI_BASE_URL: options.modelUrl,
        AGENTD_DRAIN_SECONDS: String(options.drainSeconds()),
        AGENTD_QUEUES: `task-run=${options.concurrency}`,
        CHAOS_TOOLS_URL: options.toolsUrl,
        CHAOS_INCARNATION: String(number),
        CHAOS_LEASE_SECONDS: String(options.leaseSeconds),
      },
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    });
    for (const stream of [this.process.stdout, this.process.stderr]) {
      if (!stream) continue;
      createInterface({ input: stream }).on('line', (line) => {
        this.#lines.push(line);
        if (this.#lines.length > 40) this.#lines.shift();
        const event = /"level":"(?:warn|error|fatal)".*?"event":"(\w+)"/.exec(line)?.[1];
        if (event) onEvent(event, line);
      });
    }
    this.gone = once(this.process, 'exit').then(() => {
      this.exitedAt = Date.now();
      this.#isReady = false;
      // also where it died of an order that was just being taken back
      if (this.process.signalCode === 'SIGKILL' && !this.isOverdue)
        this.killedIn = this.#lastOrder?.window ?? null;
    });
    this.ready = new Promise((resolve, reject) => {
      this.process.once('message', (message: { workerId: string }) => {
        this.workerId = message.workerId;
        this.#isReady = true;
        resolve();
      });
      void this.gone.then(() =>
        reject(new Error(`Daemon ${number} ended before it worked:\n${this.lastWords()}`)),
      );
    });
    this.ready.catch(() => {});
  }

  /** Works, and nobody wants anything of it. */
  get isFree(): boolean {
    return this.#isReady && !this.isTaken && this.termAt === null && !this.isStalled;
  }

  get isStalled(): boolean {
    return this.stalls.at(-1)?.to === Number.POSITIVE_INFINITY;
  }

  /** Whether a harness that did not want it to end has to ask why it has. */
  get endedByItself(): boolean {
    if (this.exitedAt === null) return false;
    return this.killedIn === null && !(this.termAt !== null && this.process.exitCode === 0);
  }

  lastWords(): string {
    return this.#lines.slice(-12).join('\n');
  }

  arm(order: KillOrder): void {
    this.#lastOrder = order;
    this.#leftInFlight = order.window === 'in flight' ? order.nth : 0;
    this.#tell(order);
    if (order.window === 'drain') this.terminate();
    if (order.window === 'anywhere') setTimeout(() => this.#kill(), order.nth * 97 + order.delayMs);
  }

  disarm(): void {
    this.isTaken = false;
    this.#leftInFlight = 0;
    this.#tell(null);
  }

  /** A peer has got a request of this daemon. True if it was killed for it. */
  onCall(): boolean {
    if (this.#leftInFlight === 0 || --this.#leftInFlight > 0) return false;
    this.#kill();
    return true;
  }

  terminate(): void {
    this.termAt = Date.now();
    this.process.kill('SIGTERM');
  }

  /** Freezes the process, with a checkpoint on its way if one comes within a second, until `enough` resolves. */
  async stall(nth: number, enough: () => Promise<void>): Promise<void> {
    const stall = { from: Date.now(), to: Number.POSITIVE_INFINITY };
    this.stalls.push(stall);
    const frozen = this.#heard('frozen');
    this.#tell({ window: FREEZE, nth, pick: 0, delayMs: 1 });
    await Promise.race([frozen, pause(1_000)]);
    stall.from = Date.now();
    this.process.kill('SIGSTOP');
    try {
      await enough();
    } finally {
      stall.to = Date.now();
      await this.#wake();
    }
  }

  /** Until it has surely read that nobody wants it to freeze: it may do so once more when it wakes. */
  async #wake(): Promise<void> {
    let isAwake = false;
    void Promise.race([this.#heard('awake'), this.gone]).then(() => {
      isAwake = true;
    });
    this.#tell(null);
    while (!isAwake) {
      this.process.kill('SIGCONT');
      await pause(100);
    }
  }

  #heard(what: 'frozen' | 'awake'): Promise<void> {
    return new Promise((resolve) => {
      const look = (message: { readonly [name: string]: unknown }): void => {
        if (!message[what]) return;
        this.process.off('message', look);
        resolve();
      };
      this.process.on('message', look);
    });
  }

  #kill(): void {
    this.process.kill('SIGKILL');
  }

  #tell(order: Order | null): void {
    // a process that dies at this moment reads nothing any more
    if (this.process.connected) this.process.send({ order }, () => {});
  }
}

/** Keeps so many daemons running, whatever happens to them. */
export class Fleet {
  readonly all: Incarnation[] = [];
  /** Log events from warn up of all daemons, counted. */
  readonly events = new Map<string, number>();
  /** The first line of each event that is an error. */
  readonly errors = new Map<string, string>();
  readonly #options: FleetOptions;
  #size = 0;
  #gaveUp = false;

  constructor(options: FleetOptions) {
    this.#options = options;
  }

  async start(size: number): Promise<void> {
    this.#size = size;
    const first = Array.from({ length: size }, () => this.#spawn());
    await Promise.all(first.map((one) => one.ready));
  }

  incarnation(number: number): Incarnation | undefined {
    return this.all[number];
  }

  /** Takes a daemon that works and that nobody has taken; waits until there is one. */
  async free(pick: number): Promise<Incarnation> {
    for (;;) {
      if (this.#gaveUp) throw this.#tooMany();
      const found = this.all.filter((one) => one.isFree);
      const one = found[Math.floor(pick * found.length)];
      if (one) {
        one.isTaken = true;
        return one;
      }
      await pause(20);
    }
  }

  /** Lets a daemon die as ordered. False if its moment did not come in time, or it drained before. */
  async kill(order: KillOrder, patienceMs: number): Promise<boolean> {
    const one = await this.free(order.pick);
    one.arm(order);
    await Promise.race([one.gone, pause(patienceMs)]);
    if (one.exitedAt === null) one.disarm();
    return one.killedIn !== null;
  }

  /** Stops one daemon with SIGTERM; resolves when it is gone with how long it took in milliseconds. */
  async terminateOne(pick: number): Promise<number> {
    const one = await this.free(pick);
    one.terminate();
    await one.gone;
    return (one.exitedAt ?? 0) - (one.termAt ?? 0);
  }

  /** Resolves when all daemons work: one that starts while its database is away ends, as it should. */
  async allReady(): Promise<void> {
    while (this.all.filter((one) => one.isFree).length < this.#size) {
      if (this.#gaveUp) throw this.#tooMany();
      await pause(20);
    }
  }

  /** Stops all and starts none any more. */
  async stop(): Promise<void> {
    this.#size = 0;
    const living = this.all.filter((one) => one.exitedAt === null);
    for (const one of living) if (one.termAt === null) one.terminate();
    await Promise.race([Promise.all(living.map((one) => one.gone)), pause(30_000)]);
    for (const one of living) {
      if (one.exitedAt !== null) continue;
      one.isOverdue = true;
      one.process.kill('SIGKILL');
      await one.gone;
    }
  }

  #tooMany(): Error {
    return new Error(`Daemons end by themselves again and again:\n${this.all.at(-1)?.lastWords()}`);
  }

  #spawn(): Incarnation {
    const one = new Incarnation(this.all.length, this.#options, (event, line) => {
      this.events.set(event, (this.events.get(event) ?? 0) + 1);
      if (!this.errors.has(event) && line.includes('"level":"error"')) this.errors.set(event, line);
    });
    this.all.push(one);
    void one.gone.then(() => {
      const living = this.all.filter((other) => other.exitedAt === null).length;
      this.#gaveUp ||= this.all.filter((other) => other.endedByItself).length > MOST_ACCIDENTS;
      if (living < this.#size && !this.#gaveUp) this.#spawn();
    });
    return one;
  }
}
