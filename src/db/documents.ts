/**
 * Sources on their way to chunks: claimed, stored passage by passage, finished or given back.
 *
 * Every write carries the claim's epoch. One of an older claim, or of a source whose content has changed since, changes nothing and
 * says so.
 */

import type { Queryable, Statement } from './database.ts';
import { toJson } from './json.ts';
import { type HeldRow, type NotRenewed, renew, renewStatement } from './leases.ts';
import { realArray } from './real-array.ts';
import type { StoredCredential } from './runs.ts';

/** Everything that an attempt needs to know, read when it is claimed. */
export type ClaimedDocument = {
  readonly id: string;
  readonly workspace_id: string;
  readonly request: number;
  readonly lease_epoch: number;
  /** This one included. */
  readonly attempts: number;
  readonly name: string;
  readonly type: 'PDF' | 'URL' | 'TEXT';
  readonly content: string | null;
  readonly url: string | null;
  /** What the last complete ingestion was of. */
  readonly content_sha256: string | null;
  readonly etag: string | null;
  readonly last_modified: string | null;
  readonly generation: number;
  readonly chunk_count: number;
  /** How many chunks the last complete ingestion stored; fewer are there where some were deleted since. */
  readonly stored_chunks: number | null;
  readonly embedding_model: string | null;
  readonly embedding_dimensions: number | null;
  readonly agent_id: string | null;
  /** The model that its workspace has chosen by a move to it, or has until one under way is complete; null: the configuration's. */
  readonly assigned: { readonly model: string; readonly dimensions: number } | null;
  readonly media: {
    readonly id: string;
    readonly bucket: string;
    readonly storage_path: string | null;
    readonly file_url: string | null;
    readonly file_name: string;
    readonly file_type: string | null;
  } | null;
  /** The workspace's keys of model providers. */
  readonly credentials: readonly StoredCredential[];
};

/** What names a claim. */
export type DocumentClaim = { readonly id: string; readonly lease_epoch: number };

const CLAIM: Statement = {
  name: 'claim_document',
  text: `
with claimed as (
  update public.knowledge_sources k
     set processing_status = 'processing', lease_epoch = k.lease_epoch + 1, attempts = k.attempts + 1, worker_id = $3,
         lease_expires_at = agentd.now() + make_interval(secs => $4), reason_code = null, reason = null, retry_at = null
   where k.id = $1 and k.request = $2 and k.job_id is not null
     and (k.processing_status = 'uploaded' or (k.processing_status = 'processing' and k.lease_expires_at < agentd.now()))
  returning k.*
)
select c.id, c.workspace_id, c.request, c.lease_epoch, c.attempts, c.name, c.type, c.content, c.url, c.content_sha256, c.etag,
       c.last_modified, c.generation, c.chunk_count, c.stored_chunks, c.embedding_model, c.embedding_dimensions, c.agent_id,
       (select case
                 when g.status in ('waiting', 'running') and g.switched_at is null and c.embedding_model is not null then
                   jsonb_build_object('model', c.embedding_model, 'dimensions', c.embedding_dimensions)
                 when g.status in ('waiting', 'running') and g.switched_at is null then
                   jsonb_build_object('model', g.from_model, 'dimensions', g.from_dimensions)
                 when g.pinned_model is not null then
                   jsonb_build_object('model', g.pinned_model, 'dimensions', g.pinned_dimensions) end
          from agentd.embedding_migrations g
         where g.workspace_id = c.workspace_id) as assigned,
       case when m.id is not null then jsonb_build_object(
         'id', m.id, 'bucket', m.bucket, 'storage_path', m.storage_path, 'file_url', m.file_url, 'file_name', m.file_name,
         'file_type', m.file_type) end as media,
       coalesce((
         select jsonb_agg(jsonb_build_object('id', w.id, 'provider', w.provider, 'secret', w.api_key,
                                             'vault_id', w.vault_api_key_id) order by w.created_at)
           from public.workspace_llm_config w
          where w.workspace_id = c.workspace_id and w.is_active), '[]') as credentials
  from claimed c
  left join public.media_library m on m.id = c.media_id`,
};

