import type { Command } from 'commander';
import { CollisionError, migrateDown, migrateUp, migrationStatus } from '../db/migrate.ts';
import type { CommandContext } from './context.ts';
import { UsageError } from './errors.ts';
import { statusStyle, time } from './format.ts';
import { checkUp, printCollisions } from './migrate-check.ts';

type Json = { readonly json?: boolean };

/** `agentd migrate up|down|status`. */
export function register(program: Command, context: CommandContext): void {
  const migrate = program
    .command('migrate')
    .description('bring the database to this version, or take it back');

  migrate
    .command('up')
    .description(
      'apply the pending migrations and install the queues; safe to run again and from several machines',
    )
    .option('--check', 'say what is in the way and what is pending, and change nothing')
    .action(async (options: { check?: boolean }, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      if (options.check === true) return checkUp(context, output);
      const work = context.withDatabase((db, config) => migrateUp(db, config.queues), { create: true });
      const applied = await work.catch((error: unknown) => {
        if (!(error instanceof CollisionError)) throw error;
        printCollisions(context, output, { pending: null, collisions: error.collisions });
        return null;
      });
      if (applied === null) return;
      if (output.json) return output.data({ applied });
      for (const name of applied) output.line(`applied  ${name}`);
      output.line(
        applied.length === 0 ? 'The database is up to date.' : `${applied.length} migrations applied.`,
      );
    });

  migrate
    .command('down')
    .description('take back the newest migration; the rows of its tables go with it')
    .option('--all', 'take back every migration')
    .option('--queue', 'drop pg-boss’s schema and every job as well')
    .option('--yes', 'confirm that data will be lost')
    .action(async (options: { all?: boolean; queue?: boolean; yes?: boolean }, command: Command) => {
      if (options.yes !== true) {
        throw new UsageError(
          `This drops ${options.all ? 'all of agentd’s tables' : 'the tables of the newest migration'} with their rows.`,
          'Make a backup, then run the command again with --yes.',
        );
      }
      const output = context.output(command.optsWithGlobals<Json>());
      const reverted = await context.withDatabase((db) =>
        migrateDown(db, { all: options.all === true, queue: options.queue === true }),
      );
      if (output.json) return output.data({ reverted });
      for (const name of reverted) output.line(`reverted  ${name}`);
      if (reverted.length === 0) output.line('There was nothing to take back.');
    });

  migrate
    .command('status')
    .description('list the migrations and when they were applied')
    .action(async (_: unknown, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const states = await context.withDatabase((db) => migrationStatus(db));
      const rows = states.map(({ name, appliedAt }) => ({
        name,
        state: appliedAt === null ? 'pending' : 'applied',
        applied_at: appliedAt,
      }));
      if (output.json) return output.data({ migrations: rows });
      output.table(
        rows,
        [
          { title: 'MIGRATION', value: (row) => row.name },
          {
            title: 'STATE',
            value: (row) => row.state,
            style: (row) => statusStyle(row.state === 'applied' ? 'ok' : 'warn'),
          },
          { title: 'APPLIED', value: (row) => time(row.applied_at) },
        ],
        'There are no migrations.',
      );
      if (rows.some((row) => row.applied_at === null))
        output.line('\nRun agentd migrate up to apply what is pending.');
    });
}
