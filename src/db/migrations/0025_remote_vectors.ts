/**
 * Vectors that are copied to a store of others (datastores of type pinecone), and what keeps copy and ledger equal.
 *
 * knowledge_chunks is the ledger: it has the text, the vector and the generation, and answers alone where the store does not. What changes
 * in it becomes a row of agentd.vector_outbox in the same transaction: one for each source and store, however often it changes. The row
 * says that something is to be done; what, is read from the ledger when it is done.
 *
 * agentd.vector_stores has a row for each place that vectors were ever sent to: a datastore as it is now, and as it was before it
 * was deleted or pointed elsewhere (`retired_at`). A retired one carries what its deletions need, the key as it was stored among it: a
 * workspace that is deleted takes its datastores along, and its vectors are to go all the same. It is deleted as soon as they are gone,
 * or after a week in which the store did not let that happen.
 */
import { type Kysely, sql } from 'kysely';
import { LIMITS } from './0022_retrieval.ts';
import { applyAccess } from './access.ts';
import { matchRemoteChunks } from './match-remote-chunks.ts';
import { runSql, vectorSchema } from './run-sql.ts';

/** Bytes of a config that is kept for deletions; a larger one holds no key that anybody needs. */
const MOST_CONFIG = 16_384;

/** The datastore's present store becomes one that only deletes. */
export const RETIRE_STORE = `-- The datastore's present store becomes one that only deletes. What was never taken by a worker was never sent.
    create function agentd.retire_store(p_datastore uuid, p_config jsonb) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
    declare
      v_store uuid;
    begin
      update agentd.vector_stores s
         set retired_at = agentd.now(), rest_until = null, attempts = 0, reason_code = null, reason = null, reconcile_place = null,
             config = case when octet_length(p_config::text) <= ${MOST_CONFIG} then p_config else '{}' end
       where s.datastore_id = p_datastore and s.retired_at is null
      returning s.id into v_store;
      if v_store is null then
        return;
      end if;
      delete from agentd.vector_outbox o where o.store_id = v_store and o.claimed_at is null
         and not exists (select 1 from agentd.vector_copies c
                          where (c.store_id, c.source_id, c.workspace_id) = (o.store_id, o.source_id, o.workspace_id));
      insert into agentd.vector_outbox as o (store_id, source_id, workspace_id, op)
      select c.store_id, c.source_id, c.workspace_id, 'delete' from agentd.vector_copies c where c.store_id = v_store
      on conflict (store_id, source_id, workspace_id) do nothing;
      update agentd.vector_outbox o
         set op = 'delete', generation = null, request = o.request + 1, removal_place = null, attempts = 0, retry_at = null,
             reason_code = null, reason = null
       where o.store_id = v_store;
      if found then
        perform agentd.wake_vectors();
      else
        delete from agentd.vector_stores s where s.id = v_store;
      end if;
    end
    $$;`;

/** What a change of a datastore means for its store. */
export const FOLLOW_DATASTORE = `create function agentd.follow_datastore() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      v_was   boolean := tg_op <> 'INSERT' and old.type = 'pinecone';
      v_is    boolean := tg_op <> 'DELETE' and new.type = 'pinecone';
      v_store uuid;
    begin
      if tg_op = 'DELETE' then
        if v_was then
          perform agentd.retire_store(old.id, old.config);
        end if;
        return old;
      end if;
      if v_was and v_is and agentd.vector_place(new.config) is not distinct from agentd.vector_place(old.config) then
        -- another key, perhaps the right one now
        update agentd.vector_stores s
           set workspace_id = new.workspace_id, rest_until = null, attempts = 0, reason_code = null, reason = null
         where s.datastore_id = new.id and s.retired_at is null
        returning s.id into v_store;
        if new.config is distinct from old.config then
          update agentd.vector_outbox o set retry_at = null, attempts = 0 where o.store_id = v_store;
          perform agentd.wake_vectors();
        end if;
        return null;
      end if;
      if v_was then
        perform agentd.retire_store(old.id, old.config);
      end if;
      if v_is then
        insert into agentd.vector_stores (datastore_id, workspace_id) values (new.id, new.workspace_id) returning id into v_store;
        perform agentd.request_all_vectors(v_store);
      end if;
      return null;
    end
    $$;`;