/** Claims a document for an attempt; null where the request is an older one, has ended, or another worker has it. */
export async function claimDocument(
  db: Queryable,
  request: { readonly sourceId: string; readonly request: number },
  workerId: string,
  leaseSeconds: number,
): Promise<ClaimedDocument | null> {
  const [row] = await db.query<ClaimedDocument>(CLAIM, [
    request.sourceId,
    request.request,
    workerId,
    leaseSeconds,
  ]);
  return row ?? null;
}

/** When to look at a document again that could not be claimed, in milliseconds; null: never, it is nobody's business any more. */
export async function documentHeldFor(
  db: Queryable,
  request: { readonly sourceId: string; readonly request: number },
): Promise<number | null> {
  const [row] = await db.query<{ ms: number | null }>(
    {
      name: 'document_held_for',
      text: `select greatest(extract(epoch from k.lease_expires_at - agentd.now()) * 1000, 200)::float8 as ms
               from public.knowledge_sources k
              where k.id = $1 and k.request = $2 and k.processing_status = 'processing'`,
    },
    [request.sourceId, request.request],
  );
  return row?.ms ?? null;
}

const RENEW = renewStatement(
  'renew_document_leases',
  'public.knowledge_sources',
  `r.processing_status = 'processing'`,
);

/** Renews the leases of a worker's documents. */
export function renewDocumentLeases(
  db: Queryable,
  held: readonly HeldRow[],
  leaseSeconds: number,
): Promise<NotRenewed> {
  return renew(db, RENEW, held, leaseSeconds);
}

/** A passage to be stored. */
export type ChunkRow = {
  readonly chunk_index: number;
  readonly content: string;
  readonly content_sha256: string;
  readonly embedding_model: string;
  /** sha256 of model, dimensions and text, as bytea literal (\\x…). */
  readonly embedding_key: string;
  readonly token_count: number;
  readonly page: number | null;
  readonly heading_path: readonly string[];
  readonly char_start: number;
  readonly char_end: number;
  /** What is embedded before the content. */
  readonly embed_prefix?: string;
  readonly metadata: Readonly<Record<string, unknown>>;
  /** Null: it could not be embedded, and is found by its words alone. */
  readonly embedding: Float32Array | null;
};

const CHUNK_COLUMNS = `chunk_index, content, content_sha256, embedding_model, embedding_key, token_count, page, heading_path, char_start,
    char_end, embed_prefix, metadata`;

/**
 * Stores passages whose embedding the workspace has paid for before, in this document or another, under whatever generation. Passages
 * that this generation has already are left. Returns the places of those that are there now.
 */
export async function storeKnownChunks(
  db: Queryable,
  claim: DocumentClaim,
  generation: number,
  chunks: readonly Omit<ChunkRow, 'embedding'>[],
): Promise<Set<number>> {
  const rows = await db.query<{ chunk_index: number }>(
    {
      name: 'store_known_chunks',
      text: `
with own as (
  select k.id, k.workspace_id from public.knowledge_sources k
   -- not merely for key share: a takeover has to wait for what is being written, or writes after it
   where k.id = $1 and k.lease_epoch = $2 and k.processing_status = 'processing' for no key update
),
item as materialized (
  select x.* from jsonb_populate_recordset(null::public.knowledge_chunks, $4::jsonb) x
),
there as (
  select c.chunk_index from public.knowledge_chunks c join item i using (chunk_index)
   where c.source_id = $1 and c.generation = $3 and c.embedding_key = i.embedding_key and c.content_sha256 = i.content_sha256
     and c.embedding is not null
     -- the same words elsewhere in the document are another passage
     and (c.page, c.heading_path, c.char_start, c.char_end) is not distinct from (i.page, i.heading_path, i.char_start, i.char_end)
),
stored as (
  insert into public.knowledge_chunks (workspace_id, source_id, generation, ${CHUNK_COLUMNS}, embedding)
  select own.workspace_id, own.id, $3, ${CHUNK_COLUMNS.split(',')
    .map((column) => `i.${column.trim()}`)
    .join(', ')}, known.embedding
    from own, item i
   cross join lateral (
     select c.embedding from public.knowledge_chunks c
      where c.workspace_id = (select own.workspace_id from own) and c.embedding_key = i.embedding_key and c.embedding is not null
      limit 1) known
   where i.chunk_index not in (select t.chunk_index from there t)
  on conflict (source_id, generation, chunk_index) do update
     set content = excluded.content, content_sha256 = excluded.content_sha256, embedding_model = excluded.embedding_model,
         embedding_key = excluded.embedding_key, token_count = excluded.token_count, page = excluded.page,
         heading_path = excluded.heading_path, char_start = excluded.char_start, char_end = excluded.char_end, embed_prefix = excluded.embed_prefix,
         metadata = excluded.metadata, embedding = excluded.embedding
  returning chunk_index
)
select chunk_index from there union select chunk_index from stored`,
    },
    [claim.id, claim.lease_epoch, generation, toJson(chunks)],
  );
  return new Set(rows.map((row) => row.chunk_index));
}

