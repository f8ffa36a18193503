/** Which workspace a command is about. */
import type { Database } from '../db/database.ts';
import { workspaceBySlug } from '../db/embedding-reports.ts';
import { idsByPrefix, isFullId, isIdPrefix } from '../db/ids.ts';
import { formerIds } from '../db/workspace-erasing.ts';
import { resolveId } from './context.ts';
import { CommandError, UsageError } from './errors.ts';
import { cut } from './format.ts';

/**
 * The id of the workspace with this slug, or whose id begins so; null: nothing was said. A whole id is an id, whatever slugs there are: a
 * tenant chooses his own. Throws CommandError where there is none, UsageError where two are meant.
 */
export async function workspaceOf(db: Database, text: string | undefined): Promise<string | null> {
  if (text === undefined) return null;
  if (isFullId(text)) return resolveId(db, 'workspace', text);
  const bySlug = await workspaceBySlug(db, text);
  if (bySlug === null) {
    if (isIdPrefix(text)) return resolveId(db, 'workspace', text);
    throw new CommandError(
      `There is no workspace with the slug '${cut(text, 60)}'.`,
      'In SQL: select id, slug, name from workspaces.',
    );
  }
  // one that is gone counts as well: a command that was right yesterday must not be about another today
  const byId = isIdPrefix(text)
    ? [...(await idsByPrefix(db, 'workspace', text)), ...(await formerIds(db, text))]
    : [];
  const other = byId.find((id) => id !== bySlug);
  if (other !== undefined) {
    throw new UsageError(
      `'${text}' is the slug of workspace ${bySlug} and the beginning of the id ${other}.`,
      'Give the whole id of the one that is meant.',
    );
  }
  return bySlug;
}
