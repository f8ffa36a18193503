import type { Command } from 'commander';
import {
  askForRefresh,
  type CredentialRow,
  listCredentials,
  type ProviderAlarm,
  providerAlarms,
  revokeCredential,
} from '../db/credential-reports.ts';
import { type CommandContext, resolveId } from './context.ts';
import { CommandError, UsageError } from './errors.ts';
import { cut, orDash, shortId, statusStyle, time } from './format.ts';
import { asOperator } from './operator.ts';
import { type Output, oneLine } from './output.ts';
import { workspaceOf } from './workspace.ts';

type Json = { readonly json?: boolean };
const MOST_ROWS = 200;
const LONGEST_REASON = 500;

/** `agentd credentials list|refresh|revoke`. */
export function register(program: Command, context: CommandContext): void {
  const credentials = program
    .command('credentials')
    .description('look at the accounts that people have connected, refresh their tokens, revoke them');

  credentials
    .command('list')
    .description('list credentials, those that need a person first, and providers that refuse this platform')
    .option('--workspace <slug-or-id>', 'only this workspace')
    .option('--failing', 'only those that need a person or are late')
    .action(async (options: { workspace?: string; failing?: boolean }, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const found = await context.withDatabase(async (db) => ({
        credentials: await listCredentials(db, {
          workspaceId: await workspaceOf(db, options.workspace),
          isFailing: options.failing === true,
          limit: output.json ? 100_000 : MOST_ROWS + 1,
        }),
        alarms: await providerAlarms(db, MOST_ROWS),
      }));
      if (output.json) return output.data(found);
      printList(output, found.credentials, found.alarms);
    });

  credentials
    .command('refresh')
    .description('have a credential refreshed now, also one that was given up')
    .argument('<id>', 'the credential, or the first six digits of its id')
    .action(async (text: string, _: unknown, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const id = await context.withDatabase(async (db) => {
        const found = await resolveId(db, 'credential', text);
        if (!(await asOperator(db, (tx) => askForRefresh(tx, found)))) {
          throw new CommandError(
            `Credential ${found} can't be refreshed: it is revoked, or has no token to be refreshed with.`,
            'Its user has to connect the account again.',
          );
        }
        return found;
      });
      if (output.json) return output.data({ id, requested: true });
      output.line(
        `Credential ${id} is refreshed by the next daemon: agentd credentials list shows what came of it.`,
      );
    });

  credentials
    .command('revoke')
    .description('end a credential: its tokens are forgotten; what its provider keeps is ended there')
    .argument('<id>', 'the credential, or the first six digits of its id')
    .option('--reason <text>', 'why, for the log')
    .action(async (text: string, options: { reason?: string }, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const reason = options.reason ?? null;
      if (reason !== null && reason.length > LONGEST_REASON) {
        throw new UsageError(`The reason is longer than ${LONGEST_REASON} characters.`, 'Shorten it.');
      }
      const outcome = await context.withDatabase(async (db) => {
        const id = await resolveId(db, 'credential', text);
        return { id, revoked: await asOperator(db, (tx) => revokeCredential(tx, id, reason)) };
      });
      if (output.json) return output.data(outcome);
      output.line(
        outcome.revoked
          ? `Credential ${outcome.id} is revoked. Remove this platform's access at the provider as well.`
          : `Credential ${outcome.id} was revoked before.`,
      );
    });
}

function printList(output: Output, rows: readonly CredentialRow[], alarms: readonly ProviderAlarm[]): void {
  output.table(
    rows.slice(0, MOST_ROWS),
    [
      { title: 'ID', value: (row) => shortId(row.id) },
      { title: 'WORKSPACE', value: (row) => cut(row.workspace_name, 24) },
      { title: 'PROVIDER', value: (row) => cut(row.provider, 24) },
      { title: 'NAME', value: (row) => cut(row.connection_name, 24) },
      { title: 'STATUS', value: (row) => row.connection_status, style: (row) => statusStyle(styled(row)) },
      { title: 'EXPIRES', value: (row) => time(row.token_expires_at) },
      { title: 'NEXT', value: (row) => time(row.next_refresh_at) },
      { title: 'CODE', value: (row) => orDash(row.reason_code) },
      { title: 'REASON', value: (row) => cut(oneLine(orDash(row.reason)), 60) },
    ],
    'There are no such credentials.',
  );
  if (rows.length > MOST_ROWS) output.line('… and more; --workspace shows one, --json all of them.');
  for (const alarm of alarms) {
    const what = alarm.is_misconfigured
      ? 'refuses this platform’s client'
      : `has failed ${alarm.failures} times in a row`;
    output.line(
      `\n${alarm.provider} ${what}: ${output.paint('red', cut(oneLine(orDash(alarm.reason)), 200))}`,
    );
  }
}

const styled = (row: CredentialRow): string =>
  row.connection_status === 'active'
    ? 'completed'
    : row.connection_status === 'revoked'
      ? 'skipped'
      : 'failed';