export const DATASTORE_TRIGGERS = `create trigger follow_datastore_insert after insert on public.datastores
      for each row when (new.type = 'pinecone') execute function agentd.follow_datastore();
    create trigger follow_datastore_update after update of type, config, workspace_id on public.datastores
      for each row when ((new.type = 'pinecone' or old.type = 'pinecone')
                         and (new.type, new.config, new.workspace_id) is distinct from (old.type, old.config, old.workspace_id))
      execute function agentd.follow_datastore();
    -- before: its sources still name it
    create trigger follow_datastore_delete before delete on public.datastores
      for each row when (old.type = 'pinecone') execute function agentd.follow_datastore();`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await createTables(db);
  await followDatastores(db);
  await followSources(db);
  const home = `"${(await vectorSchema(db)).replaceAll('"', '""')}"`;
  await runSql(db, sql.raw(matchRemoteChunks(home, LIMITS)));
  await runSql(
    db,
    sql`
    insert into agentd.vector_stores (datastore_id, workspace_id)
    select d.id, d.workspace_id from public.datastores d where d.type = 'pinecone';
    select agentd.request_all_vectors(s.id) from agentd.vector_stores s;
    `,
  );
  await applyAccess(db);
}

async function createTables(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- No references: a store outlives its datastore and its workspace.
    create table agentd.vector_stores (
      id               uuid        primary key default gen_random_uuid(),
      datastore_id     uuid        not null,
      workspace_id     uuid        not null,
      created_at       timestamptz not null default agentd.now(),
      -- the datastore is no more, or is another store now: config is what it was
      retired_at       timestamptz,
      config           jsonb,
      -- the claim: one worker at a time
      lease_epoch      integer     not null default 0,
      leased_until     timestamptz,
      worker_id        text,
      worked_at        timestamptz,
      -- why it rests, and until when
      attempts         integer     not null default 0,
      rest_until       timestamptz,
      reason_code      text,
      reason           text,
      -- the comparison of store and ledger: how far it is, when it begins again, what the last one found
      reconcile_at     timestamptz not null default agentd.now() + interval '10 minutes',
      reconcile_place  jsonb,
      reconciled_at    timestamptz,
      missing_vectors  bigint      not null default 0,
      extra_vectors    bigint      not null default 0,
      constraint vector_stores_retired_check check (retired_at is not null or config is null)
    );
    comment on column agentd.vector_stores.reason is 'Why nothing is sent at present, and what to do about it.';
    comment on column agentd.vector_stores.missing_vectors is 'That were in the ledger and not in the store, in the last comparison that found any.';
    create unique index vector_stores_live_idx on agentd.vector_stores (datastore_id) where retired_at is null;
    create index vector_stores_retired_idx on agentd.vector_stores (retired_at) where retired_at is not null;
    create index vector_stores_reconcile_idx on agentd.vector_stores (reconcile_at);
    create index vector_stores_leased_idx on agentd.vector_stores (workspace_id) where leased_until is not null;

    create table agentd.vector_outbox (
      store_id     uuid        not null references agentd.vector_stores (id) on delete cascade,
      source_id    uuid        not null,
      -- the namespace: the source's workspace
      workspace_id uuid        not null,
      op           text        not null check (op in ('upsert', 'delete')),
      generation   integer,
      -- rises with each change: what was done for an older one is not all
      request      integer     not null default 1,
      -- chunks of the generation that were sent
      sent_to      integer     not null default 0,
      -- how far the deletion of what is too much has come
      removal_place jsonb,
      -- when a worker first took it: before that nothing was sent
      claimed_at   timestamptz,
      -- the end of its last turn, or else when it was made: rows wait in this order, so that one which needs many turns holds up no other
      turn_at      timestamptz not null default agentd.now(),
      attempts     integer     not null default 0,
      -- null: at once, whatever a clock said
      retry_at     timestamptz,
      reason_code  text,
      reason       text,
      created_at   timestamptz not null default agentd.now(),
      primary key (store_id, source_id, workspace_id)
    );
    create index vector_outbox_due_idx on agentd.vector_outbox (store_id, retry_at);
    create index vector_outbox_turn_idx on agentd.vector_outbox (store_id, turn_at);

    -- What was sent and acknowledged: what a search may ask the store for, and what a deletion finds without asking.
    create table agentd.vector_copies (
      store_id     uuid        not null references agentd.vector_stores (id) on delete cascade,
      source_id    uuid        not null,
      workspace_id uuid        not null,
      generation   integer     not null,
      chunks       integer     not null,
      model        text,
      dimensions   integer,
      synced_at    timestamptz not null default agentd.now(),
      primary key (store_id, source_id, workspace_id)
    );
    create index vector_copies_workspace_idx on agentd.vector_copies (workspace_id, source_id);
    -- a datastore's sources, some at a time
    create index knowledge_sources_datastore_order_idx on public.knowledge_sources (datastore_id, id) where datastore_id is not null;
    `,
  );
}

async function followDatastores(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create function agentd.wake_vectors() returns void
    language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
      select pg_catalog.pg_notify('agentd_wake', 'vector-sync')
    $$;

    -- Where a config points, beside its key.
    create function agentd.vector_place(p_config jsonb) returns jsonb
    language sql immutable set search_path = pg_catalog, pg_temp as $$
      select case when jsonb_typeof(p_config) = 'object' then
        p_config - array['api_key', 'apiKey', 'key', 'token', 'namespace', 'environment'] end
    $$;

    -- All that a live store is to hold.
    create function agentd.request_all_vectors(p_store uuid) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
    begin
      insert into agentd.vector_outbox as o (store_id, source_id, workspace_id, op, generation)
      select s.id, k.id, k.workspace_id, 'upsert', k.generation
        from agentd.vector_stores s
        join public.knowledge_sources k on k.datastore_id = s.datastore_id
       where s.id = p_store and s.retired_at is null and k.processing_status <> 'archived' and k.chunk_count > 0
      on conflict (store_id, source_id, workspace_id) do update
        set op = 'upsert', generation = excluded.generation, request = o.request + 1, sent_to = 0, removal_place = null,
            attempts = 0, retry_at = null, reason_code = null, reason = null;
      if found then
        perform agentd.wake_vectors();
      end if;
    end
    $$;

    ${sql.raw(RETIRE_STORE)}

    ${sql.raw(FOLLOW_DATASTORE)}
    ${sql.raw(DATASTORE_TRIGGERS)}
    `,
  );
}

