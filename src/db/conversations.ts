/** Channels and conversations as the worker needs them. */
import { first, type Queryable } from './database.ts';

/** A workspace's channel by id or name, with or without a leading #; null if there is none. */
export async function findChannel(
  db: Queryable,
  workspaceId: string,
  nameOrId: string,
): Promise<string | null> {
  const row = await first(
    db.query<{ id: string }>(
      `select id from public.chat_channels
        where workspace_id = $1 and (id::text = lower($2) or lower(name) = lower(ltrim($2, '#')))
        order by id::text = lower($2) desc, created_at
        limit 1`,
      [workspaceId, nameOrId],
    ),
  );
  return row?.id ?? null;
}
