/** Child processes under measurement: started, watched, ended. */
import { type ChildProcess, spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

/** Path of a file beside this one's folder, such as `../src/cli.ts`. */
export function benchPath(relative: string): string {
  return fileURLToPath(new URL(`../${relative}`, import.meta.url));
}

export class Child {
  readonly process: ChildProcess;
  readonly #lines: string[] = [];
  readonly #waiting: { fits: (line: string) => boolean; resolve: (line: string) => void }[] = [];
  readonly #ended: Promise<number | null>;
  #error = '';

  /** @param args of node; AGENTD_BENCH_NODE_ARGS in the environment goes before them, for profiles. */
  constructor(args: readonly string[], env: Record<string, string>) {
    const extra = process.env.AGENTD_BENCH_NODE_ARGS?.split(' ').filter(Boolean) ?? [];
    this.process = spawn(process.execPath, [...extra, ...args], {
      env: { PATH: process.env.PATH ?? '', HOME: process.env.HOME ?? '', ...env },
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    this.process.stderr?.on('data', (chunk: Buffer) => {
      this.#error = (this.#error + String(chunk)).slice(-4000);
    });
    if (this.process.stdout) {
      createInterface({ input: this.process.stdout }).on('line', (line) => {
        const index = this.#waiting.findIndex((w) => w.fits(line));
        if (index >= 0) this.#waiting.splice(index, 1)[0]?.resolve(line);
        else this.#lines.push(line);
      });
    }
    this.#ended = new Promise((resolve) => this.process.once('exit', resolve));
  }

  /** The next line on standard output that contains `text`. Throws with what stands on standard error if the child ends first. */
  line(text: string): Promise<string> {
    const fits = (line: string): boolean => line.includes(text);
    const index = this.#lines.findIndex(fits);
    if (index >= 0) return Promise.resolve(this.#lines.splice(index, 1)[0] as string);
    return Promise.race([
      new Promise<string>((resolve) => this.#waiting.push({ fits, resolve })),
      this.#ended.then((code) => {
        throw new Error(`The child ended with ${code} before it said '${text}'. ${this.#error}`);
      }),
    ]);
  }

  /** The JSON object on the next line of standard output. */
  async json<T>(): Promise<T> {
    return JSON.parse(await this.line('{')) as T;
  }

  send(line: string): void {
    this.process.stdin?.write(`${line}\n`);
  }

  /** Asks it to end and waits for that. */
  async stop(): Promise<void> {
    this.process.kill('SIGTERM');
    await this.#ended;
  }

  /** Seconds of processor time so far, user and system, of all its threads. Linux only. */
  async cpuSeconds(): Promise<number> {
    return processCpuSeconds(this.process.pid as number);
  }

  /** Resident memory in MB (2^20 bytes): now and at its highest. Linux only. */
  async memory(): Promise<{ now: number; peak: number }> {
    const status = await readFile(`/proc/${this.process.pid}/status`, 'utf8');
    const mb = (field: string): number => Number(new RegExp(`${field}:\\s+(\\d+)`).exec(status)?.[1]) / 1024;
    return { now: mb('VmRSS'), peak: mb('VmHWM') };
  }
}

async function processCpuSeconds(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
  // after the command's name in parentheses; the clock ticks 100 times a second on every Linux
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

/** A daemon as an operator starts it. Resolves when it works. */
export async function startDaemonChild(
  databaseUrl: string,
  env: Record<string, string> = {},
): Promise<Child> {
  const child = new Child([benchPath('../src/cli.ts'), 'start'], {
    DATABASE_URL: databaseUrl,
    AGENTD_HTTP_PORT: '0',
    OPENAI_API_KEY: 'bench-key',
    NODE_ENV: 'production',
    ...env,
  });
  await child.line('agentd is running');
  return child;
}
