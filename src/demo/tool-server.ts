/**
 * A real server of tools for the demo: the example server of the Model Context Protocol, in a process of its own on loopback.
 * agentd meets it as it would any other: a row with its address.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { createServer } from 'node:net';
import { fileURLToPath } from 'node:url';
import { sleep, systemClock } from '../clock.ts';
import { CommandError } from '../commands/errors.ts';
import { duration } from '../commands/format.ts';
import type { Database } from '../db/database.ts';
import { insertConnection, type Team } from './sample.ts';

/** How the agent's connection is called. */
export const CONNECTION = 'Weather';
/** The tool of the server that answers with the weather of a city. */
export const WEATHER_TOOL = 'get-structured-content';
const PACKAGE = '@modelcontextprotocol/server-everything/dist/index.js';
/** How often the row is looked at, in milliseconds. */
const LOOK_MS = 50;
/** A server whose tools are not there by then has failed the demo, in milliseconds. */
const PATIENCE_MS = 30_000;

export type ToolServer = { readonly url: string; stop(): Promise<void> };

/** Starts it on a free port; resolves when it listens. Null where the package is not installed, as in production. */
export async function startToolServer(): Promise<ToolServer | null> {
  const entry = installed();
  if (!entry) return null;
  const port = await freePort();
  const child = spawn(process.execPath, [entry, 'streamableHttp'], {
    env: { PORT: String(port) },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  // an end of this process that nothing can clean up after still takes it along
  const kill = (): void => void child.kill('SIGKILL');
  process.on('exit', kill);
  let said = '';
  await new Promise<void>((resolve, reject) => {
    child.stderr.on('data', (data: Buffer) => {
      said = (said + data.toString()).slice(-2000);
      if (/listening on port/.test(said)) resolve();
    });
    child.once('error', reject);
    child.once('exit', (code) =>
      reject(
        new CommandError(
          `The demo's server of tools ended with ${code}: ${said.trim()}`,
          'Run the demo once more.',
        ),
      ),
    );
  });
  return {
    url: `http://127.0.0.1:${port}/mcp`,
    async stop() {
      process.off('exit', kill);
      if (child.exitCode !== null || child.signalCode !== null) return;
      const gone = once(child, 'exit');
      kill();
      await gone;
    },
  };
}

/** What agentd knows of the server, once it has asked it. */
export type ToolsSeen = { readonly tools: number; readonly strict: number };

/** Inserts the agent's connection and waits until the worker has listed its tools. Throws CommandError with the reason where that fails. */
export async function connectTools(
  db: Database,
  team: Team,
  url: string,
  signal: AbortSignal,
): Promise<ToolsSeen> {
  const id = await insertConnection(db, team, { name: CONNECTION, url });
  const deadline = performance.now() + PATIENCE_MS;
  for (;;) {
    const [row] = await db.query<{ reason: string | null; isListed: boolean } & ToolsSeen>(
      `select c.reason, c.last_refreshed_at is not null as "isListed",
              count(t.id)::integer as tools,
              count(t.id) filter (where t.openai_schema #>> '{function,strict}' = 'true')::integer as strict
         from public.agent_mcp_connections c left join public.mcp_tools_cache t on t.connection_id = c.id
        where c.id = $1 group by c.id`,
      [id],
    );
    if (row?.isListed) return { tools: row.tools, strict: row.strict };
    if (performance.now() > deadline) {
      throw new CommandError(
        `The tools of ${url} were not listed after ${duration(PATIENCE_MS)}: ${row?.reason ?? 'nobody has asked for them'}`,
        'Run it again with AGENTD_LOG_LEVEL=debug to see what the worker says.',
      );
    }
    await sleep(systemClock, LOOK_MS, signal);
  }
}

function installed(): string | null {
  for (let folder = new URL('.', import.meta.url); ; folder = new URL('..', folder)) {
    const path = fileURLToPath(new URL(`node_modules/${PACKAGE}`, folder));
    if (existsSync(path)) return path;
    if (folder.pathname === '/') return null;
  }
}

/** A port of loopback that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  if (address === null || typeof address === 'string') throw new Error('No port is free.');
  return address.port;
}
