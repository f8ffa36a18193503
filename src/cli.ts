/** The command line: agentd COMMAND. Each command is a file in commands/. */
import { pathToFileURL } from 'node:url';
import { Command, CommanderError } from 'commander';
import { createContext } from './commands/context.ts';
import * as credentials from './commands/credentials.ts';
import * as demo from './commands/demo.ts';
import * as doctor from './commands/doctor.ts';
import * as embeddings from './commands/embeddings.ts';
import { EXIT, explain } from './commands/errors.ts';
import * as ingest from './commands/ingest.ts';
import * as maintenance from './commands/maintenance.ts';
import * as mcp from './commands/mcp.ts';
import * as migrate from './commands/migrate.ts';
import { createOutput, type Stream } from './commands/output.ts';
import * as queues from './commands/queues.ts';
import * as runs from './commands/runs.ts';
import * as secrets from './commands/secrets.ts';
import * as start from './commands/start.ts';
import * as status from './commands/status.ts';
import * as tasks from './commands/tasks.ts';
import * as usage from './commands/usage.ts';
import * as workspaces from './commands/workspaces.ts';
import { version } from './version.ts';

const commands = [
  start,
  migrate,
  doctor,
  status,
  runs,
  tasks,
  queues,
  ingest,
  embeddings,
  mcp,
  credentials,
  secrets,
  maintenance,
  workspaces,
  usage,
  demo,
];

const EXAMPLES = `
Examples:
  agentd start                                   run the worker; without DATABASE_URL on an embedded database
  agentd doctor                                  check the database, the rights, the model, the keys
  agentd status --watch                          what happens now
  agentd tasks preview "0 9 * * 1-5" --zone Europe/Berlin
  agentd runs show 3f2a91c0                      where a run's time, tokens and money went
  agentd queues pause task-run                   let nothing new begin
  agentd ingest handbook.pdf                     make a file searchable for a workspace’s agents
  agentd embeddings migrate                      what another embedding model would cost
  agentd workspace export acme ./acme            everything of a workspace as files; erase deletes it
  agentd usage show --workspace acme             what a workspace has used, by day, model and agent
  agentd mcp list                                what agents' tool servers offer, and which fail
  agentd credentials list --failing              connected accounts that need a person

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
`;

type Env = Readonly<Record<string, string | undefined>>;

/**
 * Runs one command line. Never throws; resolves with the exit code.
 *
 * @param args the arguments after the program's name
 */
export async function main(
  args: readonly string[],
  parts: { env: Env; stdout: Stream; stderr: Stream },
): Promise<number> {
  let exitCode: number = EXIT.done;
  const context = createContext({
    ...parts,
    version,
    exitWith: (code) => {
      exitCode = code;
    },
  });
  const program = new Command('agentd')
    .description('The headless worker of an agent platform on Postgres.')
    .version(version, '-V, --version', 'print the version')
    .option('--json', 'print JSON, for scripts')
    .configureHelp({ showGlobalOptions: true })
    .configureOutput({
      writeOut: (text) => parts.stdout.write(text),
      writeErr: (text) => parts.stderr.write(text),
      // Printed below, with a next step.
      outputError: () => {},
      getOutHasColors: () => false,
      getErrHasColors: () => false,
    })
    .showSuggestionAfterError()
    .exitOverride()
    .addHelpText('after', EXAMPLES);
  for (const command of commands) command.register(program, context);

  try {
    await program.parseAsync([...args], { from: 'user' });
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) return EXIT.done;
    // The help was printed instead of a message: a group of commands was named without one of them.
    if (error instanceof CommanderError && error.code === 'commander.help') return EXIT.usage;
    const failure = explain(error);
    printFailure(parts, args.includes('--json'), failure);
    return failure.exitCode;
  }
  return exitCode;
}

function printFailure(
  parts: { env: Env; stderr: Stream },
  json: boolean,
  failure: ReturnType<typeof explain>,
): void {
  const output = createOutput(parts.stderr, parts.env, json);
  if (json) {
    const { message, nextStep, reasonCode } = failure;
    output.data({ error: { message, reason_code: reasonCode, next_step: nextStep } });
    return;
  }
  output.line(`${output.paint('red', 'agentd:')} ${failure.message}`);
  if (failure.nextStep !== null) output.line(failure.nextStep);
  if (failure.stack !== null && ['debug', 'trace'].includes(parts.env.AGENTD_LOG_LEVEL ?? '')) {
    output.line(failure.stack);
  }
}

/** Runs the process's own command line; what bin/agentd.js calls. */
export async function run(): Promise<void> {
  // A reader that stops reading (agentd runs list | head) is no failure.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(EXIT.done);
    throw error;
  });
  process.exitCode = await main(process.argv.slice(2), {
    env: process.env,
    stdout: process.stdout,
    stderr: process.stderr,
  });
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) await run();
