import { type Kysely, sql } from 'kysely';
import { dropTables, keepUpdatedAt, runSql, vectorSchema } from './run-sql.ts';

// From files, pages and texts to chunks that can be searched. A media row is a file, a source is what gets chunked, a chunk
// is the result; a datastore says where vectors live and how they are searched.

/** Counts after every statement, until 0021. */
export const COUNT_CHUNKS = `
    create function agentd.count_chunks() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      touched uuid[];
    begin
      if tg_op = 'DELETE' then
        select array_agg(distinct o.source_id) into touched from old_rows o;
      else
        select array_agg(distinct n.source_id) into touched from new_rows n;
      end if;
      if touched is not null then
        perform agentd.count_chunks_of(touched);
      end if;
      return null;
    end
    $$;`;

/** The function as this migration makes it; a later one replaces it and gives it back on its way down. */
export const FILL_CHUNK = `
    create or replace function agentd.fill_chunk() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      select coalesce(new.workspace_id, s.workspace_id), coalesce(new.generation, s.generation)
        into new.workspace_id, new.generation
        from public.knowledge_sources s
       where s.id = new.source_id;
      return new;
    end
    $$;`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await createDatastores(db);
  await createMedia(db);
  await createSources(db);
  await createChunks(db);
  await createCounters(db);
}

async function createDatastores(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table public.datastores (
      id                   uuid                  primary key default gen_random_uuid(),
      workspace_id         uuid                  not null references public.workspaces (id) on delete cascade,
      user_id              uuid                  not null references auth.users (id) on delete cascade,
      name                 text                  not null,
      description          text,
      type                 public.datastore_type not null,
      config               jsonb                 not null default '{}',
      similarity_metric    text                  not null default 'cosine',
      similarity_threshold real                  not null default 0.7,
      max_results          integer               not null default 5,
      created_at           timestamptz           not null default now(),
      updated_at           timestamptz           not null default now()
    );
    create index datastores_workspace_id_idx on public.datastores (workspace_id);
    create index datastores_user_id_idx on public.datastores (user_id);

    create table public.agent_datastores (
      id           uuid        primary key default gen_random_uuid(),
      agent_id     uuid        not null references public.agents (id) on delete cascade,
      datastore_id uuid        not null references public.datastores (id) on delete cascade,
      is_active    boolean     not null default true,
      created_at   timestamptz not null default now(),
      -- A datastore disconnected in one row must not be read by way of another.
      constraint agent_datastores_agent_datastore_key unique (agent_id, datastore_id)
    );
    create index agent_datastores_datastore_id_idx on public.agent_datastores (datastore_id);

    create trigger fill_1_workspace_id
      before insert on public.datastores
      for each row when (new.workspace_id is null) execute function agentd.fill_workspace_id();
    create trigger fill_2_user_id
      before insert on public.datastores
      for each row when (new.user_id is null) execute function agentd.fill_user_id();
    create trigger zz_check_datastore
      before insert or update of datastore_id, agent_id on public.agent_datastores
      for each row execute function agentd.check_owned_parent('datastore_id', 'datastores');

    ${keepUpdatedAt('datastores')}
    `,
  );
}

async function createMedia(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table public.media_library (
      id                    uuid                     primary key default gen_random_uuid(),
      workspace_id          uuid                     not null references public.workspaces (id) on delete cascade,
      user_id               uuid                     not null references auth.users (id) on delete cascade,
      file_name             text                     not null,
      display_name          text,
      file_type             text,
      file_size             bigint,
      storage_path          text,
      bucket                text                     not null default 'media-library',
      category              text,
      description           text,
      tags                  text[]                   not null default '{}',
      processing_status     public.processing_status not null default 'uploaded',
      reason_code           text,
      reason                text,
      content_sha256        text,
      assigned_agents_count integer                  not null default 0,
      chunk_count           integer                  not null default 0,
      file_url              text,
      is_archived           boolean                  not null default false,
      created_at            timestamptz              not null default now(),
      updated_at            timestamptz              not null default now()
    );
    comment on column public.media_library.reason_code is 'Why processing failed, as a word; reason is the sentence.';
    create index media_library_workspace_id_idx on public.media_library (workspace_id);
    create index media_library_user_id_idx on public.media_library (user_id);
    create index media_library_tags_idx on public.media_library using gin (tags);
    create index media_library_waiting_idx on public.media_library (workspace_id, created_at)
      where processing_status = 'uploaded';
    create index media_library_processing_idx on public.media_library (updated_at)
      where processing_status = 'processing';

    create trigger fill_1_workspace_id
      before insert on public.media_library
      for each row when (new.workspace_id is null) execute function agentd.fill_workspace_id();
    create trigger fill_2_user_id
      before insert on public.media_library
      for each row when (new.user_id is null) execute function agentd.fill_user_id();

    create table public.agent_media_assignments (
      id                  uuid                   primary key default gen_random_uuid(),
      agent_id            uuid                   not null references public.agents (id) on delete cascade,
      media_id            uuid                   not null references public.media_library (id) on delete cascade,
      assignment_type     public.assignment_type not null default 'reference',
      assigned_by_user_id uuid                   references auth.users (id) on delete set null,
      created_at          timestamptz            not null default now()
    );
    create index agent_media_assignments_agent_id_idx on public.agent_media_assignments (agent_id);
    create index agent_media_assignments_media_id_idx on public.agent_media_assignments (media_id, agent_id);
    create index agent_media_assignments_assigned_by_user_id_idx on public.agent_media_assignments (assigned_by_user_id);

    create trigger zz_check_media
      before insert or update of media_id, agent_id on public.agent_media_assignments
      for each row execute function agentd.check_owned_parent('media_id', 'media_library');

    create table public.media_processing_logs (
      id              uuid                         primary key default gen_random_uuid(),
      media_id        uuid                         not null references public.media_library (id) on delete cascade,
      job_id          uuid,
      processing_step text                         not null,
      status          public.processing_log_status not null,
      attempt         integer                      not null default 1,
      duration_ms     integer,
      details         jsonb                        not null default '{}',
      created_at      timestamptz                  not null default now()
    );
    comment on column public.media_processing_logs.processing_step is
      'upload, text_extraction, chunking, embedding or indexing.';
    create index media_processing_logs_media_id_idx on public.media_processing_logs (media_id, created_at);

    ${keepUpdatedAt('media_library')}
    `,
  );
}

