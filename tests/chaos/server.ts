/** A PostgreSQL server of the harness's own, which it may restart as it likes. */
import { execFile, execFileSync } from 'node:child_process';
import { existsSync, readdirSync, realpathSync } from 'node:fs';
import { chown, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { freePort } from '../../src/demo/tool-server.ts';

/** `immediate` is a crash: nothing is written on the way down, and the log is replayed on the way up. */
export type RestartMode = 'immediate' | 'fast';

export type Server = {
  readonly url: string;
  readonly version: string;
  /** Resolves when the server takes connections again. */
  restart(mode: RestartMode): Promise<void>;
  stop(): Promise<void>;
};

const run = promisify(execFile);

/**
 * The folder of PostgreSQL's programs: PG_BIN, the newest of Debian's, or where the PATH has pg_ctl. Null if none of them
 * has pgvector.
 */
export function findPostgres(env: Readonly<Record<string, string | undefined>>): string | null {
  const debian = '/usr/lib/postgresql';
  const versions = existsSync(debian) ? readdirSync(debian).sort((a, b) => Number(b) - Number(a)) : [];
  const onPath = (env.PATH ?? '')
    .split(delimiter)
    .map((folder) => join(folder, 'pg_ctl'))
    .filter((file) => existsSync(file))
    .map((file) => dirname(realpathSync(file)));
  const folders = [env.PG_BIN, ...versions.map((version) => join(debian, version, 'bin')), ...onPath];
  return folders.find((folder) => folder && existsSync(join(folder, 'initdb')) && hasVector(folder)) ?? null;
}

function hasVector(bin: string): boolean {
  try {
    const share = execFileSync(join(bin, 'pg_config'), ['--sharedir'], { encoding: 'utf8' }).trim();
    return existsSync(join(share, 'extension', 'vector.control'));
  } catch {
    return false;
  }
}

/**
 * Starts a server with data of its own in a temporary folder. As root it runs as the user `postgres`, because PostgreSQL
 * refuses root. Throws where one of its programs fails.
 */
export async function startServer(bin: string): Promise<Server> {
  const user = process.getuid?.() === 0 ? idsOf('postgres') : null;
  const folder = await mkdtemp(join(tmpdir(), 'agentd-chaos-'));
  if (user) await chown(folder, user.uid, user.gid);
  const data = join(folder, 'data');
  const port = await freePort();
  const program = (name: string, args: readonly string[]): Promise<unknown> =>
    run(join(bin, name), [...args], { ...user, cwd: folder });
  await program('initdb', ['-D', data, '-A', 'trust', '-U', 'postgres', '-E', 'UTF8', '--locale=C']);
  // Without fsync: what the operating system has, survives the death of the server, and only that dies here.
  const settings = `-p ${port} -k ${folder} -c listen_addresses=127.0.0.1 -c max_connections=200 -c fsync=off`;
  const control = (...args: string[]): Promise<unknown> =>
    program('pg_ctl', ['-D', data, '-w', '-l', join(folder, 'log'), '-o', settings, ...args]);
  await control('start');
  return {
    url: `postgres://postgres@127.0.0.1:${port}/postgres`,
    version: execFileSync(join(bin, 'postgres'), ['--version'], { encoding: 'utf8' }).trim(),
    async restart(mode) {
      await control('-m', mode, 'restart');
    },
    async stop() {
      await control('-m', 'immediate', 'stop').catch(() => {});
      await rm(folder, { recursive: true, force: true });
    },
  };
}

function idsOf(user: string): { uid: number; gid: number } {
  const id = (flag: string): number => Number(execFileSync('id', [flag, user], { encoding: 'utf8' }));
  return { uid: id('-u'), gid: id('-g') };
}
