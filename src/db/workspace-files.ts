/** The stored files of a workspace: those that its rows name, and those that agentd has put into the storage for it. */
import type { Queryable } from './database.ts';
import { LONGEST_UPLOAD_MINUTES } from './uploads.ts';

/** Where an object lies. */
export type ObjectPlace = { readonly bucket: string; readonly storage_path: string };

/** An object of the workspace's. */
export type StoredFile = ObjectPlace & {
  /** Why it stays: another workspace's row names it, or its path is in no folder of this workspace or of the row's user; null: it goes. */
  readonly stays: 'shared' | 'foreign' | null;
};

/** Whether a row of another workspace's names the object; $1 is the workspace. */
const sharedBy = (bucket: string, path: string): string =>
  `exists (select 1 from public.media_library x
            where x.bucket = ${bucket} and x.storage_path = ${path} and x.workspace_id <> $1::text::uuid)`;

/** Files of the workspace in the order of their rows, after one; null: from the first. */
export function filesAfter(
  db: Queryable,
  workspaceId: string,
  after: string | null,
  limit: number,
): Promise<(StoredFile & { readonly id: string })[]> {
  return db.query(
    `
select m.id, m.bucket, m.storage_path,
       case when split_part(m.storage_path, '/', 1) not in (m.workspace_id::text, m.user_id::text) then 'foreign'
            when ${sharedBy('m.bucket', 'm.storage_path')} then 'shared' end as stays
  from public.media_library m
 where m.workspace_id = $1::text::uuid and m.storage_path is not null and ($2::uuid is null or m.id > $2)
 order by m.id
 limit $3`,
    [workspaceId, after, limit],
  );
}

/** Objects that agentd itself has stored for the workspace and that no file of it names any more; at most `limit`, after one. */
export function strayObjects(
  db: Queryable,
  workspaceId: string,
  after: ObjectPlace | null,
  limit: number,
): Promise<StoredFile[]> {
  return db.query(
    `
select o.bucket, o.path as storage_path, case when ${sharedBy('o.bucket', 'o.path')} then 'shared' end as stays
  from agentd.stored_objects o
 where split_part(o.path, '/', 1) = $1::text
   and ($2::text is null or (o.bucket, o.path) > ($2::text, $3::text))
   and not exists (select 1 from public.media_library m
                    where m.workspace_id = $1::text::uuid and m.bucket = o.bucket and m.storage_path = o.path)
 order by o.bucket, o.path
 limit $4`,
    [workspaceId, after?.bucket ?? null, after?.storage_path ?? null, limit],
  );
}

/**
 * Deletes the notes of objects that are gone. Of one that no row named (`isUploaded` false) a young note stays: its upload may be under way, and
 * nothing else would ever find what it stores.
 */
export async function forgetObjects(
  db: Queryable,
  places: readonly ObjectPlace[],
  isUploaded: boolean,
): Promise<void> {
  if (places.length === 0) return;
  await db.query(
    `delete from agentd.stored_objects o using unnest($1::text[], $2::text[]) d (bucket, path)
      where o.bucket = d.bucket and o.path = d.path
        and ($3 or o.created_at < agentd.now() - make_interval(mins => ${LONGEST_UPLOAD_MINUTES}))`,
    [places.map(({ bucket }) => bucket), places.map(({ storage_path }) => storage_path), isUploaded],
  );
}

/** Deletes the notes of all objects of the workspace that are to be left, so that nobody removes these later. */
export async function forgetAllObjects(db: Queryable, workspaceId: string): Promise<void> {
  await db.query(
    `delete from agentd.stored_objects o
      where split_part(o.path, '/', 1) = $1::text and not ${sharedBy('o.bucket', 'o.path')}`,
    [workspaceId],
  );
}