/**
 * Stores passages as they were embedded, what that cost, and extends the lease, in one transaction. False: the document is no longer
 * the worker's, and nothing was stored.
 *
 * May be said again when its answer was lost: a batch is booked once. Those of one document are stored one after the other.
 */
export async function storeEmbeddedChunks(
  db: Queryable,
  claim: DocumentClaim,
  stored: {
    readonly generation: number;
    /** Names the batch: a UUID. */
    readonly batch: string;
    readonly chunks: readonly ChunkRow[];
    readonly tokens: number;
    readonly costMicros: number;
    readonly provider: string;
    readonly model: string;
    readonly leaseSeconds: number;
  },
): Promise<boolean> {
  const vectors = realArray(stored.chunks.map(({ embedding }) => embedding));
  const [row] = await db.query<{ is_own: boolean }>(
    {
      name: 'store_embedded_chunks',
      text: `
with held as (
  select k.id, k.stored_batch is distinct from $10::uuid as is_new from public.knowledge_sources k
   where k.id = $1 and k.lease_epoch = $2 and k.processing_status = 'processing' for no key update
),
own as (
  update public.knowledge_sources k
     set embedded_tokens = k.embedded_tokens + case when h.is_new then $5 else 0 end,
         cost_micros = k.cost_micros + case when h.is_new then $6 else 0 end,
         -- a document that gets on is not what ends its workers
         stored_batch = $10, lost_claims = 0, lease_expires_at = agentd.now() + make_interval(secs => $7)
    from held h
   where k.id = h.id
  returning k.id, k.workspace_id, k.agent_id, h.is_new
),
stored as (
  insert into public.knowledge_chunks (workspace_id, source_id, generation, ${CHUNK_COLUMNS}, embedding)
  select own.workspace_id, own.id, $3, ${CHUNK_COLUMNS.split(',')
    .map((column) => `i.${column.trim()}`)
    .join(', ')}, ($11::real[])[(p.place - 1) * $13::integer + 1 : p.place * $13::integer]
    from own, jsonb_populate_recordset(null::public.knowledge_chunks, $4::jsonb) with ordinality i,
         lateral (select ($12::integer[])[i.ordinality] as place) p
  on conflict (source_id, generation, chunk_index) do update
     set content = excluded.content, content_sha256 = excluded.content_sha256, embedding_model = excluded.embedding_model,
         embedding_key = excluded.embedding_key, token_count = excluded.token_count, page = excluded.page,
         heading_path = excluded.heading_path, char_start = excluded.char_start, char_end = excluded.char_end, embed_prefix = excluded.embed_prefix,
         metadata = excluded.metadata, embedding = excluded.embedding
),
used as (
  insert into public.usage_events (workspace_id, agent_id, metric, quantity, cost_micros, idempotency_key, dimensions, occurred_at)
  select own.workspace_id, own.agent_id, 'embedding_tokens', $5, $6, 'embed:' || gen_random_uuid(),
         jsonb_build_object('source_id', own.id, 'provider', $8::text, 'model', $9::text), agentd.now()
    from own where own.is_new and $5::bigint > 0
)
select exists (select 1 from own) as is_own`,
    },
    [
      claim.id,
      claim.lease_epoch,
      stored.generation,
      toJson(stored.chunks.map(({ embedding: _, ...row }) => row)),
      stored.tokens,
      stored.costMicros,
      stored.leaseSeconds,
      stored.provider,
      stored.model,
      stored.batch,
      vectors.numbers,
      vectors.places,
      vectors.dimensions,
    ],
  );
  return row?.is_own ?? false;
}

