import type { Command } from 'commander';
import type { Database } from '../db/database.ts';
import { isDeadlock, isLockTimeout } from '../db/retry.ts';
import {
  adoptRestoredUsage,
  type Drift,
  rebuildUsage,
  recordDrift,
  settleDrift,
  usageDrift,
  workspacesWithUsage,
} from '../db/usage.ts';
import {
  type UsagePeriod,
  usageByAgent,
  usageByModel,
  usageDays,
  usagePeriods,
} from '../db/usage-reports.ts';
import type { CommandContext } from './context.ts';
import { CommandError, UsageError } from './errors.ts';
import { count, shortId, time } from './format.ts';
import { printPeriod, printPeriods } from './usage-chart.ts';
import { workspaceOf } from './workspace.ts';

type Json = { readonly json?: boolean };
type Target = { readonly workspace?: string };
const MOST_ROWS = 50;
const PAGE = 100;
/**
 * How often a workspace is tried again that a pass of the roll-up, or somebody's transaction, keeps busy, and how long each time. It gives way before
 * the server looks for a deadlock (after a second), which might be found at the expense of the other.
 */
const TRIES = 100;
const LOCK_TIMEOUT = '500ms';

/** `agentd usage show|rebuild|reconcile`. */
export function register(program: Command, context: CommandContext): void {
  const usage = program
    .command('usage')
    .description('look at what workspaces have used, compare it with the events, sum it up anew');

  usage
    .command('show')
    .description(
      'show the sums of the present period or of a month; of one workspace also its days, models and agents',
    )
    .option('--workspace <slug-or-id>', 'only this workspace, in detail')
    .option('--month <yyyy-mm>', 'periods that began in this month instead of those that are going on')
    .addHelpText(
      'after',
      '\nExamples:\n  agentd usage show\n  agentd usage show --workspace acme --month 2026-07',
    )
    .action(async (options: Target & { month?: string }, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const month = monthOf(options.month);
      await context.withDatabase(async (db) => {
        const workspaceId = await workspaceOf(db, options.workspace);
        const periods = await usagePeriods(db, workspaceId, month, output.json ? 100_000 : MOST_ROWS);
        if (workspaceId === null) {
          if (output.json) return output.data(periods);
          return printPeriods(output, periods);
        }
        const details = [];
        for (const period of periods) details.push(await detailsOf(db, period));
        if (output.json) return output.data(details);
        if (details.length === 0) output.line('Nothing was used.');
        for (const one of details) printPeriod(output, one);
      });
    });

  usage
    .command('reconcile')
    .description('compare every sum with the events, and say where they differ')
    .option('--workspace <slug-or-id>', 'only this workspace')
    .option('--repair', 'make right what differs')
    .action(async (options: Target & { repair?: boolean }, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const { drift, compared } = await context.withDatabase(async (db) => {
        const drift: Drift[] = [];
        let compared = 0;
        for await (const id of targets(db, await workspaceOf(db, options.workspace))) {
          compared++;
          const found = await usageDrift(db, id);
          if (found.length > 0 && options.repair) await rebuild(db, id);
          if (found.length === 0 || options.repair) await settleDrift(db, id);
          await recordDrift(db, found, options.repair === true);
          drift.push(...found);
        }
        return { drift, compared };
      });
      if (output.json) output.data({ compared, repaired: options.repair === true, drift });
      else if (drift.length === 0)
        output.line(`The sums of ${count(compared)} workspaces are those of their events.`);
      else
        output.table(
          drift.slice(0, MOST_ROWS),
          [
            { title: 'workspace', value: (row) => shortId(row.workspace_id) },
            { title: 'sum', value: (row) => row.level.replace('_', ' ') },
            { title: 'from', value: (row) => time(row.at) },
            { title: 'metric', value: (row) => row.metric },
            { title: 'events', value: (row) => count(row.expected), align: 'right' },
            { title: 'found', value: (row) => count(row.found), align: 'right' },
          ],
          '',
        );
      if (drift.length > 0 && !options.repair) {
        throw new CommandError(
          `${count(drift.length)} sums differ from the events.`,
          'Run: agentd usage reconcile --repair',
        );
      }
    });

  usage
    .command('rebuild')
    .description(
      'sum up workspaces anew from their events; after a restore this is what lets the roll-up go on',
    )
    .option('--workspace <slug-or-id>', 'only this workspace')
    .action(async (options: Target, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const result = await context.withDatabase(async (db) => {
        const workspaceId = await workspaceOf(db, options.workspace);
        const restored = workspaceId === null && (await adoptRestoredUsage(db));
        let rebuilt = 0;
        for await (const id of targets(db, workspaceId)) {
          await rebuild(db, id);
          await settleDrift(db, id);
          rebuilt++;
        }
        return { restored, rebuilt };
      });
      if (output.json) return output.data(result);
      if (result.restored)
        output.line('The database was restored from another server: its events count as they are.');
      output.line(
        `The sums of ${count(result.rebuilt)} workspaces were made anew. Closed periods stand; what differed is a correction.`,
      );
    });
}

async function* targets(db: Database, workspaceId: string | null): AsyncGenerator<string> {
  if (workspaceId !== null) {
    yield workspaceId;
    return;
  }
  for (let after: string | null = null; ; ) {
    const ids: string[] = await workspacesWithUsage(db, after, PAGE);
    yield* ids;
    after = ids.at(-1) ?? null;
    if (ids.length < PAGE) return;
  }
}

/** Whoever holds what this needs does so for moments only. */
async function rebuild(db: Database, id: string): Promise<void> {
  for (let tries = 1; ; tries++) {
    try {
      return await db.transaction(async (tx) => {
        await tx.query(`set local lock_timeout = '${LOCK_TIMEOUT}'`);
        await rebuildUsage(tx, id);
      });
    } catch (error) {
      if (!(isLockTimeout(error) || isDeadlock(error)) || tries === TRIES) throw error;
    }
  }
}

async function detailsOf(db: Database, period: UsagePeriod) {
  return {
    ...period,
    days: await usageDays(db, period),
    models: await usageByModel(db, period),
    agents: await usageByAgent(db, period),
  };
}

function monthOf(text: string | undefined): string | null {
  if (text === undefined) return null;
  if (!/^\d{4}-(0[1-9]|1[0-2])$/.test(text))
    throw new UsageError(`'${text}' is no month.`, 'Write it as 2026-07.');
  return `${text}-01`;
}
