import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Command } from 'commander';
import { sleep, systemClock } from '../clock.ts';
import { type Config, loadConfig } from '../config.ts';
import type { Daemon } from '../daemon.ts';
import type { Team } from '../demo/sample.ts';
import type { ToolServer } from '../demo/tool-server.ts';
import { FEATURE_HASH_MODEL } from '../providers/feature-hash.ts';
import { createLogger } from '../telemetry/logger.ts';
import type { CommandContext } from './context.ts';
import { CommandError } from './errors.ts';
import { count, duration, offset, statusStyle } from './format.ts';
import type { Output } from './output.ts';

/** The first occurrence comes this soon after the task is inserted, in seconds. */
const DUE_IN_SECONDS = 2;
/** How often the journal is read, in milliseconds. */
const LOOK_MS = 100;
/** A run that has not ended by then has failed the demo, in milliseconds. */
const PATIENCE_MS = 55_000;

/** `agentd demo`. */
export function register(program: Command, context: CommandContext): void {
  program
    .command('demo')
    .description(
      'watch an agent read a PDF and run a scheduled task, on a database of its own that is removed afterwards',
    )
    .option('--keep', 'keep the database and say how to look into it')
    .addHelpText(
      'after',
      '\nNothing of yours is touched: the embedded database lives in a new temporary folder on a free port.\n' +
        'A scripted model answers, unless OPENAI_API_KEY is set: then a real one does (a few cents at most).',
    )
    .action(async (options: { keep?: boolean }, command: Command) => {
      const output = context.output(command.optsWithGlobals<{ json?: boolean }>());
      await runDemo(context, output, options.keep === true);
    });
}

/** Cleans up in the reverse order, whatever happens; a failing one does not stop the others. */
class Cleanup {
  readonly #tasks: (() => unknown)[] = [];

  add(task: () => unknown): void {
    this.#tasks.unshift(task);
  }

  async run(): Promise<void> {
    for (const task of this.#tasks) {
      try {
        await task();
      } catch {
        // What failed before is the reason that a person should see.
      }
    }
  }
}

async function runDemo(context: CommandContext, output: Output, keep: boolean): Promise<void> {
  const say = output.json ? context.note : output.line;
  const cleanup = new Cleanup();
  const interrupted = watchInterrupt(cleanup);
  const folder = mkdtempSync(join(tmpdir(), 'agentd-demo-'));
  try {
    if (!keep) removeAfterwards(folder, cleanup);
    const began = performance.now();
    say(
      'agentd demo: an agent, a PDF that it reads, a server of tools, a schedule, and the rows that they leave.\n',
    );
    const tools = await startTools(cleanup, say);
    const config = await configure(context, folder, tools, cleanup, say);
    say('Creating a database and starting the worker; this takes some seconds.');
    const daemon = await start(context, config, cleanup);
    say(`Database and worker are up after ${duration(performance.now() - began)}.`);
    interrupted.throwIfAborted();
    const team = await readHandbook(daemon, config, say, interrupted);
    if (tools) await meetTools(daemon, team, tools, say, interrupted);
    await tell(daemon, team, output, say, interrupted, { folder, keep });
  } catch (error) {
    if (!interrupted.aborted) throw error;
    throw new CommandError(
      'Stopped.',
      keep ? `Its database is in ${folder}.` : 'Nothing is left behind. npm run demo starts it again.',
    );
  } finally {
    await cleanup.run();
  }
}

/** A second Ctrl-C, or a reader that stops reading (| head), ends the process at once: the folder goes even then. */
function removeAfterwards(folder: string, cleanup: Cleanup): void {
  const remove = (): void => rmSync(folder, { recursive: true, force: true });
  process.on('exit', remove);
  cleanup.add(() => {
    remove();
    process.off('exit', remove);
  });
}

/** Ctrl-C ends the demo as soon as it can end cleanly; a second one ends it at once. */
function watchInterrupt(cleanup: Cleanup): AbortSignal {
  const controller = new AbortController();
  const handle = (): void => {
    if (controller.signal.aborted) process.exit(1);
    controller.abort();
  };
  process.on('SIGINT', handle);
  process.on('SIGTERM', handle);
  cleanup.add(() => {
    process.off('SIGINT', handle);
    process.off('SIGTERM', handle);
  });
  return controller.signal;
}