/**
 * Books what was paid for passages that had nowhere to go: their document was changed, archived or deleted meanwhile. Once, however often
 * it is said, and not if the batch was stored after all.
 */
export async function bookUnstored(
  db: Queryable,
  document: Pick<ClaimedDocument, 'id' | 'workspace_id' | 'agent_id'>,
  paid: {
    readonly batch: string;
    readonly tokens: number;
    readonly costMicros: number;
    readonly provider: string;
    readonly model: string;
  },
): Promise<void> {
  if (paid.tokens === 0) return;
  await db.query(
    {
      name: 'book_unstored',
      text: `
with fresh as (
  insert into public.usage_event_keys (workspace_id, idempotency_key, recorded_at)
  select w.id, 'embed:' || $4::uuid, agentd.now() from public.workspaces w
   where w.id = $2
     and not exists (select 1 from public.knowledge_sources k where k.id = $1 and k.stored_batch = $4)
  on conflict do nothing
  returning workspace_id
),
source as (
  update public.knowledge_sources k
     set embedded_tokens = k.embedded_tokens + $5, cost_micros = k.cost_micros + $6
    from fresh where k.id = $1
)
insert into public.usage_events (workspace_id, agent_id, metric, quantity, cost_micros, idempotency_key, dimensions, occurred_at)
select f.workspace_id, $3, 'embedding_tokens', $5, $6, 'embed:' || $4::uuid,
       jsonb_build_object('source_id', $1::uuid, 'provider', $7::text, 'model', $8::text), agentd.now()
  from fresh f`,
    },
    [
      document.id,
      document.workspace_id,
      document.agent_id,
      paid.batch,
      paid.tokens,
      paid.costMicros,
      paid.provider,
      paid.model,
    ],
  );
}

/** What a complete ingestion has found out. */
export type DocumentFacts = {
  readonly content_sha256: string;
  readonly title: string | null;
  readonly page_count: number | null;
  readonly character_count: number;
  readonly token_count: number;
  readonly embedding_model: string;
  readonly embedding_dimensions: number;
  readonly etag: string | null;
  readonly last_modified: string | null;
  /** Said of a document that is complete, but not wholly: passages that could not be embedded. */
  readonly reason_code: string | null;
  readonly reason: string | null;
};

/**
 * The new generation takes the old one's place, in one statement. Beyond it nothing of the document is left by the worker but old
 * chunks, which deleteOldChunks removes. False: no longer the worker's. May be said again when its answer was lost.
 */
export async function completeDocument(
  db: Queryable,
  claim: DocumentClaim,
  generation: number,
  chunkCount: number,
  facts: DocumentFacts,
): Promise<boolean> {
  const rows = await db.query(
    {
      name: 'complete_document',
      text: `
with facts as (
  select x.* from jsonb_populate_record(null::public.knowledge_sources, $5::jsonb) x
),
own as (
  update public.knowledge_sources k
     set processing_status = 'completed', generation = $3, stored_chunks = $4, job_id = null, lease_expires_at = null, attempts = 0, retry_at = null,
         content_sha256 = f.content_sha256, title = f.title, page_count = f.page_count, character_count = f.character_count,
         token_count = f.token_count, embedding_model = f.embedding_model, embedding_dimensions = f.embedding_dimensions,
         etag = f.etag, last_modified = f.last_modified, reason_code = f.reason_code, reason = f.reason,
         last_ingested_at = agentd.now(), next_refresh_at = agentd.now() + k.refresh_interval
    from facts f
   where k.id = $1 and k.lease_epoch = $2 and k.processing_status = 'processing'
     -- what was stored is all of it
     and (select count(*) from public.knowledge_chunks c where c.source_id = $1 and c.generation = $3) = $4
  returning k.id, k.workspace_id, k.agent_id
),
used as (
  insert into public.usage_events (workspace_id, agent_id, metric, quantity, idempotency_key, dimensions, occurred_at)
  select own.workspace_id, own.agent_id, 'stored_chunks', $4, 'chunks:' || own.id || ':' || $3::text,
         jsonb_build_object('source_id', own.id), agentd.now()
    from own where $4::bigint > 0
)
select id from own
union all
select k.id from public.knowledge_sources k
 where k.id = $1 and k.lease_epoch = $2 and k.generation = $3 and k.processing_status = 'completed'`,
    },
    [claim.id, claim.lease_epoch, generation, chunkCount, toJson(facts)],
  );
  return rows.length > 0;
}

