/** Which workspace a command is about. */
import type { Database } from '../db/database.ts';
import { workspaceBySlug } from '../db/embedding-reports.ts';
import { resolveId } from './context.ts';
import { CommandError } from './errors.ts';
import { cut } from './format.ts';

/** The id of the workspace with this slug, or whose id begins so; null: nothing was said. Throws CommandError where there is none. */
export async function workspaceOf(db: Database, text: string | undefined): Promise<string | null> {
  if (text === undefined) return null;
  const bySlug = await workspaceBySlug(db, text);
  if (bySlug !== null) return bySlug;
  if (!/^[0-9a-f-]{6,36}$/i.test(text)) {
    throw new CommandError(
      `There is no workspace with the slug '${cut(text, 60)}'.`,
      'In SQL: select id, slug, name from workspaces.',
    );
  }
  return resolveId(db, 'workspace', text);
}
