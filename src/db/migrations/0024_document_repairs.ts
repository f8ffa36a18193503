/**
 * What was found where documents meet crashes, deletions and greedy tenants.
 *
 * How many chunks a complete source has is noted (`stored_chunks`), so that one whose chunks were deleted meanwhile is read again; the
 * batch that was booked last (`stored_batch`), so that one whose answer was lost is not booked twice; and the claims that ended with
 * their worker (`lost_claims`) apart from the attempts that failed.
 */
import { type Kysely, sql } from 'kysely';
import { FOLLOW_MEDIA } from './0021_ingestion.ts';
import { GUARD_INGESTION } from './0023_hardening.ts';
import { applyAccess } from './access.ts';
import { changed, runSql } from './run-sql.ts';

const replaced = (text: string): string => changed(text, 'create function', 'create or replace function');

/** A file that is another now is read, also where its source has been deleted. */
const FOLLOW_CHANGED_MEDIA = changed(
  FOLLOW_MEDIA,
  `    if found then
      return null;
    end if;
  end if;`,
  `    if found then
      return null;
    end if;
    if new.processing_status <> 'uploaded' then
      update public.media_library m set processing_status = 'uploaded', reason_code = null, reason = null where m.id = new.id;
      new.processing_status := 'uploaded';
    end if;
  end if;`,
);

const GUARDED = ['lost_claims', 'stored_chunks', 'stored_batch'] as const;
const GUARD_ALL = changed(
  changed(
    GUARD_INGESTION,
    'new.is_automatic := false;',
    'new.is_automatic := false;\n    new.lost_claims := 0;\n    new.stored_chunks := null;\n    new.stored_batch := null;',
  ),
  'new.is_automatic := old.is_automatic;',
  [
    'new.is_automatic := old.is_automatic;',
    ...GUARDED.map((column) => `  new.${column} := old.${column};`),
  ].join('\n'),
);

export async function up(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    alter table public.knowledge_sources
      -- claims of the present request that ended with their worker
      add column lost_claims   integer not null default 0,
      -- chunks of the complete generation: fewer are there when some were deleted
      add column stored_chunks integer,
      -- the batch of embeddings that was booked last
      add column stored_batch  uuid;
    update public.knowledge_sources set stored_chunks = chunk_count where processing_status = 'completed' and content_sha256 is not null;

    -- looked through workspace by workspace, so that nobody's refreshes wait behind another's
    drop index public.knowledge_sources_refresh_due_idx;
    create index knowledge_sources_refresh_due_idx on public.knowledge_sources (workspace_id, next_refresh_at)
      -- wrapped, so that it implies no other partial index's predicate
      where ((next_refresh_at is not null and processing_status in ('completed', 'failed')) is true);

    create function agentd.forget_lost_claims() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp as $$
    begin
      new.lost_claims := 0;
      return new;
    end
    $$;
    -- after request_ingestion, which may make it a new request
    create trigger request_is_new before update on public.knowledge_sources
      for each row when (new.request <> old.request or (new.processing_status = 'completed' and old.lost_claims > 0))
      execute function agentd.forget_lost_claims();

    ${sql.raw(replaced(GUARD_ALL))}
    ${sql.raw(replaced(FOLLOW_CHANGED_MEDIA))}

    -- Only once the new one is there: an insert that does nothing takes nothing away.
    drop trigger replace_automatic_source on public.knowledge_sources;
    create trigger replace_automatic_source after insert on public.knowledge_sources
      for each row when (new.media_id is not null and not new.is_automatic) execute function agentd.replace_automatic_source();

    -- A file whose source is deleted on its way is on no way any more.
    create function agentd.leave_media() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      update public.media_library m
         set processing_status = 'failed', reason_code = 'source_deleted',
             reason = 'Its knowledge source was deleted. Set processing_status to uploaded to have the file read again.'
       where m.id = old.media_id and m.processing_status in ('uploaded', 'processing')
         and not exists (select 1 from public.knowledge_sources s where s.media_id = old.media_id);
      return null;
    end
    $$;
    create trigger leave_media after delete on public.knowledge_sources
      for each row when (old.media_id is not null) execute function agentd.leave_media();
    `,
  );
  await applyAccess(db);
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    drop trigger leave_media on public.knowledge_sources;
    drop function agentd.leave_media();
    drop trigger replace_automatic_source on public.knowledge_sources;
    create trigger replace_automatic_source before insert on public.knowledge_sources
      for each row when (new.media_id is not null and not new.is_automatic) execute function agentd.replace_automatic_source();
    ${sql.raw([FOLLOW_MEDIA, GUARD_INGESTION].map(replaced).join('\n'))}
    drop trigger request_is_new on public.knowledge_sources;
    drop function agentd.forget_lost_claims();
    drop index public.knowledge_sources_refresh_due_idx;
    create index knowledge_sources_refresh_due_idx on public.knowledge_sources (next_refresh_at)
      where next_refresh_at is not null;
    alter table public.knowledge_sources drop column stored_batch, drop column stored_chunks, drop column lost_claims;
    `,
  );
}
