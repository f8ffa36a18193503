import type { Command } from 'commander';
import type { Config } from '../config.ts';
import { type CommandContext, openFor } from './context.ts';
import {
  type Check,
  type CheckStatus,
  check,
  checkKeys,
  checkModel,
  configInForce,
} from './doctor-checks.ts';
import { checkDatabase } from './doctor-database.ts';
import { repairStatements } from './doctor-schema.ts';
import { EXIT, explain } from './errors.ts';
import type { Output, Style } from './output.ts';

/** `agentd doctor`. */
export function register(program: Command, context: CommandContext): void {
  program
    .command('doctor')
    .description('check everything that the worker needs and say what to do about what is wrong')
    .addHelpText('after', '\nExit code 1 when a check fails; warnings do not fail. Nothing is changed.')
    .option('--sql', 'print the statements that repair what differs in the schema, and nothing else')
    .action(async (options: { sql?: boolean }, command: Command) => {
      const output = context.output(command.optsWithGlobals<{ json?: boolean }>());
      const config = context.config();
      if (options.sql) {
        await printRepair(config, output);
        return;
      }
      const [database, model] = await Promise.all([databaseChecks(config), checkModel(config)]);
      const checks = [...database, model, checkKeys(config)];
      const failed = checks.some((each) => each.status === 'fail');
      if (failed) context.exitWith(EXIT.failed);
      const inForce = configInForce(config);
      if (output.json) output.data({ ok: !failed, checks, configuration: inForce });
      else print(output, checks, inForce);
    });
}

/** What `psql` can be given. Throws where the database can't be asked. */
async function printRepair(config: Config, output: Output): Promise<void> {
  const connection = await openFor(config, false);
  try {
    const statements = await repairStatements(connection.db);
    if (output.json) output.data(statements);
    else for (const statement of statements) output.line(statement);
  } finally {
    await connection.close();
  }
}

async function databaseChecks(config: Config): Promise<Check[]> {
  try {
    const connection = await openFor(config, false);
    try {
      return [
        check('database', 'ok', 'The database answers.'),
        ...(await checkDatabase(connection.db, config)),
      ];
    } finally {
      await connection.close();
    }
  } catch (error) {
    const { message, nextStep } = explain(error);
    return [check('database', 'fail', message, nextStep)];
  }
}

const STYLES: Readonly<Record<CheckStatus, Style>> = {
  ok: 'green',
  warn: 'yellow',
  fail: 'red',
  skip: 'dim',
};

/** So many of the things that one check found are printed. */
const SHOWN = 40;

function print(output: Output, checks: readonly Check[], inForce: Readonly<Record<string, string>>): void {
  for (const each of checks) {
    output.line(
      `${output.paint(STYLES[each.status], each.status.padEnd(4))}  ${each.name.padEnd(15)}  ${each.message}`,
    );
    const details = each.details ?? [];
    for (const { object, problem, next_step } of details.slice(0, SHOWN)) {
      output.line(`${' '.repeat(23)}${object}: ${problem}`);
      if (next_step !== null) output.line(`${' '.repeat(25)}→ ${next_step}`);
    }
    if (details.length > SHOWN)
      output.line(`${' '.repeat(23)}… and ${details.length - SHOWN} more: agentd doctor --json`);
    if (each.next_step !== null && each.status !== 'ok') output.line(`${' '.repeat(23)}→ ${each.next_step}`);
  }
  output.line(`\n${output.paint('bold', 'Configuration in force')}`);
  const width = Math.max(...Object.keys(inForce).map((name) => name.length));
  for (const [name, value] of Object.entries(inForce)) output.line(`  ${name.padEnd(width)}  ${value}`);
  const count = (status: CheckStatus): number => checks.filter((each) => each.status === status).length;
  output.line(
    `\n${count('ok')} ok, ${count('warn')} warnings, ${count('fail')} failed, ${count('skip')} skipped`,
  );
}
