/**
 * What turns rows of knowledge_sources and media_library into requests for ingestion, and fences those who carry them out.
 *
 * The row is the request. It waits without a job (status uploaded, job_id null) until a daemon lets it in: as many of each workspace
 * as its ceiling allows, the workspaces in turn. An attempt that fails for a passing reason waits in the row too (retry_at), not in
 * pg-boss, so that it holds no place of its workspace meanwhile. Every change of what is to be read is a new request (`request`), and
 * every claim a new epoch (`lease_epoch`): an attempt under an older one changes nothing.
 */
import { type Kysely, sql } from 'kysely';
import { COUNT_CHUNKS } from './0005_knowledge.ts';
import { WAITING_HEALTH } from './0012_waiting_room.ts';
import { applyAccess } from './access.ts';
import { type Admission, admitFunction, roomFunction } from './admission.ts';
import { changed, runSql } from './run-sql.ts';

/** Waits for a place, as the index has it. Wrapped, so that it implies no other partial index's predicate. */
const waiting = (row: string): string =>
  `((${row}.processing_status = 'uploaded' and ${row}.job_id is null) is true)`;
const dueAt = (row: string): string => `coalesce(${row}.retry_at, '-infinity'::timestamptz)`;

export const DOCUMENT_HEALTH = changed(
  WAITING_HEALTH,
  'agentd.count_waiting() else 0 end',
  `agentd.count_waiting()
                  when d.queue = 'document-ingest' then (
                    select count(*) from public.knowledge_sources k where ${waiting('k')})
                  else 0 end`,
);

/** Chunks of a generation that nobody searches yet, or no more, change no count. */
const COUNT_SEARCHED_CHUNKS = changed(
  changed(
    changed(COUNT_CHUNKS, 'create function', 'create or replace function'),
    'into touched from old_rows o;',
    `into touched from old_rows o
          join public.knowledge_sources s on s.id = o.source_id and s.generation = o.generation;`,
  ),
  'into touched from new_rows n;',
  `into touched from new_rows n
          join public.knowledge_sources s on s.id = n.source_id and s.generation = n.generation;`,
);

/** A file that can be read has a source, and is what becomes of that. */
export const FOLLOW_MEDIA = `create function agentd.follow_media() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  -- pg_trigger_depth: not what this row has from its source
  if new.is_archived
     or (new.processing_status = 'archived' and not (tg_op = 'UPDATE' and old.is_archived)) then
    update public.knowledge_sources s set processing_status = 'archived'
     where s.media_id = new.id and s.processing_status <> 'archived';
    return null;
  end if;
  if new.storage_path is null and new.file_url is null then
    return null;
  end if;
  if tg_op = 'UPDATE' then
    if (new.storage_path, new.bucket, new.file_url) is not distinct from (old.storage_path, old.bucket, old.file_url)
       and not old.is_archived
       and not (new.processing_status = 'uploaded' and old.processing_status <> 'uploaded' and pg_trigger_depth() = 1) then
      return null;
    end if;
    update public.knowledge_sources s
       set processing_status = 'uploaded', request = s.request + 1, job_id = null, lease_expires_at = null,
           attempts = 0, retry_at = null, reason_code = null, reason = null, etag = null, last_modified = null
     where s.media_id = new.id;
    if found then
      return null;
    end if;
  end if;
  if new.processing_status = 'uploaded' and not exists (select 1 from public.knowledge_sources s where s.media_id = new.id) then
    insert into public.knowledge_sources (workspace_id, media_id, name, type, is_automatic)
    values (new.workspace_id, new.id, left(coalesce(new.display_name, new.file_name), 500),
            (case when lower(new.file_name) like '%.pdf' or lower(new.file_type) in ('application/pdf', 'pdf')
                  then 'PDF' else 'TEXT' end)::public.knowledge_type, true);
  end if;
  return null;
end
$$;`;

const ADMISSION: Admission = {
  queue: 'document-ingest',
  table: 'public.knowledge_sources',
  roomFunction: 'document_room',
  admitFunction: 'admit_documents',
  waiting,
  dueAt,
  order: 'seq',
  columns: ['id', 'workspace_id', 'request', 'seq'],
  admitted: (row) => `${row}.job_id is not null and ${row}.processing_status in ('uploaded', 'processing')`,
  data: `jsonb_build_object('source_id', n.id, 'request', n.request, 'workspace_id', n.workspace_id)`,
  key: `n.id || ':' || n.request`,
};

export async function up(db: Kysely<unknown>): Promise<void> {
  await addColumns(db);
  await requestIngestion(db);
  await followMedia(db);
  await admitDocuments(db);
  await runSql(db, sql.raw([DOCUMENT_HEALTH, COUNT_SEARCHED_CHUNKS].join('\n')));
  await applyAccess(db);
}

