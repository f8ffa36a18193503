/** `agentd workspace export|erase`. */
import { createInterface } from 'node:readline/promises';
import type { Command } from 'commander';
import type { Config } from '../config.ts';
import type { Database } from '../db/database.ts';
import { isFullId } from '../db/ids.ts';
import { isRemembered } from '../db/workspace-erasing.ts';
import { workspaceNamed } from '../db/workspace-rows.ts';
import type { CommandContext } from './context.ts';
import { printErasure, printPreview } from './erase-report.ts';
import { CommandError, UsageError } from './errors.ts';
import { leftovers } from './export-folder.ts';
import { count, cut } from './format.ts';
import { workspaceOf } from './workspace.ts';
import { ERASE_LIMITS, type EraseOptions, eraseWorkspace, previewErasure } from './workspace-erase.ts';
import { exportWorkspace } from './workspace-export.ts';

type Json = { readonly json?: boolean };
type ExportFlags = Json & { withFiles?: boolean; vectors?: boolean; snapshot: boolean };
type EraseFlags = Json & {
  yes?: boolean;
  keepBilling?: boolean;
  leaveFiles?: boolean;
  leaveFailed?: boolean;
  leaveMemories?: boolean;
  wait: string;
};

const WORKSPACE = 'slug or id of the workspace; at least six digits of an id';

export function register(program: Command, context: CommandContext): void {
  const group = program.command('workspace').description('everything of a workspace as files, or gone');
  group
    .command('export')
    .description('write everything of a workspace into a folder or an archive; secrets are left out')
    .argument('<workspace>', WORKSPACE)
    .argument('<target>', 'a new folder, or a new archive if it ends with .tar')
    .option('--with-files', 'the stored files as well')
    .option('--vectors', 'embeddings as well, as arrays')
    .option(
      '--no-snapshot',
      'each table as of its own moment: a snapshot of a very large workspace holds up the vacuuming of the whole database',
    )
    .addHelpText(
      'after',
      '\nExamples:\n  agentd workspace export acme ./acme\n  agentd workspace export 3f2a91c0 acme.tar --with-files',
    )
    .action(async (text: string, target: string, _: unknown, command: Command) => {
      const flags = command.optsWithGlobals<ExportFlags>();
      const output = context.output(flags);
      for (const place of await leftovers(target))
        context.note(
          `${place} is of an export that was killed or is running: remove it if it was killed (nothing here does)`,
        );
      const manifest = await context.withDatabase(async (db, config) => {
        const id = await workspaceOf(db, text);
        const workspace = id === null ? null : await workspaceNamed(db, id);
        if (workspace === null) throw gone(text);
        return exportWorkspace(db, config, workspace, target, {
          withFiles: flags.withFiles === true,
          withVectors: flags.vectors === true,
          isOneSnapshot: flags.snapshot,
          agentd: context.version,
          note: context.note,
        });
      });
      const { objects } = manifest;
      if (output.json) output.data({ target, ...manifest });
      else {
        const rows = manifest.tables.reduce((sum, table) => sum + table.rows, 0);
        output.line(
          `${count(rows)} rows of ${count(manifest.tables.filter((table) => table.rows > 0).length)} tables` +
            `${objects === null ? '' : `, ${count(objects.stored)} files (${count(objects.missing)} of them missing)`.replace(' (0 of them missing)', '')} are in ${target}.`,
        );
        for (const note of manifest.notes) output.line(`- ${note}`);
      }
      if (objects !== null && objects.refused > 0) {
        throw new CommandError(
          `The storage did not give ${count(objects.refused)} files, which may be there; all the rest is in ${target}.`,
          'objects.jsonl names them, each with its reason. Mend what they say and export again, or do without them.',
        );
      }
    });

  group
    .command('erase')
    .description('delete everything of a workspace; without --yes, say what that would be')
    .argument('<workspace>', WORKSPACE)
    .option('--yes', 'do it, without asking for the name')
    .option('--keep-billing', 'keep invoices, subscriptions and usage, and a nameless workspace for them')
    .option('--leave-files', 'leave the stored files where they are')
    .option(
      '--leave-failed',
      'leave the stored files that can’t be deleted to maintenance, and delete the rest',
    )
    .option('--leave-memories', 'leave what agents remember of people in Zep')
    .option(
      '--wait <seconds>',
      'how long running work, held rows and other stores are waited for, each',
      '60',
    )
    .addHelpText(
      'after',
      '\nExamples:\n  agentd workspace erase acme            what would go; asks for the name\n  agentd workspace erase acme --yes',
    )
    .action(async (text: string, _: unknown, command: Command) => {
      const flags = command.optsWithGlobals<EraseFlags>();
      const output = context.output(flags);
      const options: EraseOptions = {
        keepBilling: flags.keepBilling === true,
        leaveFiles: flags.leaveFiles === true,
        leaveFailed: flags.leaveFailed === true,
        listAllFiles: output.json,
        leaveMemories: flags.leaveMemories === true,
        waitMs: secondsOf(flags.wait) * 1000,
        note: context.note,
      };
      const work = async (db: Database, config: Config): Promise<void> => {
        const workspace = await found(db, text);
        if (flags.yes !== true) {
          const preview = await previewErasure(db, config, workspace.id, options);
          if (output.json) return output.data({ workspace, is_done: false, ...preview });
          printPreview(output, workspace, preview);
          if (!(await isConfirmed(workspace.name, context))) {
            return output.line(
              `\nNothing was changed. To do it: agentd workspace erase ${workspace.id} --yes`,
            );
          }
        }
        const erasure = await eraseWorkspace(db, config, workspace.id, options);
        if (output.json) output.data(erasure);
        else printErasure(output, workspace, erasure);
        if (!erasure.is_done) {
          const reason = erasure.left_rows[0];
          throw new CommandError(
            `Workspace ${workspace.id} is not erased yet: ${cut(`${reason?.table}: ${reason?.reason}`, 300)}`,
            'Mend that and run the command again: it goes on where it ended. What was paused stays so.',
          );
        }
      };
      await context.withDatabase(work, { limits: ERASE_LIMITS });
    });
}

/** The workspace; one whose row is gone already by its whole id, so that an erasure that was cut short can be ended. */
async function found(db: Database, text: string): Promise<{ id: string; name: string; slug: string }> {
  if (isFullId(text)) {
    const id = text
      .toLowerCase()
      .replaceAll('-', '')
      .replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
    const there = await workspaceNamed(db, id);
    if (there !== null) return there;
    if (await isRemembered(db, id)) return { id, name: id, slug: id };
    throw gone(text);
  }
  const id = await workspaceOf(db, text);
  const there = id === null ? null : await workspaceNamed(db, id);
  if (there === null) throw gone(text);
  return there;
}

const gone = (text: string): CommandError =>
  new CommandError(
    `There is no workspace ${cut(text, 60)}.`,
    'In SQL: select id, slug, name from workspaces.',
  );

function secondsOf(text: string): number {
  const value = Number(text);
  if (!/^\d+(\.\d+)?$/.test(text) || value > 86_400)
    throw new UsageError(`'${cut(text, 40)}' is no number of seconds.`, 'Say a number from 0 to 86400.');
  return value;
}

/** Whether a person at a terminal types the workspace's name. */
async function isConfirmed(name: string, context: CommandContext): Promise<boolean> {
  if (process.stdin.isTTY !== true) return false;
  context.note(`\nThis can't be undone. To erase it type its name, ${JSON.stringify(name)}:`);
  const terminal = createInterface({ input: process.stdin });
  try {
    return (await terminal.question('')).trim() === name.trim();
  } finally {
    terminal.close();
  }
}
