/** `agentd migrate up --check`, and how a migration that was refused says why. */
import { ASIDE, adviceFor } from '../db/collision-advice.ts';
import type { Collision } from '../db/collisions.ts';
import { checkMigrations, requireUsableServer } from '../db/migrate.ts';
import type { CommandContext } from './context.ts';
import { EXIT } from './errors.ts';
import type { Output } from './output.ts';

/** What was found; `pending` is null where only the collisions are of interest. */
export type CheckResult = {
  readonly pending: readonly string[] | null;
  readonly collisions: readonly Collision[];
};

/** Looks, prints, and changes nothing. Exit code 1 when something is in the way. Throws as `migrate up` does for an unusable server. */
export async function checkUp(context: CommandContext, output: Output): Promise<void> {
  const result = await context.withDatabase(async (db) => {
    await requireUsableServer(db);
    return checkMigrations(db);
  });
  if (result.collisions.length > 0) return printCollisions(context, output, result);
  if (output.json) return output.data({ ok: true, collisions: [], pending: result.pending });
  output.line('Nothing collides.');
  for (const name of result.pending) output.line(`pending  ${name}`);
  output.line(
    result.pending.length === 0
      ? 'The database is up to date.'
      : `${result.pending.length} migrations are pending. Run: agentd migrate up`,
  );
}

/** Prints every collision with what to do about it, and ends the command with exit code 1. */
export function printCollisions(context: CommandContext, output: Output, result: CheckResult): void {
  context.exitWith(EXIT.failed);
  const advice = result.collisions.map(adviceFor);
  if (output.json) {
    output.data({ ok: false, collisions: advice, pending: result.pending });
    return;
  }
  output.line(`${advice.length} objects are in the way of agentd’s. Nothing was changed.\n`);
  output.table(
    advice,
    [
      { title: 'OBJECT', value: (row) => row.object, style: () => 'yellow' },
      { title: 'WHAT IS THERE', value: (row) => row.there },
      { title: 'WHAT AGENTD NEEDS', value: (row) => row.needed },
      { title: 'WHAT TO DO', value: (row) => row.make_room },
    ],
    '',
  );
  const rows = advice.flatMap(({ rows_back }) => (rows_back === null ? [] : [rows_back]));
  output.line(`
Either give agentd a database of its own (DATABASE_URL), or make room in this one:

1. Back up. Stop the application: its tables move, and it finds them only with ${ASIDE} in its search_path.
2. create schema ${ASIDE}; then what the last column says, in one transaction.
3. agentd migrate up
4. Bring the rows over. Users first, under the ids that they had: agentd refers to auth.users (id uuid).`);
  if (rows.length === 0) return;
  output.line(
    '   These statements take all of a table’s columns; tables that others refer to come first. Where a column was\n' +
      '   optional and no longer is, name a value for it:\n',
  );
  for (const statement of rows) output.line(statement);
}