async function addColumns(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    alter table public.knowledge_sources
      add column seq                  bigint      generated always as identity,
      -- rises whenever there is something new to read
      add column request              integer     not null default 1,
      add column job_id               uuid,
      add column worker_id            text,
      add column lease_epoch          integer     not null default 0,
      add column lease_expires_at     timestamptz,
      -- attempts at the present request
      add column attempts             integer     not null default 0,
      add column retry_at             timestamptz,
      -- made by the trigger on media_library; a source that an application makes for the same media takes its place
      add column is_automatic         boolean     not null default false,
      add column etag                 text,
      add column last_modified        text,
      add column title                text,
      add column page_count           integer,
      add column character_count      bigint,
      add column token_count          bigint,
      add column embedding_model      text,
      add column embedding_dimensions integer,
      -- of all that was ever embedded for it
      add column embedded_tokens      bigint      not null default 0,
      add column cost_micros          bigint      not null default 0;
    comment on column public.knowledge_sources.token_count is 'Tokens of the chunks that are searched.';
    comment on column public.knowledge_sources.cost_micros is 'What its embeddings have cost, in millionths of a US dollar.';

    drop index public.knowledge_sources_waiting_idx;
    create index knowledge_sources_waiting_idx on public.knowledge_sources
      (workspace_id, (${sql.raw(dueAt('knowledge_sources').replaceAll('knowledge_sources.', ''))}), seq)
      where ${sql.raw(waiting('knowledge_sources').replaceAll('knowledge_sources.', ''))};
    create index knowledge_sources_admitted_idx on public.knowledge_sources (workspace_id)
      where job_id is not null and processing_status in ('uploaded', 'processing');
    drop index public.knowledge_sources_processing_idx;
    create index knowledge_sources_processing_idx on public.knowledge_sources (lease_expires_at)
      where processing_status = 'processing';

    alter table public.media_library
      add column token_count bigint,
      add column cost_micros bigint not null default 0;

    -- sha256 of model, dimensions and text: what has been paid for once in a workspace is copied
    alter table public.knowledge_chunks add column embedding_key bytea;
    create index knowledge_chunks_embedding_key_idx on public.knowledge_chunks (workspace_id, embedding_key)
      where embedding_key is not null;

    alter table public.media_processing_logs
      alter column media_id drop not null,
      add column source_id uuid references public.knowledge_sources (id) on delete cascade,
      add constraint media_processing_logs_subject_check check (media_id is not null or source_id is not null);
    create index media_processing_logs_source_id_idx on public.media_processing_logs (source_id, created_at);
    alter policy media_processing_logs_select on public.media_processing_logs using (
      media_id in (select m.id from public.media_library m)
      or (media_id is null and source_id in (select k.id from public.knowledge_sources k)));
    `,
  );
}

async function requestIngestion(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- Something else is to be read, or an application asks for it again by setting the status to uploaded. What the worker does
    -- with a row changes its epoch, its attempts or the time of its next one as well.
    create function agentd.request_ingestion() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if new.processing_status = 'archived' then
        new.job_id := null;
        new.lease_expires_at := null;
        return new;
      end if;
      if (new.content, new.url, new.media_id, new.type) is distinct from (old.content, old.url, old.media_id, old.type)
         or (new.processing_status = 'uploaded' and old.processing_status <> 'uploaded'
             and (new.lease_epoch, new.attempts, new.retry_at, new.request)
                   is not distinct from (old.lease_epoch, old.attempts, old.retry_at, old.request)) then
        new.processing_status := 'uploaded';
        new.request := old.request + 1;
        new.job_id := null;
        new.lease_expires_at := null;
        new.attempts := 0;
        new.retry_at := null;
        new.reason_code := null;
        new.reason := null;
        if new.url is distinct from old.url or new.media_id is distinct from old.media_id then
          new.etag := null;
          new.last_modified := null;
        end if;
      end if;
      return new;
    end
    $$;
    create trigger request_ingestion
      before update of content, url, media_id, type, processing_status on public.knowledge_sources
      for each row execute function agentd.request_ingestion();

    -- An application that writes the chunks of a source itself has done what was asked: the source is complete, and an attempt that
    -- is under way changes nothing. What the worker writes has its embedding_key.
    create function agentd.adopt_chunks() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      update public.knowledge_sources k
         set processing_status = 'completed', job_id = null, lease_expires_at = null, retry_at = null,
             reason_code = null, reason = null, last_ingested_at = agentd.now()
       where k.processing_status in ('uploaded', 'processing', 'failed')
         and k.id in (select n.source_id from new_rows n
                       where n.embedding_key is null and n.generation = k.generation);
      return null;
    end
    $$;
    create trigger adopt_chunks after insert on public.knowledge_chunks
      referencing new table as new_rows
      for each statement execute function agentd.adopt_chunks();

    create function agentd.wake_ingestion() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      perform agentd.wake('document-ingest');
      return null;
    end
    $$;
    create trigger wake_ingestion_insert after insert on public.knowledge_sources
      for each row when (new.processing_status = 'uploaded' and new.job_id is null) execute function agentd.wake_ingestion();
    create trigger wake_ingestion_update after update on public.knowledge_sources
      for each row when (new.processing_status = 'uploaded' and new.job_id is null
                         and (old.processing_status <> 'uploaded' or old.request <> new.request))
      execute function agentd.wake_ingestion();
    `,
  );
}