/** Nothing has changed since the last complete ingestion: the document is complete as it is. */
export async function keepDocument(
  db: Queryable,
  claim: DocumentClaim,
  validators: { readonly etag: string | null; readonly last_modified: string | null },
): Promise<boolean> {
  const rows = await db.query(
    {
      name: 'keep_document',
      text: `
update public.knowledge_sources k
   set processing_status = 'completed', job_id = null, lease_expires_at = null, attempts = 0, retry_at = null,
       etag = coalesce($3, k.etag), last_modified = coalesce($4, k.last_modified),
       last_ingested_at = agentd.now(), next_refresh_at = agentd.now() + k.refresh_interval
 where k.id = $1 and k.lease_epoch = $2 and k.processing_status = 'processing'
returning k.id`,
    },
    [claim.id, claim.lease_epoch, validators.etag, validators.last_modified],
  );
  return rows.length > 0;
}

/** The document has failed for good: until somebody changes it or asks again. What was searchable stays so. */
export async function failDocument(
  db: Queryable,
  claim: DocumentClaim,
  reasonCode: string,
  reason: string,
): Promise<boolean> {
  const rows = await db.query(
    {
      name: 'fail_document',
      text: `
update public.knowledge_sources k
   set processing_status = 'failed', job_id = null, lease_expires_at = null, reason_code = $3, reason = $4,
       -- a page that is away today may be back at the next refresh
       next_refresh_at = agentd.now() + k.refresh_interval
 where k.id = $1 and k.lease_epoch = $2 and k.processing_status = 'processing'
returning k.id`,
    },
    [claim.id, claim.lease_epoch, reasonCode, reason.slice(0, 2000)],
  );
  return rows.length > 0;
}

/**
 * The attempt has failed for a passing reason: the document waits in its row, without holding a place of its workspace.
 *
 * @param spends whether the attempt counts; one that was only told to come later does not
 */
export async function retryDocument(
  db: Queryable,
  claim: DocumentClaim,
  again: {
    readonly inMs: number;
    readonly spends: boolean;
    readonly reasonCode: string;
    readonly reason: string;
  },
): Promise<boolean> {
  const rows = await db.query(
    {
      name: 'retry_document',
      text: `
update public.knowledge_sources k
   set processing_status = 'uploaded', job_id = null, lease_expires_at = null,
       retry_at = agentd.now() + $3::double precision * interval '1 millisecond',
       attempts = k.attempts - case when $4 then 0 else 1 end, reason_code = $5, reason = $6
 where k.id = $1 and k.lease_epoch = $2 and k.processing_status = 'processing'
returning k.id`,
    },
    [claim.id, claim.lease_epoch, again.inMs, again.spends, again.reasonCode, again.reason.slice(0, 2000)],
  );
  return rows.length > 0;
}

/** A drained worker hands its document back: the job goes to another, and no attempt is spent. */
export async function releaseDocument(db: Queryable, claim: DocumentClaim): Promise<void> {
  await db.query(
    {
      name: 'release_document',
      text: `
update public.knowledge_sources k
   set processing_status = 'uploaded', lease_expires_at = null, attempts = k.attempts - 1
 where k.id = $1 and k.lease_epoch = $2 and k.processing_status = 'processing'`,
    },
    [claim.id, claim.lease_epoch],
  );
}

/**
 * Deletes some chunks of generations that nothing points at. Returns how many; fewer than `limit`: there are no more, or somebody holds
 * the source. Holding it, so that nobody takes it from the archive and counts on chunks that are about to go.
 */