type Say = (text: string) => void;

/** A configuration of the demo's own: of the environment it takes only the model's key and the log level. */
async function configure(
  context: CommandContext,
  folder: string,
  tools: ToolServer | null,
  cleanup: Cleanup,
  say: Say,
): Promise<Config> {
  const { env } = context;
  let model: Record<string, string | undefined> = {
    OPENAI_API_KEY: env.OPENAI_API_KEY,
    OPENAI_BASE_URL: env.OPENAI_BASE_URL,
  };
  if (env.OPENAI_API_KEY?.trim()) {
    say('The model is the one behind your OPENAI_API_KEY: its tokens are real and are paid for.');
  } else {
    const { startScriptedModel } = await import('../demo/scripted-model.ts');
    const scripted = await startScriptedModel();
    cleanup.add(() => scripted.stop());
    model = { OPENAI_API_KEY: scripted.apiKey, OPENAI_BASE_URL: scripted.baseUrl };
    say(
      'The model is a script on this machine: nothing is sent anywhere, costs are what a real one would take.',
    );
  }
  return loadConfig({
    ...model,
    AGENTD_DATA_DIR: folder,
    AGENTD_EMBEDDED_PORT: '0',
    // on this machine: whatever answers as model need not make vectors, and no cent is spent on them
    AGENTD_EMBEDDING_MODEL: FEATURE_HASH_MODEL,
    // the server of tools is on loopback
    AGENTD_ALLOWED_PRIVATE_HOSTS: tools ? new URL(tools.url).host : '',
    AGENTD_DRAIN_SECONDS: '2',
    AGENTD_LOG_LEVEL: env.AGENTD_LOG_LEVEL || 'silent',
  });
}

async function start(context: CommandContext, config: Config, cleanup: Cleanup): Promise<Daemon> {
  const { startDaemon } = await import('../daemon.ts');
  const logger = createLogger({
    level: config.logLevel,
    destination: { write: (line) => context.note(line.trimEnd()) },
  });
  const daemon = await startDaemon(config, { logger, probes: false });
  cleanup.add(() => daemon.stop());
  return daemon;
}

/** Inserts a workspace, an agent and a file, and waits until the worker has made the file searchable. */
async function readHandbook(daemon: Daemon, config: Config, say: Say, signal: AbortSignal): Promise<Team> {
  const { insertTeam } = await import('../demo/sample.ts');
  const { HANDBOOK, untilSearchable, uploadHandbook } = await import('../demo/handbook.ts');
  const team = await insertTeam(daemon.db);
  const began = performance.now();
  const sourceId = await uploadHandbook(config, daemon.db, team);
  say(`Inserted: workspace "Demo shop", agent "Iris", and the row of a file for her to read, ${HANDBOOK}.`);
  const read = await untilSearchable(daemon.db, sourceId, signal);
  say(
    `agentd has read it after ${duration(performance.now() - began)}: ${read.page_count} pages, ${read.chunk_count} passages of ${count(read.token_count ?? 0)} tokens; ` +
      `vectors by ${FEATURE_HASH_MODEL}, on this machine.`,
  );
  return team;
}

/** A server of tools for the agent; null where the demo's is not installed. */
async function startTools(cleanup: Cleanup, say: Say): Promise<ToolServer | null> {
  const { startToolServer } = await import('../demo/tool-server.ts');
  const server = await startToolServer();
  if (server) cleanup.add(() => server.stop());
  else say('No MCP server is connected: the one of the demo is not part of a production install.');
  return server;
}

/** Connects the agent with the server, and waits until the worker knows its tools. */
async function meetTools(
  daemon: Daemon,
  team: Team,
  server: ToolServer,
  say: Say,
  signal: AbortSignal,
): Promise<void> {
  const { CONNECTION, connectTools } = await import('../demo/tool-server.ts');
  const began = performance.now();
  const seen = await connectTools(daemon.db, team, server.url, signal);
  say(
    `Inserted: her connection "${CONNECTION}" with an MCP server on this machine (its protocol's example server).\n` +
      `agentd has listed it after ${duration(performance.now() - began)}: ${seen.tools} tools, ${seen.strict} of them as strict functions.`,
  );
}

