import type { Command } from 'commander';
import {
  cancelMoves,
  type ModelInUse,
  type MoveReport,
  modelsInUse,
  movers,
  moves,
} from '../db/embedding-reports.ts';
import type { CommandContext } from './context.ts';
import { printMoves } from './embedding-moves.ts';
import { configuredModel, nameOf } from './embedding-target.ts';
import { type MigrateOptions, migrate } from './embeddings-migrate.ts';
import { count, cut, shortId } from './format.ts';
import { asOperator } from './operator.ts';
import type { Output } from './output.ts';
import { workspaceOf } from './workspace.ts';

type Json = { readonly json?: boolean };
const MOST_ROWS = 200;

/** `agentd embeddings status|migrate|cancel`. */
export function register(program: Command, context: CommandContext): void {
  const embeddings = program
    .command('embeddings')
    .description('look at the models that knowledge is embedded with, and move it to another one');

  embeddings
    .command('status')
    .description('list the models in use by workspace, what the configuration wants, and moves under way')
    .option('--workspace <slug-or-id>', 'only this workspace')
    .action(async (options: { workspace?: string }, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const found = await context.withDatabase(async (db, config) => {
        const workspaceId = await workspaceOf(db, options.workspace);
        return {
          wanted: configuredModel(config),
          models: await modelsInUse(db, workspaceId, output.json ? 100_000 : MOST_ROWS + 1),
          moves: await moves(db, workspaceId === null ? null : [workspaceId]),
          workers: await movers(db),
        };
      });
      if (output.json) return output.data(found);
      printStatus(output, found);
    });

  embeddings
    .command('migrate')
    .description('move knowledge to another embedding model: shows what it costs, and does it with --yes')
    .option('--to <model[:dimensions]>', 'the new model; what the configuration says when left out')
    .option('--workspace <slug-or-id>', 'only this workspace')
    .option('--yes', 'do it')
    .option('--dry-run', 'show what it would take and change nothing, also with --yes')
    .option('--detach', 'return as soon as it is recorded')
    .addHelpText(
      'after',
      '\nSearches answer with the old vectors until all new ones are there. Daemons do the work; Ctrl-C only ends the watching.\n\n' +
        'Examples:\n  agentd embeddings migrate\n  agentd embeddings migrate --to text-embedding-3-large:1024 --workspace acme --yes',
    )
    .action(
      async (options: Omit<MigrateOptions, 'workspaceId'> & { workspace?: string }, command: Command) => {
        const output = context.output(command.optsWithGlobals<Json>());
        await context.withDatabase(async (db, config) => {
          const workspaceId = await workspaceOf(db, options.workspace);
          await migrate(db, config, output, context.note, { ...options, workspaceId });
        });
      },
    );

  embeddings
    .command('cancel')
    .description('call off moves that have not switched yet; what is searched stays as it is')
    .option('--workspace <slug-or-id>', 'only this workspace')
    .action(async (options: { workspace?: string }, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const cancelled = await context.withDatabase(async (db) => {
        const workspaceId = await workspaceOf(db, options.workspace);
        return asOperator(db, (tx) => cancelMoves(tx, workspaceId));
      });
      if (output.json) return output.data({ cancelled });
      output.line(
        cancelled.length === 0
          ? 'No move to another embedding model is under way that could be called off.'
          : `${count(cancelled.length)} ${cancelled.length === 1 ? 'move was' : 'moves were'} called off. The new vectors made so far are deleted.`,
      );
    });
}

type Status = {
  readonly wanted: { readonly model: string; readonly dimensions: number };
  readonly models: readonly ModelInUse[];
  readonly moves: readonly MoveReport[];
  readonly workers: number;
};

function printStatus(output: Output, { wanted, models, moves: all, workers }: Status): void {
  output.line(`The configuration wants ${nameOf(wanted)}.\n`);
  const isWanted = (row: ModelInUse): boolean => {
    const pin = all.find((move) => move.workspace_id === row.workspace_id && move.pinned_model !== null);
    const want = pin ? { model: pin.pinned_model, dimensions: pin.pinned_dimensions } : wanted;
    return row.model === null || (row.model === want.model && row.dimensions === want.dimensions);
  };
  output.table(
    models.slice(0, MOST_ROWS),
    [
      { title: 'WORKSPACE', value: (row) => cut(row.workspace_name, 24) },
      { title: 'ID', value: (row) => shortId(row.workspace_id) },
      {
        title: 'MODEL',
        value: (row) => cut(nameOf(row), 48),
        style: (row) => (isWanted(row) ? null : 'yellow'),
      },
      { title: 'SOURCES', value: (row) => count(row.sources), align: 'right' },
      { title: 'PASSAGES', value: (row) => count(row.chunks), align: 'right' },
      { title: 'TOKENS', value: (row) => count(row.tokens), align: 'right' },
      { title: 'NOTE', value: (row) => (isWanted(row) ? '' : 'not the model of new documents') },
    ],
    'There is no knowledge yet.',
  );
  if (models.length > MOST_ROWS) output.line(`… and more; --workspace shows one, --json all of them.`);
  if (all.length === 0) return;
  output.line('\nMoves, the last of each workspace:');
  printMoves(output, all.slice(0, MOST_ROWS));
  if (workers === 0 && all.some(isOpen)) {
    output.line('\nNo worker that ingests documents is running: agentd start.');
  }
}

const isOpen = (move: MoveReport): boolean => move.status === 'waiting' || move.status === 'running';
