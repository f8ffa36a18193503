/** Embedding models and moves between them, as operators see them, ask for them and call them off. */
import type { Queryable } from './database.ts';
import { embedText, isStaged, isToMove } from './embedding-migrations.ts';

/** What a workspace's knowledge is embedded with. */
export type ModelInUse = {
  readonly workspace_id: string;
  readonly workspace_name: string;
  /** Null: passages that an application made. */
  readonly model: string | null;
  readonly dimensions: number | null;
  readonly sources: number;
  readonly chunks: number;
  readonly tokens: number;
};

/** Models and dimensions of searchable knowledge, workspace by workspace, the most used of each first; at most so many rows. */
export function modelsInUse(db: Queryable, workspaceId: string | null, limit: number): Promise<ModelInUse[]> {
  return db.query<ModelInUse>(
    `select k.workspace_id, w.name as workspace_name, k.embedding_model as model, k.embedding_dimensions as dimensions,
            count(*)::integer as sources, sum(k.chunk_count)::bigint as chunks, coalesce(sum(k.token_count), 0)::bigint as tokens
       from public.knowledge_sources k
       join public.workspaces w on w.id = k.workspace_id
      where ($1::uuid is null or k.workspace_id = $1) and k.processing_status <> 'archived' and k.chunk_count > 0
      group by 1, 2, 3, 4
      order by w.name, k.workspace_id, sum(k.chunk_count) desc
      limit $2`,
    [workspaceId, limit],
  );
}

export type MoveStatus = 'waiting' | 'running' | 'completed' | 'failed' | 'cancelled';

/** A workspace's last move. */
export type MoveReport = {
  readonly workspace_id: string;
  readonly workspace_name: string;
  readonly status: MoveStatus;
  readonly model: string;
  readonly dimensions: number;
  readonly pinned_model: string | null;
  readonly pinned_dimensions: number | null;
  readonly chunks: number;
  readonly done_chunks: number;
  readonly refused_chunks: number;
  /** Tokens that were to be embedded, and those that were. */
  readonly tokens: number;
  readonly embedded_tokens: number;
  readonly expected_cost_micros: number | null;
  readonly cost_micros: number;
  readonly reason_code: string | null;
  readonly reason: string | null;
  readonly retry_at: Date | null;
  readonly requested_at: Date;
  readonly requested_by: string | null;
  readonly switched_at: Date | null;
  readonly finished_at: Date | null;
};

/** Moves of the named workspaces, or of all; those that are open first. */
export function moves(db: Queryable, workspaceIds: readonly string[] | null): Promise<MoveReport[]> {
  return db.query<MoveReport>(
    `select m.workspace_id, w.name as workspace_name, m.status, m.model, m.dimensions, m.pinned_model, m.pinned_dimensions, m.chunks,
            least(m.done_chunks, m.chunks) as done_chunks, m.refused_chunks, m.tokens, m.embedded_tokens, m.expected_cost_micros,
            m.cost_micros, m.reason_code, m.reason, m.retry_at, m.requested_at, m.requested_by, m.switched_at, m.finished_at
       from agentd.embedding_migrations m
       join public.workspaces w on w.id = m.workspace_id
      where $1::uuid[] is null or m.workspace_id = any ($1)
      order by m.status not in ('waiting', 'running'), m.status <> 'failed', w.name, m.workspace_id`,
    [workspaceIds],
  );
}

/** How many daemons would carry moves out. */
export async function movers(db: Queryable): Promise<number> {
  const [row] = await db.query<{ workers: number }>(
    `select count(*)::integer as workers from agentd.worker_health w where w.alive and w.queues ? 'document-ingest'`,
  );
  return row?.workers ?? 0;
}

/** What a move of a workspace would take. */
export type MovePreview = {
  readonly workspace_id: string;
  readonly workspace_name: string;
  readonly sources: number;
  readonly chunks: number;
  /** Passages that have their new vector already, from a move that was begun before. */
  readonly staged: number;
  /** Tokens that are to be embedded: the same text once, and none that the workspace has a vector of. */
  readonly tokens: number;
  /** The most used model at present. */
  readonly from_model: string;
  readonly from_dimensions: number;
};