async function tell(
  daemon: Daemon,
  team: Team,
  output: Output,
  say: Say,
  signal: AbortSignal,
  place: { folder: string; keep: boolean },
): Promise<void> {
  const { insertTask, SCHEDULE } = await import('../demo/sample.ts');
  const { rowsOfRun, printRows } = await import('../demo/rows.ts');
  const taskId = await insertTask(daemon.db, team, DUE_IN_SECONDS);
  say(
    `Inserted: the task "Morning briefing" (${SCHEDULE.cron} ${SCHEDULE.timezone}; its first run is due in ${DUE_IN_SECONDS} s).\n` +
      'From here on agentd acts alone:\n',
  );
  const run = await watch(daemon, output, say, taskId, signal);
  const { untilSummed } = await import('../demo/watch.ts');
  await untilSummed(daemon.db, run.id, PATIENCE_MS / 5, signal);
  const rows = await rowsOfRun(daemon.db, run.id);
  if (output.json) output.data({ run_id: run.id, status: run.status, rows });
  else {
    const [posted] = rows.chat_messages ?? [];
    if (posted)
      say(
        `\nWhat she posted, each sentence with where she has it from:\n\n${indent(String(posted.content))}`,
      );
    say('\nThe rows behind it, as any client of the database reads them:');
    printRows(output, rows);
  }
  if (run.status !== 'completed') {
    throw new CommandError(
      `The run ${run.status}: ${run.reason ?? run.reason_code ?? 'no reason was given'}`,
      'Run it again with AGENTD_LOG_LEVEL=debug to see what the worker says.',
    );
  }
  say(whatNext(place));
}

const indent = (text: string): string => text.replace(/^/gm, '  ');

/** Tells the run's events as they happen; resolves with the ended run. */
async function watch(daemon: Daemon, output: Output, say: Say, taskId: string, signal: AbortSignal) {
  const { eventsOf, hasEnded, readJournal } = await import('../demo/watch.ts');
  const told = new Set<string>();
  const deadline = performance.now() + PATIENCE_MS;
  for (;;) {
    const journal = await readJournal(daemon.db, taskId);
    for (const event of journal ? eventsOf(journal) : []) {
      if (told.has(event.key)) continue;
      told.add(event.key);
      const since = offset(event.at.getTime() - (journal?.run.created_at.getTime() ?? 0));
      const style = event.status === null ? (event.depth === 0 ? 'bold' : null) : statusStyle(event.status);
      say(
        `${output.paint('dim', since.padStart(8))}  ${'    '.repeat(event.depth)}${output.paint(style, event.text)}`,
      );
    }
    if (journal && hasEnded(journal.run)) return journal.run;
    if (performance.now() > deadline) {
      throw new CommandError(
        `The run had not ended after ${duration(PATIENCE_MS)}${journal ? `: it is ${journal.run.status}` : '; it never began'}.`,
        'Is the machine very busy? AGENTD_LOG_LEVEL=debug shows what the worker says.',
      );
    }
    await sleep(systemClock, LOOK_MS, signal);
  }
}

function whatNext(place: { folder: string; keep: boolean }): string {
  const kept = `AGENTD_DATA_DIR=${place.folder} AGENTD_EMBEDDED_PORT=0`;
  const look = place.keep
    ? `The database was kept. Look into it, then delete ${place.folder}:

  ${kept} npm run agentd -- runs list
  ${kept} npm run agentd -- status`
    : `The demo's database is gone now; npm run demo -- --keep leaves it for you to look into.`;
  return `
${look}

Try next, with a database that stays:

  export OPENAI_API_KEY=…            your key, or that of any OpenAI-compatible endpoint with OPENAI_BASE_URL
  npm run agentd -- start            the worker, on an embedded database in ./.agentd
  psql "postgres://postgres@127.0.0.1:54329/postgres?sslmode=disable"

  insert into agents (name, instructions, model) values ('Max', 'You answer in one line.', 'gpt-4o-mini');
  insert into agent_tasks (agent_id, name, instructions)
    select id, 'Haiku', 'Write a haiku about queues.' from agents where name = 'Max';
  select run_task(id) from agent_tasks where name = 'Haiku';
  select status, reason, output ->> 'text' from task_runs order by created_at desc limit 1;

docs/sql-interface.md explains every table and function.`;
}
