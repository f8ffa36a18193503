/**
 * A workspace's move to another embedding model: one row for each workspace, carried out by whichever daemon has its lease.
 *
 * The new vectors are a generation of chunks of their own, two above the one that is searched (an ingestion writes one above), with
 * the new model's name: the index of the model takes them in as they come, nothing that is searched knows of them, and one update of the
 * sources puts them in the others' place. A side table of vectors would have saved the copies of the texts for as long as the move
 * takes, and its end would have been a rewrite of every chunk.
 */
import { type Kysely, sql } from 'kysely';
import { DROP_UNUSED_VECTOR_INDEXES } from './0022_retrieval.ts';
import { applyAccess } from './access.ts';
import { runSql, vectorSchema } from './run-sql.ts';

/** Bytes of a chunk's prefix: a quarter of a chunk's tokens for its headings, and as much for its table's header. */
const LONGEST_PREFIX = 65_536;

export async function up(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table agentd.embedding_migrations (
      workspace_id         uuid        primary key references public.workspaces (id) on delete cascade,
      -- of the present request
      id                   uuid        not null default gen_random_uuid(),
      status               text        not null,
      model                text        not null,
      dimensions           integer     not null,
      -- most of its passages have this model when the move begins: what new documents are embedded with until the switch
      from_model           text,
      from_dimensions      integer,
      -- what its documents are embedded with since its last move was complete
      pinned_model         text,
      pinned_dimensions    integer,
      -- as counted when it was asked for: passages, and tokens of those that have to be embedded
      chunks               bigint      not null,
      tokens               bigint      not null,
      expected_cost_micros bigint,
      done_chunks          bigint      not null default 0,
      refused_chunks       bigint      not null default 0,
      embedded_tokens      bigint      not null default 0,
      cost_micros          bigint      not null default 0,
      reason_code          text,
      reason               text,
      -- of one that is complete: when its workspace is looked at for documents that were under way at the switch; null: never again
      retry_at             timestamptz,
      -- in a row, without a passage that was stored
      attempts             integer     not null default 0,
      -- of the provider or the database, in a row, without a passage that was stored
      failures             integer     not null default 0,
      worker_id            text,
      lease_epoch          integer     not null default 0,
      lease_expires_at     timestamptz,
      -- the batch that was booked last: one whose answer was lost is not booked twice
      last_batch           uuid,
      requested_by         text,
      requested_at         timestamptz not null default agentd.now(),
      started_at           timestamptz,
      worked_at            timestamptz,
      switched_at          timestamptz,
      finished_at          timestamptz,
      constraint embedding_migrations_id_key unique (id),
      constraint embedding_migrations_status_check check (status in ('waiting', 'running', 'completed', 'failed', 'cancelled')),
      constraint embedding_migrations_dimensions_check check (dimensions between 1 and 4000)
    );
    create index embedding_migrations_open_idx on agentd.embedding_migrations (worked_at)
      where status in ('waiting', 'running');
    create index embedding_migrations_strays_idx on agentd.embedding_migrations (retry_at) where status = 'completed';
    create index knowledge_sources_model_idx on public.knowledge_sources (embedding_model, embedding_dimensions) include (chunk_count)
      -- wrapped, so that a query for other things is not answered by it
      where ((embedding_model is not null) is true);
    comment on table agentd.embedding_migrations is
      'A workspace’s move of its knowledge to another embedding model: the last one, and the model that its documents have since.';
    comment on column agentd.embedding_migrations.expected_cost_micros is
      'In millionths of a US dollar, when it was asked for; null: the model has no price in config/embeddings.json.';
    comment on column agentd.embedding_migrations.pinned_model is
      'What its documents are embedded with since its last move was complete; null: what the configuration says.';

    alter table public.knowledge_chunks
      add column embed_prefix text,
      add constraint knowledge_chunks_prefix_size check (octet_length(embed_prefix) <= ${sql.raw(String(LONGEST_PREFIX))});
    comment on column public.knowledge_chunks.embed_prefix is
      'What stands before content when it is embedded: its headings, and the header row of its table.';

    drop function agentd.drop_unused_vector_indexes();
    -- Drops one index of a model that no passage is embedded with any more and that nobody is about to use: not the one to be kept (the
    -- caller's own model), nor one that a workspace moves from or to or has its documents embedded with. Returns how many: 0 or 1, for
    -- the table is locked from the drop to the transaction's end, so the drop is the last thing in it; it waits a quarter of a
    -- second for that lock, and nobody waits for it longer.
    create function agentd.drop_unused_vector_indexes(p_keep_model text default null, p_keep_dimensions integer default null)
    returns integer
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set lock_timeout = '250ms' set jit = off as $$
    declare
      v_index record;
      v_used  boolean;
    begin
      for v_index in
        select c.relname as name, d.about ->> 'model' as model, (d.about ->> 'dimensions')::integer as dimensions
          from pg_catalog.pg_class c
         cross join lateral (select pg_catalog.obj_description(c.oid, 'pg_class')::jsonb as about) d
         where c.relnamespace = 'public'::regnamespace and c.relkind = 'i' and c.relname ~ '^p_knowledge_chunks_[0-9a-f]{24}$'
           -- one without our comment is an operator's
           and d.about is not null
         order by c.relname
      loop
        continue when (v_index.model, v_index.dimensions) is not distinct from (p_keep_model, p_keep_dimensions);
        continue when exists (
          select 1 from public.knowledge_sources k
           where k.embedding_model = v_index.model and k.embedding_dimensions = v_index.dimensions and k.chunk_count > 0
             and (k.embedding_model is not null) is true);
        continue when exists (
          select 1 from agentd.embedding_migrations m
           where (m.pinned_model = v_index.model and m.pinned_dimensions = v_index.dimensions)
              or (m.status in ('waiting', 'running', 'failed')
                  and ((m.model = v_index.model and m.dimensions = v_index.dimensions)
                       or (m.from_model = v_index.model and m.from_dimensions = v_index.dimensions))));
        -- The rows themselves are asked: an HNSW index answers with its forty nearest, and where these are all dead, with none.
        execute 'select exists (select 1 from public.knowledge_chunks c where c.embedding_model = $1 and pg_catalog.length(c.embedding_bits) = $2)'
          into v_used using v_index.model, v_index.dimensions;
        continue when v_used;
        begin
          execute format('drop index if exists public.%I', v_index.name);
          return 1;
        exception when lock_not_available then
          return 0;
        end;
      end loop;
      return 0;
    end
    $$;
    `,
  );
  await applyAccess(db);
}

export async function down(db: Kysely<unknown>): Promise<void> {
  const home = `"${(await vectorSchema(db)).replaceAll('"', '""')}"`;
  await runSql(
    db,
    sql`
    drop function agentd.drop_unused_vector_indexes(text, integer);
    drop index public.knowledge_sources_model_idx;
    ${sql.raw(DROP_UNUSED_VECTOR_INDEXES(home))}
    alter table public.knowledge_chunks drop column embed_prefix;
    -- generations that nothing points at: they are two above what is searched
    delete from public.knowledge_chunks c using public.knowledge_sources k
     where k.id = c.source_id and c.generation = k.generation + 2;
    drop table agentd.embedding_migrations;
    `,
  );
}