/** What moves to a model would take, of one workspace or of all that have passages of another. Reads every text: takes its time. */
export function previewMoves(
  db: Queryable,
  target: { readonly model: string; readonly dimensions: number },
  workspaceId: string | null,
): Promise<MovePreview[]> {
  return db.query<MovePreview>(
    `
with moving as (
  select k.workspace_id, k.id, k.generation, k.embedding_model, k.embedding_dimensions, k.chunk_count
    from public.knowledge_sources k
   where ($3::uuid is null or k.workspace_id = $3) and ${isToMove('k')}
),
passage as (
  select m.workspace_id, md5(${embedText('o')}) as text, coalesce(o.token_count, 0) as tokens, ${isStaged('o', '$1', '$2')} as is_staged
    from moving m
    join public.knowledge_chunks o on o.source_id = m.id and o.generation = m.generation
),
known as (
  select c.workspace_id, md5(${embedText('c')}) as text from public.knowledge_chunks c
   where c.workspace_id in (select m.workspace_id from moving m)
     and c.embedding_model = $1 and length(c.embedding_bits) = $2 and c.embedding_key is not null
),
text as (
  select p.workspace_id, count(*) as chunks, count(*) filter (where p.is_staged) as staged,
         max(p.tokens) filter (
           where p.text is not null and not p.is_staged
             and not exists (select 1 from known n where n.workspace_id = p.workspace_id and n.text = p.text)) as tokens
    from passage p
   group by p.workspace_id, p.text
),
of_workspace as (
  select t.workspace_id, sum(t.chunks)::bigint as chunks, sum(t.staged)::bigint as staged, coalesce(sum(t.tokens), 0)::bigint as tokens
    from text t group by 1
)
select o.workspace_id, w.name as workspace_name, o.chunks, o.staged, o.tokens,
       (select count(*)::integer from moving m where m.workspace_id = o.workspace_id) as sources, f.model as from_model, f.dimensions as from_dimensions
  from of_workspace o
  join public.workspaces w on w.id = o.workspace_id
 cross join lateral (
   select m.embedding_model as model, m.embedding_dimensions as dimensions from moving m
    where m.workspace_id = o.workspace_id group by 1, 2 order by sum(m.chunk_count) desc limit 1) f
 order by w.name, o.workspace_id`,
    [target.model, target.dimensions, workspaceId],
  );
}

/** Tokens a second at which a key's provider lets embed, or at which documents of the model were embedded lately; null: nobody knows. */
export async function embeddingRate(
  db: Queryable,
  model: string,
  limitKey: string | null,
): Promise<{ readonly perSecond: number; readonly from: 'limit' | 'measured' } | null> {
  const [row] = await db.query<{ limited: number | null; measured: number | null }>(
    `select (select l.tokens_per_second from agentd.rate_limits l where l.key = $2) as limited,
            (select sum(x.tokens) / nullif(sum(x.duration_ms), 0) * 1000
               from (select (g.details ->> 'tokens')::double precision as tokens, g.duration_ms::double precision as duration_ms
                       from public.media_processing_logs g
                      where g.processing_step = 'embedding' and g.status = 'completed' and g.details ->> 'model' = $1
                        and g.created_at > agentd.now() - interval '7 days' and jsonb_typeof(g.details -> 'tokens') = 'number'
                        and g.duration_ms > 0 and (g.details ->> 'tokens')::double precision > 0
                      order by g.created_at desc limit 200) x) as measured`,
    [model, limitKey],
  );
  if (row?.limited) return { perSecond: row.limited, from: 'limit' };
  return row?.measured ? { perSecond: row.measured, from: 'measured' } : null;
}

/**
 * Records moves of workspaces. One that has not ended and has switched already is not disturbed. Returns those that were recorded.
 *
 * @param moves `expected_cost_micros` null: the model has no price
 */
