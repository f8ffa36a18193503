/** What a person decides about a run: cancel, retry, approve, deny. */
import type { Command } from 'commander';
import type { Queryable } from '../db/database.ts';
import {
  cancelRun,
  decideToolCall,
  findRun,
  retryRun,
  type WaitingCall,
  waitingCalls,
} from '../db/run-reports.ts';
import { type CommandContext, resolveId } from './context.ts';
import { CommandError, UsageError } from './errors.ts';
import { shortId } from './format.ts';
import { asOperator } from './operator.ts';
import { shortArguments } from './run-timeline.ts';

type Json = { readonly json?: boolean };
type DecisionOptions = { call?: string; all?: boolean; reason?: string };
const RUN_ARGUMENT = 'id of the run, or its first six digits or more';

/** `agentd runs cancel|retry|approve|deny`. */
export function registerDecisions(runs: Command, context: CommandContext): void {
  runs
    .command('cancel')
    .description('end a run that has not ended; a model or tool call in flight is aborted')
    .argument('<run>', RUN_ARGUMENT)
    .action(async (text: string, _: unknown, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const outcome = await context.withDatabase(async (db) => {
        const id = await resolveId(db, 'run', text);
        const cancelled = await asOperator(db, (tx) => cancelRun(tx, id));
        return { run_id: id, cancelled, status: (await findRun(db, id))?.status ?? null };
      });
      if (output.json) return output.data(outcome);
      output.line(
        outcome.cancelled
          ? `Run ${outcome.run_id} is cancelled.`
          : `Run ${outcome.run_id} had already ended: ${outcome.status}. Nothing was changed.`,
      );
    });

  runs
    .command('retry')
    .description(
      'start a run that has ended once more: a new run of the task as it is now, with the same input',
    )
    .argument('<run>', RUN_ARGUMENT)
    .action(async (text: string, _: unknown, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const outcome = await context.withDatabase(async (db) => {
        const id = await resolveId(db, 'run', text);
        return { run_id: id, new_run_id: await retry(db, id) };
      });
      if (output.json) return output.data(outcome);
      output.line(
        `Run ${outcome.new_run_id} retries ${outcome.run_id}. Follow it: agentd runs show ${shortId(outcome.new_run_id)}`,
      );
    });

  for (const approve of [true, false]) {
    const word = approve ? 'approve' : 'deny';
    runs
      .command(word)
      .description(
        approve
          ? 'allow the tool call that a run waits for'
          : 'deny the tool call that a run waits for; the model is told, with the reason',
      )
      .argument('<run>', RUN_ARGUMENT)
      .option('--call <id>', 'which call, where several wait: its id, or the first six digits or more')
      .option('--all', 'all that wait')
      .option('--reason <text>', 'kept with the decision')
      .addHelpText(
        'after',
        `\nExamples:\n  agentd runs list --status waiting\n  agentd runs ${word} 3f2a91c0 --reason "checked with Ann"`,
      )
      .action(async (text: string, options: DecisionOptions, command: Command) => {
        const output = context.output(command.optsWithGlobals<Json>());
        const outcome = await context.withDatabase(async (db) => {
          const id = await resolveId(db, 'run', text);
          return asOperator(db, (tx) => decide(tx, id, approve, options));
        });
        if (output.json) return output.data(outcome);
        for (const call of outcome.decided) {
          output.line(
            `${approve ? 'Allowed' : 'Denied'}: ${call.tool_name} ${shortArguments(call.arguments)}`,
          );
        }
        output.line(
          outcome.left > 0
            ? `${outcome.left} more ${outcome.left === 1 ? 'call waits' : 'calls wait'} for a decision.`
            : `Run ${outcome.run_id} goes on.`,
        );
      });
  }
}

async function retry(db: Parameters<typeof asOperator>[0], id: string): Promise<string> {
  try {
    return await asOperator(db, (tx) => retryRun(tx, id));
  } catch (error) {
    const { code, hint, message } = error as { code?: string; hint?: string; message: string };
    // not in the state for it: the sentence is for people already
    if (code === '55000') throw new CommandError(`${message}.`, hint ?? '');
    throw error;
  }
}

type Decided = { run_id: string; decided: readonly WaitingCall[]; left: number };

async function decide(
  tx: Queryable,
  id: string,
  approve: boolean,
  options: DecisionOptions,
): Promise<Decided> {
  const waiting = await waitingCalls(tx, id);
  if (waiting.length === 0) {
    const status = (await findRun(tx, id))?.status ?? 'gone';
    throw new CommandError(
      `Run ${id} waits for no decision: it is ${status}.`,
      'agentd runs list --status waiting shows the runs that wait.',
    );
  }
  const chosen = choose(waiting, options);
  for (const call of chosen) {
    if (!(await decideToolCall(tx, call.id, approve, options.reason ?? null))) {
      throw new CommandError(
        `The call ${call.id} was decided by somebody else just now.`,
        `agentd runs show ${shortId(id)} says how.`,
      );
    }
  }
  return { run_id: id, decided: chosen, left: waiting.length - chosen.length };
}

function choose(waiting: readonly WaitingCall[], options: DecisionOptions): readonly WaitingCall[] {
  const list = waiting
    .map((call) => `  ${call.id}  ${call.tool_name} ${shortArguments(call.arguments)}`)
    .join('\n');
  if (options.call !== undefined) {
    const prefix = options.call.toLowerCase();
    const found = waiting.filter((call) => call.id.startsWith(prefix));
    if (prefix.length < 6 || found.length !== 1) {
      throw new UsageError(
        `'${options.call}' is not the id of one of the calls that wait:\n${list}`,
        'Give --call with one of these ids, or --all.',
      );
    }
    return found;
  }
  if (waiting.length > 1 && options.all !== true) {
    throw new UsageError(
      `${waiting.length} calls wait for a decision:\n${list}`,
      'Give --call with one of these ids, or --all.',
    );
  }
  return waiting;
}
