/** Ids by their beginning, as a person copies them from a table. */
import type { Queryable } from './database.ts';

const TABLES = {
  run: 'public.task_runs',
  task: 'public.agent_tasks',
  workspace: 'public.workspaces',
  agent: 'public.agents',
  connection: 'public.agent_mcp_connections',
  credential: 'public.user_integration_credentials',
} as const;

/** What can be named by the beginning of its id. */
export type IdKind = keyof typeof TABLES;

/** Whether a text can be a uuid or the first six or more digits of one. */
export function isIdPrefix(text: string): boolean {
  const digits = text.replaceAll('-', '');
  return /^[0-9a-f-]+$/i.test(text) && digits.length >= 6 && digits.length <= 32;
}

/** Whether a text is a whole uuid, with its hyphens or without. */
export const isFullId = (text: string): boolean => isIdPrefix(text) && text.replaceAll('-', '').length === 32;

/** The first and the last id that begin so. */
export function idRange(prefix: string): [first: string, last: string] {
  const digits = prefix.replaceAll('-', '').toLowerCase();
  return [digits.padEnd(32, '0'), digits.padEnd(32, 'f')];
}

/**
 * Ids that begin with `prefix`, at most two: none, the one, or proof that there are more.
 *
 * A range of the primary key: `id::text like 'prefix%'` would read the whole table.
 */
export async function idsByPrefix(db: Queryable, kind: IdKind, prefix: string): Promise<string[]> {
  const rows = await db.query<{ id: string }>(
    `select id from ${TABLES[kind]} where id between $1::uuid and $2::uuid order by id limit 2`,
    idRange(prefix),
  );
  return rows.map((row) => row.id);
}