async function followMedia(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- The worker's keys read everything in the storage, so whoever is signed in may name only files below a folder of his own or his
    -- workspace's; what the platform writes is believed.
    create function agentd.guard_storage_path() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if agentd.is_service_caller()
         or split_part(new.storage_path, '/', 1) in (new.user_id::text, new.workspace_id::text) then
        return new;
      end if;
      raise exception 'storage_path must begin with the folder of its user (%/) or of its workspace (%/)', new.user_id, new.workspace_id
        using errcode = 'insufficient_privilege',
              hint = 'Upload to such a folder, or let the application''s backend write the row.';
    end
    $$;
    create trigger zz_guard_storage_path before insert or update of storage_path, bucket, user_id, workspace_id on public.media_library
      for each row when (new.storage_path is not null) execute function agentd.guard_storage_path();

    -- A media row is a file, a source is what gets chunked. A file that can be read has a source, and is what becomes of that.
    ${sql.raw(FOLLOW_MEDIA)}
    create trigger follow_media_insert after insert on public.media_library
      for each row execute function agentd.follow_media();
    create trigger follow_media_update
      after update of storage_path, bucket, file_url, is_archived, processing_status on public.media_library
      for each row execute function agentd.follow_media();

    create function agentd.replace_automatic_source() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      delete from public.knowledge_sources s
       where s.media_id = new.media_id and s.is_automatic and s.workspace_id = new.workspace_id;
      return new;
    end
    $$;
    create trigger replace_automatic_source before insert on public.knowledge_sources
      for each row when (new.media_id is not null and not new.is_automatic) execute function agentd.replace_automatic_source();

    -- What a source has become is what its file has become.
    create function agentd.mirror_source() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      update public.media_library m
         set processing_status = new.processing_status, reason_code = new.reason_code, reason = new.reason,
             content_sha256 = coalesce(new.content_sha256, m.content_sha256),
             token_count = coalesce(new.token_count, m.token_count), cost_micros = new.cost_micros
       where m.id = new.media_id
         and (m.processing_status, m.reason_code, m.reason, m.cost_micros, m.token_count)
               is distinct from (new.processing_status, new.reason_code, new.reason, new.cost_micros, new.token_count)
         and not (m.is_archived and new.processing_status <> 'archived');
      return null;
    end
    $$;
    create trigger mirror_source
      after update of processing_status, reason_code, reason, cost_micros, token_count on public.knowledge_sources
      for each row when (new.media_id is not null) execute function agentd.mirror_source();
    `,
  );
}

async function admitDocuments(db: Kysely<unknown>): Promise<void> {
  await runSql(db, sql.raw([roomFunction(ADMISSION), admitFunction(ADMISSION)].join('\n')));
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    ${sql.raw(WAITING_HEALTH)}
    ${sql.raw(changed(COUNT_CHUNKS, 'create function', 'create or replace function'))}
    drop function agentd.admit_documents(integer);
    drop function agentd.document_room(uuid);
    drop trigger mirror_source on public.knowledge_sources;
    drop trigger replace_automatic_source on public.knowledge_sources;
    drop trigger zz_guard_storage_path on public.media_library;
    drop trigger follow_media_update on public.media_library;
    drop trigger follow_media_insert on public.media_library;
    drop trigger adopt_chunks on public.knowledge_chunks;
    drop trigger wake_ingestion_update on public.knowledge_sources;
    drop trigger wake_ingestion_insert on public.knowledge_sources;
    drop trigger request_ingestion on public.knowledge_sources;
    drop function agentd.mirror_source();
    drop function agentd.replace_automatic_source();
    drop function agentd.follow_media();
    drop function agentd.guard_storage_path();
    drop function agentd.wake_ingestion();
    drop function agentd.adopt_chunks();
    drop function agentd.request_ingestion();

    alter policy media_processing_logs_select on public.media_processing_logs using (
      media_id in (select m.id from public.media_library m));
    drop index public.media_processing_logs_source_id_idx;
    delete from public.media_processing_logs where media_id is null;
    alter table public.media_processing_logs
      drop constraint media_processing_logs_subject_check,
      drop column source_id,
      alter column media_id set not null;

    drop index public.knowledge_chunks_embedding_key_idx;
    alter table public.knowledge_chunks drop column embedding_key;
    alter table public.media_library drop column token_count, drop column cost_micros;

    drop index public.knowledge_sources_processing_idx;
    drop index public.knowledge_sources_admitted_idx;
    drop index public.knowledge_sources_waiting_idx;
    alter table public.knowledge_sources
      drop column seq, drop column request, drop column job_id, drop column worker_id, drop column lease_epoch,
      drop column lease_expires_at, drop column attempts, drop column retry_at, drop column is_automatic, drop column etag,
      drop column last_modified, drop column title, drop column page_count, drop column character_count, drop column token_count,
      drop column embedding_model, drop column embedding_dimensions, drop column embedded_tokens, drop column cost_micros;
    create index knowledge_sources_waiting_idx on public.knowledge_sources (workspace_id, created_at)
      where processing_status = 'uploaded';
    create index knowledge_sources_processing_idx on public.knowledge_sources (updated_at)
      where processing_status = 'processing';
    `,
  );
}
