/**
 * What a hostile tenant with SQL of his own found open.
 *
 * No function looks into the caller's temporary schema first.
 *
 * With an empty search_path PostgreSQL looks for relations and types in pg_temp before anywhere else, so that a caller's temporary domain
 * named uuid would run his code as the owner of a definer function. Named last, it is never reached. The functions of a new database are
 * made so; this is for databases that have the older ones.
 */
import { type Kysely, sql } from 'kysely';
import { documents } from '../compatibility/documents.ts';
import { applyAccess, names, ourPublicFunction } from './access.ts';
import { runSql } from './run-sql.ts';

/** What of a source is the worker’s to say. */
export const GUARD_INGESTION = `create function agentd.guard_ingestion() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if agentd.is_service_caller() then
    return new;
  end if;
  if tg_op = 'INSERT' then
    if new.processing_status = 'processing' then
      new.processing_status := 'uploaded';
    end if;
    new.request := 1;
    new.lease_epoch := 0;
    new.attempts := 0;
    new.generation := 1;
    new.chunk_count := 0;
    new.embedded_tokens := 0;
    new.cost_micros := 0;
    new.job_id := null;
    new.worker_id := null;
    new.lease_expires_at := null;
    new.retry_at := null;
    new.next_refresh_at := null;
    new.embedding_model := null;
    new.embedding_dimensions := null;
    new.token_count := null;
    new.is_automatic := false;
    return new;
  end if;
  if new.processing_status = 'processing' and old.processing_status <> 'processing' then
    new.processing_status := old.processing_status;
  end if;
  new.request := old.request;
  new.lease_epoch := old.lease_epoch;
  new.attempts := old.attempts;
  new.generation := old.generation;
  new.chunk_count := old.chunk_count;
  new.embedded_tokens := old.embedded_tokens;
  new.cost_micros := old.cost_micros;
  new.job_id := old.job_id;
  new.worker_id := old.worker_id;
  new.lease_expires_at := old.lease_expires_at;
  new.retry_at := old.retry_at;
  new.next_refresh_at := old.next_refresh_at;
  new.embedding_model := old.embedding_model;
  new.embedding_dimensions := old.embedding_dimensions;
  new.token_count := old.token_count;
  new.is_automatic := old.is_automatic;
  return new;
end
$$;`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    do $$
    declare
      f regprocedure;
    begin
      for f in
        select p.oid::regprocedure
          from pg_catalog.pg_proc p
          join pg_catalog.pg_namespace n on n.oid = p.pronamespace
         where (n.nspname = 'agentd' or n.nspname = any (${names(documents.map((document) => document.schema))})
                or (n.nspname = 'public' and ${ourPublicFunction}))
           and coalesce(p.proconfig, '{}') && array['search_path=""', 'search_path=']
           and not exists (
             select 1 from pg_catalog.pg_depend d
              where d.classid = 'pg_catalog.pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
      loop
        execute format('alter function %s set search_path = pg_catalog, pg_temp', f);
      end loop;
    end
    $$;
    `,
  );
  await guardRows(db);
}

async function guardRows(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- Who is signed in says what is to be read. How far it is, is the worker's: one row with a number at its end would stop the repair of
    -- all, and one with another's claim would go round its workspace's ceiling.
    ${sql.raw(GUARD_INGESTION)}
    -- before request_ingestion, which answers what he may say; not what triggers of ours do on his behalf
    create trigger a_guard_ingestion before insert or update on public.knowledge_sources
      for each row when (pg_trigger_depth() = 0) execute function agentd.guard_ingestion();

    -- a daemon holds the texts of many tenants in memory
    alter table public.knowledge_sources
      add constraint knowledge_sources_content_size check (octet_length(content) <= 20000000),
      add constraint knowledge_sources_refresh_interval check (refresh_interval between interval '1 minute' and interval '10 years');

    -- Nobody makes a workspace another's, or takes it for somebody's own.
    create function agentd.guard_workspace() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if agentd.is_service_caller() then
        return new;
      end if;
      if new.is_personal is distinct from (tg_op = 'UPDATE' and old.is_personal) then
        raise exception 'a personal workspace is made by the platform alone' using errcode = 'insufficient_privilege';
      end if;
      if tg_op = 'UPDATE' and new.owner_user_id is distinct from old.owner_user_id
         and (old.is_personal or not exists (
           select 1 from public.user_roles r where r.workspace_id = new.id and r.user_id = new.owner_user_id)) then
        raise exception 'workspace % can be given to one of its members only, and a personal one to nobody', new.id
          using errcode = 'insufficient_privilege';
      end if;
      return new;
    end
    $$;
    create trigger zz_guard_workspace_insert before insert on public.workspaces
      for each row when (new.is_personal and pg_trigger_depth() = 0) execute function agentd.guard_workspace();
    create trigger zz_guard_workspace_update before update of is_personal, owner_user_id on public.workspaces
      for each row execute function agentd.guard_workspace();
    `,
  );
  await applyAccess(db);
}

/** The search_path of before was a fault: nothing goes back to it. */
export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    drop trigger zz_guard_workspace_update on public.workspaces;
    drop trigger zz_guard_workspace_insert on public.workspaces;
    drop function agentd.guard_workspace();
    alter table public.knowledge_sources
      drop constraint knowledge_sources_refresh_interval,
      drop constraint knowledge_sources_content_size;
    drop trigger a_guard_ingestion on public.knowledge_sources;
    drop function agentd.guard_ingestion();
    `,
  );
}