export async function requestMoves(
  tx: Queryable,
  target: { readonly model: string; readonly dimensions: number },
  requested: readonly (MovePreview & { readonly expected_cost_micros: number | null })[],
  by: string,
): Promise<string[]> {
  const rows = await tx.query<{ workspace_id: string }>(
    `
with recorded as (
  insert into agentd.embedding_migrations as m (
    workspace_id, status, model, dimensions, from_model, from_dimensions, chunks, done_chunks, tokens, expected_cost_micros, requested_by)
  select x.workspace_id, 'waiting', $1, $2, x.from_model, x.from_dimensions, x.chunks, x.staged, x.tokens, x.expected_cost_micros, $4
    from jsonb_to_recordset($3::jsonb) as x (
      workspace_id uuid, from_model text, from_dimensions integer, chunks bigint, staged bigint, tokens bigint, expected_cost_micros bigint)
    join public.workspaces w on w.id = x.workspace_id
   order by x.workspace_id
  on conflict (workspace_id) do update
     set id = gen_random_uuid(), status = 'waiting', model = excluded.model, dimensions = excluded.dimensions,
         from_model = coalesce(m.pinned_model, excluded.from_model),
         from_dimensions = case when m.pinned_model is null then excluded.from_dimensions else m.pinned_dimensions end,
         chunks = excluded.chunks, done_chunks = excluded.done_chunks, refused_chunks = 0, tokens = excluded.tokens,
         expected_cost_micros = excluded.expected_cost_micros, embedded_tokens = 0, cost_micros = 0, reason_code = null, reason = null,
         retry_at = null, attempts = 0, failures = 0, worker_id = null, lease_epoch = m.lease_epoch + 1, lease_expires_at = null, last_batch = null,
         requested_by = excluded.requested_by, requested_at = agentd.now(), started_at = null, worked_at = null, switched_at = null,
         finished_at = null
   where m.status in ('completed', 'failed', 'cancelled')
  returning m.workspace_id
),
audited as materialized (
  select r.workspace_id,
         agentd.audit('migrate_embeddings', 'workspace', r.workspace_id::text, r.workspace_id,
                      jsonb_build_object('model', $1, 'dimensions', $2)) as done
    from recorded r
)
select a.workspace_id from audited a`,
    [target.model, target.dimensions, JSON.stringify(requested), by],
  );
  return rows.map((row) => row.workspace_id);
}

/** Calls off moves that have not switched. Returns the workspaces; what they have searched until now stays. */
export async function cancelMoves(tx: Queryable, workspaceId: string | null): Promise<string[]> {
  const rows = await tx.query<{ workspace_id: string }>(
    `
with cancelled as (
  update agentd.embedding_migrations m
     set status = 'cancelled', lease_epoch = m.lease_epoch + 1, lease_expires_at = null, finished_at = agentd.now(), retry_at = null
   where m.status in ('waiting', 'running', 'failed') and m.switched_at is null and ($1::uuid is null or m.workspace_id = $1)
  returning m.workspace_id, m.model, m.dimensions
),
audited as materialized (
  select c.workspace_id,
         agentd.audit('cancel_embedding_migration', 'workspace', c.workspace_id::text, c.workspace_id,
                      jsonb_build_object('model', c.model, 'dimensions', c.dimensions)) as done
    from cancelled c
)
select a.workspace_id from audited a`,
    [workspaceId],
  );
  return rows.map((row) => row.workspace_id);
}

/** The id of the workspace with this slug; null: there is none. */
export async function workspaceBySlug(db: Queryable, slug: string): Promise<string | null> {
  const [row] = await db.query<{ id: string }>('select id from public.workspaces where slug = $1', [slug]);
  return row?.id ?? null;
}

/** The statement with which an operator makes the model's index, where daemons leave that to him; null: it is there, or they make it. */
export async function indexAdvice(
  db: Queryable,
  { model, dimensions }: { readonly model: string; readonly dimensions: number },
): Promise<string | null> {
  const [row] = await db.query<{ statement: string | null }>(
    `select case when t.reltuples > 500000 and to_regclass('public.' || agentd.vector_index_name($1, $2)) is null
                 then agentd.vector_index_definition($1, $2) end as statement
       from pg_catalog.pg_class t where t.oid = 'public.knowledge_chunks'::regclass`,
    [model, dimensions],
  );
  return row?.statement ?? null;
}