export async function deleteOldChunks(db: Queryable, sourceId: string, limit: number): Promise<number> {
  const rows = await db.query(
    {
      name: 'delete_old_chunks',
      text: `
with source as materialized (
  select k.* from public.knowledge_sources k where k.id = $1 for no key update skip locked
)
delete from public.knowledge_chunks c
 where c.id in (
   select o.id from public.knowledge_chunks o
     join source k on k.id = o.source_id
    where o.source_id = $1
      and (o.generation < k.generation or k.processing_status = 'archived'
           or (o.generation > k.generation and k.processing_status in ('completed', 'failed')
               -- paid for by a move to another model, and taken up at its end
               and not exists (
                 select 1 from agentd.embedding_migrations g
                  where g.workspace_id = k.workspace_id and g.status in ('waiting', 'running', 'failed')
                    and g.model = o.embedding_model and (o.embedding_bits is null or length(o.embedding_bits) = g.dimensions))))
    limit $2)
returning 1`,
    },
    [sourceId, limit],
  );
  return rows.length;
}

/** Deletes chunks that an earlier attempt of the same generation has left behind its end. */
export async function deleteChunksFrom(
  db: Queryable,
  claim: DocumentClaim,
  generation: number,
  from: number,
): Promise<void> {
  await db.query(
    {
      name: 'delete_chunks_from',
      text: `
delete from public.knowledge_chunks c
 where c.source_id = $1 and c.generation = $3 and c.chunk_index >= $4
   and exists (select 1 from public.knowledge_sources k
                where k.id = $1 and k.lease_epoch = $2 and k.processing_status = 'processing' and k.generation <> $3)`,
    },
    [claim.id, claim.lease_epoch, generation, from],
  );
}

/** No passage of ours is larger, in bytes; what an application wrote into the rows may be, and is not read. */
const LARGEST_PASSAGE = 16_384;

/**
 * Where the chunks of the document's present generation end in its text, in UTF-16 units, and the last so many characters of each, in their
 * order. Applications can write these rows: the numbers may be anything.
 */
export async function chunkEnds(
  db: Queryable,
  document: Pick<ClaimedDocument, 'id' | 'generation' | 'stored_chunks'>,
  characters: number,
): Promise<{ readonly end: number; readonly text: string }[]> {
  return db.query<{ end: number; text: string }>(
    {
      name: 'chunk_ends',
      text: `
select char_end as "end", right(content, $3) as text
  from public.knowledge_chunks
 where source_id = $1 and generation = $2 and chunk_index >= 0 and chunk_index < $4
   and char_end is not null and octet_length(content) <= $5
 order by chunk_index`,
    },
    [document.id, document.generation, characters, document.stored_chunks ?? 0, LARGEST_PASSAGE],
  );
}

/** A row of media_processing_logs. */
export type StageLog = {
  readonly step: 'upload' | 'text_extraction' | 'chunking' | 'embedding' | 'indexing';
  readonly status: 'started' | 'completed' | 'failed' | 'skipped';
  /** Milliseconds. */
  readonly durationMs: number | null;
  readonly details: Readonly<Record<string, unknown>>;
};

/** Writes what became of the stages of an attempt. Only while the document is the worker's, or `always`. */
export async function logStages(
  db: Queryable,
  document: { readonly id: string; readonly attempts: number; readonly mediaId: string | null },
  jobId: string,
  stages: readonly StageLog[],
): Promise<void> {
  if (stages.length === 0) return;
  await db.query(
    {
      name: 'log_stages',
      text: `
insert into public.media_processing_logs (media_id, source_id, job_id, processing_step, status, attempt, duration_ms, details)
select m.id, k.id, $3, x.step, x.status::public.processing_log_status, $4, x."durationMs", x.details
  from public.knowledge_sources k
  left join public.media_library m on m.id = k.media_id,
       jsonb_to_recordset($2::jsonb) as x (step text, status text, "durationMs" integer, details jsonb)
 where k.id = $1`,
    },
    [
      document.id,
      toJson(
        stages.map((s) => ({ ...s, durationMs: s.durationMs === null ? null : Math.round(s.durationMs) })),
      ),
      jobId,
      document.attempts,
    ],
  );
}

/** Lets waiting documents in, at most so many. Returns how many have a job now. */
export async function admitDocuments(db: Queryable, limit: number): Promise<number> {
  const [row] = await db.query<{ admitted: number }>(
    { name: 'admit_documents', text: 'select agentd.admit_documents($1) as admitted' },
    [limit],
  );
  return row?.admitted ?? 0;
}
