/** Documents as the command line puts them in and looks at them. */
import type { Queryable } from './database.ts';

/** Whose documents they are. */
export type UploadOwner = { readonly workspace_id: string; readonly user_id: string; readonly name: string };

/** The workspace with this id, or without one all there are, the oldest first; at most `limit`. */
export function uploadOwners(
  db: Queryable,
  workspaceId: string | null,
  limit: number,
): Promise<(UploadOwner & { readonly slug: string })[]> {
  return db.query<UploadOwner & { slug: string }>(
    `select w.id as workspace_id, w.owner_user_id as user_id, w.name, w.slug from public.workspaces w
      where $1::uuid is null or w.id = $1 order by w.created_at, w.id limit $2`,
    [workspaceId, limit],
  );
}

/** So long after its note an upload has either stored its object or never will: several times what writing one may take. */
export const LONGEST_UPLOAD_MINUTES = 60;

/** Notes an object that is about to be stored: what no row names then is removed by maintenance after a time. */
export async function noteObject(db: Queryable, bucket: string, path: string): Promise<void> {
  await db.query('insert into agentd.stored_objects (bucket, path) values ($1, $2) on conflict do nothing', [
    bucket,
    path,
  ]);
}

/** An index holds a note, which longer places do not fit into. Nothing is stored there: S3 has keys of 1,024 bytes at most. */
const LONGEST_PLACE_BYTES = 2_000;

/** Notes objects that are left without a row, so that maintenance removes them. What is longer than any object's place is none. */
export async function noteObjects(
  db: Queryable,
  places: readonly { readonly bucket: string; readonly storage_path: string }[],
): Promise<void> {
  if (places.length === 0) return;
  await db.query(
    `insert into agentd.stored_objects (bucket, path)
     select p.bucket, p.path from unnest($1::text[], $2::text[]) p (bucket, path)
      where octet_length(p.bucket) + octet_length(p.path) <= ${LONGEST_PLACE_BYTES}
     on conflict do nothing`,
    [places.map(({ bucket }) => bucket), places.map(({ storage_path }) => storage_path)],
  );
}

/** A stored file becomes a media row, and with it a source. Returns both ids. */
export async function insertUpload(
  db: Queryable,
  owner: UploadOwner,
  file: {
    readonly name: string;
    readonly type: string | null;
    readonly size: number;
    readonly bucket: string;
    readonly path: string;
    readonly agentId: string | null;
  },
): Promise<{ readonly mediaId: string; readonly sourceId: string }> {
  const [row] = await db.query<{ media_id: string; source_id: string }>(
    `with media as (
       insert into public.media_library (workspace_id, user_id, file_name, file_type, file_size, bucket, storage_path)
       values ($1, $2, $3, $4, $5, $6, $7) returning id
     ),
     assigned as (
       insert into public.agent_media_assignments (agent_id, media_id) select $8::uuid, id from media where $8::uuid is not null
     )
     select id as media_id, null as source_id from media`,
    [
      owner.workspace_id,
      owner.user_id,
      file.name,
      file.type,
      file.size,
      file.bucket,
      file.path,
      file.agentId,
    ],
  );
  if (!row) throw new Error('The file was not recorded.');
  const [source] = await db.query<{ id: string }>(
    'select id from public.knowledge_sources where media_id = $1 order by created_at limit 1',
    [row.media_id],
  );
  if (!source) throw new Error(`The media row ${row.media_id} has no source.`);
  return { mediaId: row.media_id, sourceId: source.id };
}

/** A page becomes a source. Returns its id. */
export async function insertPage(
  db: Queryable,
  owner: UploadOwner,
  page: { readonly url: string; readonly name: string; readonly agentId: string | null },
): Promise<string> {
  const [row] = await db.query<{ id: string }>(
    `insert into public.knowledge_sources (workspace_id, name, type, url, agent_id) values ($1, $2, 'URL', $3, $4) returning id`,
    [owner.workspace_id, page.name, page.url, page.agentId],
  );
  if (!row) throw new Error('The page was not recorded.');
  return row.id;
}

/** How far a source is. */
export type SourceProgress = {
  readonly processing_status: string;
  readonly reason_code: string | null;
  readonly reason: string | null;
  readonly retry_at: Date | null;
  readonly title: string | null;
  readonly page_count: number | null;
  readonly chunk_count: number;
  readonly token_count: number | null;
  readonly cost_micros: number;
  /** Chunks of the generation that is being written. */
  readonly written: number;
  /** Workers that would do it. */
  readonly workers: number;
};

export async function sourceProgress(db: Queryable, sourceId: string): Promise<SourceProgress | null> {
  const [row] = await db.query<SourceProgress>(
    `select k.processing_status, k.reason_code, k.reason, k.retry_at, k.title, k.page_count, k.chunk_count,
            k.token_count::float8 as token_count, k.cost_micros::float8 as cost_micros,
            (select count(*)::integer from public.knowledge_chunks c where c.source_id = k.id and c.generation > k.generation) as written,
            (select count(*)::integer from agentd.worker_health w where w.alive and w.queues ? 'document-ingest') as workers
       from public.knowledge_sources k where k.id = $1`,
    [sourceId],
  );
  return row ?? null;
}