async function createSources(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table public.knowledge_sources (
      id                uuid                     primary key default gen_random_uuid(),
      workspace_id      uuid                     not null references public.workspaces (id) on delete cascade,
      agent_id          uuid,
      media_id          uuid                     references public.media_library (id) on delete cascade,
      datastore_id      uuid                     references public.datastores (id) on delete set null,
      name              text                     not null,
      type              public.knowledge_type    not null,
      content           text,
      url               text,
      content_sha256    text,
      processing_status public.processing_status not null default 'uploaded',
      reason_code       text,
      reason            text,
      generation        integer                  not null default 1,
      chunk_count       integer                  not null default 0,
      refresh_interval  interval,
      last_ingested_at  timestamptz,
      next_refresh_at   timestamptz,
      created_at        timestamptz              not null default now(),
      updated_at        timestamptz              not null default now(),
      constraint knowledge_sources_workspace_key unique (workspace_id, id),
      constraint knowledge_sources_agent_fkey foreign key (workspace_id, agent_id)
        references public.agents (workspace_id, id) on delete cascade
    );
    comment on column public.knowledge_sources.generation is
      'The generation of chunks that is searched. A new one is written beside it and takes its place in one update.';
    create index idx_knowledge_agent on public.knowledge_sources (agent_id);
    create index knowledge_sources_media_id_idx on public.knowledge_sources (media_id);
    create index knowledge_sources_datastore_id_idx on public.knowledge_sources (datastore_id);
    create index knowledge_sources_waiting_idx on public.knowledge_sources (workspace_id, created_at)
      where processing_status = 'uploaded';
    create index knowledge_sources_processing_idx on public.knowledge_sources (updated_at)
      where processing_status = 'processing';
    create index knowledge_sources_refresh_due_idx on public.knowledge_sources (next_refresh_at)
      where next_refresh_at is not null;

    create trigger fill_1_workspace_id
      before insert on public.knowledge_sources
      for each row when (new.workspace_id is null)
      execute function agentd.fill_workspace_id('agent_id', 'agents', 'media_id', 'media_library', 'datastore_id', 'datastores');
    create trigger zz_check_media
      before insert or update of media_id, agent_id, workspace_id on public.knowledge_sources
      for each row execute function agentd.check_owned_parent('media_id', 'media_library');
    create trigger zz_check_datastore
      before insert or update of datastore_id, agent_id, workspace_id on public.knowledge_sources
      for each row execute function agentd.check_owned_parent('datastore_id', 'datastores');

    ${keepUpdatedAt('knowledge_sources')}
    `,
  );
}

async function createChunks(db: Kysely<unknown>): Promise<void> {
  // The type is named with its schema, since that differs between installations and must not depend on a search_path.
  const vector = sql`${sql.id(await vectorSchema(db))}.vector`;
  await runSql(
    db,
    sql`
    create table public.knowledge_chunks (
      id              uuid        primary key default gen_random_uuid(),
      workspace_id    uuid        not null,
      source_id       uuid        not null,
      generation      integer     not null,
      chunk_index     integer     not null,
      content         text        not null,
      content_sha256  text,
      content_tsv     tsvector    generated always as (to_tsvector('simple', content)) stored,
      -- Without dimensions: vectors of two models live side by side during a migration. Each model has a partial index of
      -- its own over embedding::halfvec(n), made by the worker when the model's first chunks land.
      embedding       ${vector},
      embedding_model text,
      token_count     integer,
      page            integer,
      heading_path    text[]      not null default '{}',
      char_start      integer,
      char_end        integer,
      metadata        jsonb       not null default '{}',
      created_at      timestamptz not null default now(),
      constraint knowledge_chunks_source_fkey foreign key (workspace_id, source_id)
        references public.knowledge_sources (workspace_id, id) on delete cascade,
      -- A stage that is repeated overwrites its chunks and never doubles them.
      constraint knowledge_chunks_position_key unique (source_id, generation, chunk_index)
    );
    comment on column public.knowledge_chunks.content_tsv is
      'Configuration "simple": the language of a text is not known, and stemming in the wrong one loses matches.';
    create index knowledge_chunks_workspace_id_idx on public.knowledge_chunks (workspace_id);
    create index knowledge_chunks_content_tsv_idx on public.knowledge_chunks using gin (content_tsv);

    ${sql.raw(FILL_CHUNK)}

    create trigger fill_1_chunk
      before insert on public.knowledge_chunks
      for each row when (new.workspace_id is null or new.generation is null) execute function agentd.fill_chunk();
    `,
  );
}

// Counts are kept a statement at a time, because one statement stores the hundreds of chunks of a document. They are
// recomputed and not incremented, so that they cannot drift.
async function createCounters(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create function agentd.count_assignments() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      touched uuid[];
    begin
      if tg_op = 'DELETE' then
        select array_agg(distinct o.media_id) into touched from old_rows o;
      elsif tg_op = 'INSERT' then
        select array_agg(distinct n.media_id) into touched from new_rows n;
      else
        select array_agg(distinct b.media_id) into touched
          from (select o.media_id from old_rows o union select n.media_id from new_rows n) b;
      end if;

      update public.media_library m
         set assigned_agents_count = c.agents
        from (
          select t.media_id,
                 (select count(distinct a.agent_id) from public.agent_media_assignments a where a.media_id = t.media_id)::integer as agents
            from unnest(touched) as t (media_id)
        ) c
       where m.id = c.media_id
         and m.assigned_agents_count is distinct from c.agents;
      return null;
    end
    $$;

    create trigger count_assignments_inserted
      after insert on public.agent_media_assignments
      referencing new table as new_rows
      for each statement execute function agentd.count_assignments();
    create trigger count_assignments_updated
      after update on public.agent_media_assignments
      referencing old table as old_rows new table as new_rows
      for each statement execute function agentd.count_assignments();
    create trigger count_assignments_deleted
      after delete on public.agent_media_assignments
      referencing old table as old_rows
      for each statement execute function agentd.count_assignments();

    -- Only chunks of the generation that is searched count.
    create function agentd.count_chunks_of(p_source_ids uuid[]) returns void
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      update public.knowledge_sources s
         set chunk_count = c.chunks
        from (
          select t.source_id,
                 (select count(*)
                    from public.knowledge_sources x
                    join public.knowledge_chunks k on k.source_id = x.id and k.generation = x.generation
                   where x.id = t.source_id)::integer as chunks
            from unnest(p_source_ids) as t (source_id)
        ) c
       where s.id = c.source_id
         and s.chunk_count is distinct from c.chunks;

      update public.media_library m
         set chunk_count = c.chunks
        from (
          select s.media_id, sum(s.chunk_count)::integer as chunks
            from public.knowledge_sources s
           where s.media_id in (
                   select x.media_id from public.knowledge_sources x
                    where x.id = any (p_source_ids) and x.media_id is not null
                 )
           group by s.media_id
        ) c
       where m.id = c.media_id
         and m.chunk_count is distinct from c.chunks;
    end
    $$;

    ${sql.raw(COUNT_CHUNKS)}

    create trigger count_chunks_inserted
      after insert on public.knowledge_chunks
      referencing new table as new_rows
      for each statement execute function agentd.count_chunks();
    create trigger count_chunks_deleted
      after delete on public.knowledge_chunks
      referencing old table as old_rows
      for each statement execute function agentd.count_chunks();

    create function agentd.count_chunks_after_swap() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      perform agentd.count_chunks_of(array[new.id]);
      return null;
    end
    $$;

    create trigger count_chunks_swapped
      after update of generation on public.knowledge_sources
      for each row when (new.generation is distinct from old.generation)
      execute function agentd.count_chunks_after_swap();

    -- A media row whose last source went has no chunks.
    create function agentd.count_chunks_without_source() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      update public.media_library m
         set chunk_count = coalesce((select sum(s.chunk_count) from public.knowledge_sources s where s.media_id = m.id), 0)
       where m.id = old.media_id;
      return null;
    end
    $$;

    create trigger count_chunks_source_deleted
      after delete on public.knowledge_sources
      for each row when (old.media_id is not null)
      execute function agentd.count_chunks_without_source();
    `,
  );
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    ${dropTables(
      'knowledge_chunks',
      'knowledge_sources',
      'media_processing_logs',
      'agent_media_assignments',
      'media_library',
      'agent_datastores',
      'datastores',
    )}
    drop function agentd.count_chunks_without_source();
    drop function agentd.count_chunks_after_swap();
    drop function agentd.count_chunks();
    drop function agentd.count_chunks_of(uuid[]);
    drop function agentd.count_assignments();
    drop function agentd.fill_chunk();
    `,
  );
}
