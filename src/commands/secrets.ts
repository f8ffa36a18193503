import type { Command } from 'commander';
import type { Config } from '../config.ts';
import type { Database } from '../db/database.ts';
import {
  type PlaceReport,
  type PlaceStatus,
  type SecretDeps,
  type SecretStatus,
  sealAnew,
  secretStatus,
  type Unreadable,
  type Work,
  type WorkReport,
} from '../db/secret-rotation.ts';
import { columnSecretStore, parseKeyRing, SecretError } from '../secrets.ts';
import type { CommandContext } from './context.ts';
import { CommandError } from './errors.ts';
import { count } from './format.ts';
import { asOperator } from './operator.ts';
import type { Output } from './output.ts';

type Json = { readonly json?: boolean };

/** `agentd secrets status|rotate|seal`. */
export function register(program: Command, context: CommandContext): void {
  const secrets = program
    .command('secrets')
    .description('look at stored secrets, and seal them, or seal them anew under another key');

  secrets
    .command('status')
    .description(
      'count what every column holds: sealed by which key, the reference form, plain text, the Vault',
    )
    .addHelpText('after', '\nOpens every secret to see whether it can be; prints and changes none.')
    .action(async (_: unknown, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const found = await context.withDatabase((db, config) => secretStatus(depsOf(db, config)));
      if (output.json) return output.data(found);
      printStatus(output, found);
    });

  const worked = async (
    work: Work,
    options: { isDryRun: boolean; again: string },
    command: Command,
  ): Promise<void> => {
    const output = context.output(command.optsWithGlobals<Json>());
    const said = new Map<string, number>();
    const report = await context.withDatabase((db, config) =>
      sealAnew(depsOf(db, config), {
        work,
        isDryRun: options.isDryRun,
        transaction: (run) => asOperator(db, run),
        onProgress: (place, changed) => {
          // a line for each thousand
          if (Math.floor(changed / 1000) === Math.floor((said.get(place) ?? 0) / 1000)) return;
          said.set(place, changed);
          context.note(`${place}: ${count(changed)} sealed`);
        },
      }).catch((error: unknown) => {
        if (error instanceof SecretError) throw new CommandError(error.message, error.nextStep);
        throw error;
      }),
    );
    if (output.json) output.data({ done: !options.isDryRun, ...report });
    else printReport(output, report, work, options);
    const left = report.places.reduce((sum, { unreadable, busy }) => sum + unreadable + busy, 0);
    if (!options.isDryRun && left > 0) {
      throw new CommandError(
        `${count(left)} secrets were left as they are.`,
        'Those that somebody held are done when the command is run again; for those that do not open see agentd secrets status.',
      );
    }
  };

  secrets
    .command('rotate')
    .description('seal everything that is sealed anew, under the first key of ENCRYPTION_KEYS')
    .option('--dry-run', 'count what would be sealed anew and change nothing')
    .addHelpText(
      'after',
      '\nMay be stopped and begun again, and run while daemons work. What does not open is listed and left.\n' +
        'The old key may go when agentd secrets status counts none under it.',
    )
    .action((options: { dryRun?: boolean }, command: Command) =>
      worked('rotate', { isDryRun: options.dryRun === true, again: 'without --dry-run' }, command),
    );

  secrets
    .command('seal')
    .description('seal what is stored as plain text: shows what, and does it with --yes')
    .option('--yes', 'do it')
    .option('--dry-run', 'count what would be sealed and change nothing, also with --yes')
    .addHelpText('after', '\nAn application that reads these columns itself can read them no longer.')
    .action((options: { yes?: boolean; dryRun?: boolean }, command: Command) =>
      worked(
        'seal',
        { isDryRun: options.yes !== true || options.dryRun === true, again: 'with --yes' },
        command,
      ),
    );
}

function depsOf(db: Database, config: Config): SecretDeps {
  try {
    const ring = parseKeyRing(config.encryption);
    return { db, ring, columns: columnSecretStore(ring) };
  } catch (error) {
    if (error instanceof SecretError) throw new CommandError(error.message, error.nextStep);
    throw error;
  }
}

function printStatus(output: Output, { keys, places, unreadable }: SecretStatus): void {
  output.line(
    keys.length === 0
      ? 'No encryption key is set, so nothing can be sealed or opened.'
      : `Keys: ${keys.map((kid, index) => (index === 0 ? `${kid} (seals)` : kid)).join(', ')}\n`,
  );
  const total = (place: PlaceStatus): number =>
    place.plain + place.reference + place.vault + sealedCount(place);
  output.table(
    places.filter((place) => total(place) > 0),
    [
      { title: 'COLUMN', value: (row) => (row.is_opened ? row.place : `${row.place} (not agentd's)`) },
      {
        title: 'SEALED BY',
        value: (row) =>
          Object.entries(row.sealed)
            .map(([kid, sealed]) => `${kid} ${count(sealed)}`)
            .join(', ') || '-',
      },
      { title: 'REFERENCE', value: (row) => count(row.reference), align: 'right' },
      { title: 'PLAIN', value: (row) => count(row.plain), align: 'right' },
      { title: 'VAULT', value: (row) => count(row.vault), align: 'right' },
      {
        title: 'NOT OPENING',
        value: (row) => count(row.unreadable),
        align: 'right',
        style: (row) => (row.unreadable > 0 ? 'red' : null),
      },
    ],
    'No secret is stored.',
  );
  printUnreadable(output, unreadable);
}

const sealedCount = (place: PlaceStatus): number =>
  Object.values(place.sealed).reduce((sum, sealed) => sum + sealed, 0);

function printReport(
  output: Output,
  { places, unreadable }: WorkReport,
  work: Work,
  { isDryRun, again }: { isDryRun: boolean; again: string },
): void {
  const seen = places.filter((place) => place.changed + place.unreadable + place.busy > 0);
  const nothing = work === 'rotate' ? 'Everything is sealed by the first key.' : 'No secret is plain text.';
  output.table<PlaceReport>(
    seen,
    [
      { title: 'COLUMN', value: (row) => row.place },
      { title: isDryRun ? 'TO BE SEALED' : 'SEALED', value: (row) => count(row.changed), align: 'right' },
      { title: 'NOT OPENING', value: (row) => count(row.unreadable), align: 'right' },
      { title: 'HELD', value: (row) => count(row.busy), align: 'right' },
    ],
    nothing,
  );
  printUnreadable(output, unreadable);
  if (isDryRun && seen.some((place) => place.changed > 0)) {
    output.line(`\nNothing was changed. To do it, run it ${again}.`);
  }
}

function printUnreadable(output: Output, unreadable: readonly Unreadable[]): void {
  if (unreadable.length === 0) return;
  output.line('\nThese do not open:');
  output.table(
    unreadable,
    [
      { title: 'COLUMN', value: (row) => row.place },
      { title: 'ROW', value: (row) => row.id },
      { title: 'WORKSPACE', value: (row) => row.workspace ?? '-' },
      { title: 'WHY', value: (row) => row.code },
    ],
    '',
  );
}