async function followSources(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create function agentd.request_vectors(p_datastore uuid, p_source uuid, p_workspace uuid, p_op text, p_generation integer) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
    declare
      v_request integer;
    begin
      insert into agentd.vector_outbox as o (store_id, source_id, workspace_id, op, generation)
      select s.id, p_source, p_workspace, p_op, p_generation
        from agentd.vector_stores s where s.datastore_id = p_datastore and s.retired_at is null
      on conflict (store_id, source_id, workspace_id) do update
        set op = excluded.op, generation = excluded.generation, request = o.request + 1, sent_to = 0, removal_place = null,
            attempts = 0, retry_at = null, reason_code = null, reason = null
      returning o.request into v_request;
      if v_request = 1 then
        perform agentd.wake_vectors();
      end if;
    end
    $$;

    -- What is searched of a source is what its store is to hold.
    create function agentd.follow_source() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      v_was boolean := tg_op <> 'INSERT' and old.datastore_id is not null and old.processing_status <> 'archived' and old.chunk_count > 0;
      v_is  boolean := tg_op <> 'DELETE' and new.datastore_id is not null and new.processing_status <> 'archived' and new.chunk_count > 0;
    begin
      if v_was and v_is
         and (new.datastore_id, new.workspace_id, new.generation, new.chunk_count, new.embedding_model, new.embedding_dimensions)
               is not distinct from
             (old.datastore_id, old.workspace_id, old.generation, old.chunk_count, old.embedding_model, old.embedding_dimensions) then
        return null;
      end if;
      if v_was and not (v_is and (new.datastore_id, new.workspace_id) = (old.datastore_id, old.workspace_id)) then
        perform agentd.request_vectors(old.datastore_id, old.id, old.workspace_id, 'delete', null);
      end if;
      if v_is then
        perform agentd.request_vectors(new.datastore_id, new.id, new.workspace_id, 'upsert', new.generation);
      end if;
      return null;
    end
    $$;
    create trigger follow_source_insert after insert on public.knowledge_sources
      for each row when (new.datastore_id is not null and new.chunk_count > 0) execute function agentd.follow_source();
    create trigger follow_source_update
      after update of datastore_id, workspace_id, processing_status, generation, chunk_count, embedding_model, embedding_dimensions
      on public.knowledge_sources
      for each row when (new.datastore_id is not null or old.datastore_id is not null) execute function agentd.follow_source();
    create trigger follow_source_delete after delete on public.knowledge_sources
      for each row when (old.datastore_id is not null) execute function agentd.follow_source();
    `,
  );
}

export async function down(db: Kysely<unknown>): Promise<void> {
  const home = sql.raw(`"${(await vectorSchema(db)).replaceAll('"', '""')}"`);
  await runSql(
    db,
    sql`
    drop function agentd.match_remote_chunks(uuid[], integer[], jsonb, ${home}.vector, integer, double precision, uuid, uuid, text, text, uuid[]);
    drop trigger follow_source_delete on public.knowledge_sources;
    drop trigger follow_source_update on public.knowledge_sources;
    drop trigger follow_source_insert on public.knowledge_sources;
    drop function agentd.follow_source();
    drop function agentd.request_vectors(uuid, uuid, uuid, text, integer);
    drop trigger follow_datastore_delete on public.datastores;
    drop trigger follow_datastore_update on public.datastores;
    drop trigger follow_datastore_insert on public.datastores;
    drop function agentd.follow_datastore();
    drop function agentd.retire_store(uuid, jsonb);
    drop function agentd.request_all_vectors(uuid);
    drop function agentd.vector_place(jsonb);
    drop function agentd.wake_vectors();
    drop index public.knowledge_sources_datastore_order_idx;
    drop table agentd.vector_copies, agentd.vector_outbox, agentd.vector_stores;
    `,
  );
}
