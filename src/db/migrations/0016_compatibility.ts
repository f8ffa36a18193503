import { type Kysely, sql } from 'kysely';
import { createDocumentSchemas, dropDocumentSchemas } from '../compatibility/schemas.ts';
import { applyAccess } from './access.ts';
import { runSql } from './run-sql.ts';

// A schema for each document, in which an application that was written for it finds its tables under their names: views of schema
// public, under the asker's own policies.

/** Tables whose rows have a text id of their application's own in document Agent Platform. */
const keyed = ['agents', 'api_connections', 'agent_api_connections', 'agent_messages', 'agent_feedback'];

export async function up(db: Kysely<unknown>): Promise<void> {
  // Nobody can make a row that is taken for another's: not by its text id, and not by its uuid as text.
  await runSql(
    db,
    sql.raw(
      keyed
        .map(
          (table) => `
    alter table public.${table} drop constraint ${table}_external_id_key;
    create unique index ${table}_key_idx on public.${table} ((coalesce(external_id, id::text)));`,
        )
        .join('\n'),
    ),
  );
  await runSql(
    db,
    sql`
    -- A conversation has no row in document Agent Platform: its id is a word that two users may both have chosen.
    alter table public.conversations drop constraint conversations_external_id_key;
    create unique index conversations_external_id_idx
      on public.conversations (workspace_id, user_id, external_id) where external_id is not null;
    create index conversations_key_idx on public.conversations ((coalesce(external_id, id::text)));

    -- Null for what is no uuid as PostgreSQL writes it: any other text id is read back as it was written.
    create function agentd.uuid_of(value text) returns uuid
    language sql immutable set search_path = pg_catalog, pg_temp as $$
      select case when value ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then value::uuid end
    $$;

    -- The user's conversation of that name with the agent, made if there is none. It lies where the agent does for members of that
    -- workspace, in the user's own otherwise. As the caller: his policies decide.
    create function agentd.conversation_of(p_key text, p_agent_id uuid, p_user_id uuid) returns uuid
    language plpgsql set search_path = pg_catalog, pg_temp as $$
    declare
      v_workspace uuid;
      v_agent     uuid;
      v_id        uuid;
    begin
      if p_key is null then
        return null;
      end if;
      select a.workspace_id, a.id into v_workspace, v_agent
        from public.agents a
       where a.id = p_agent_id
         and exists (select 1 from public.user_roles r where r.user_id = p_user_id and r.workspace_id = a.workspace_id);
      if v_workspace is null then
        select w.id into v_workspace from public.workspaces w where w.owner_user_id = p_user_id and w.is_personal;
      end if;
      for attempt in 1 .. 2 loop
        select c.id into v_id
          from public.conversations c
         where c.workspace_id = v_workspace
           and coalesce(c.external_id, c.id::text) = p_key
           and (c.user_id = p_user_id or c.external_id is null)
         order by c.user_id = p_user_id desc
         limit 1;
        exit when v_id is not null;
        insert into public.conversations (external_id, workspace_id, agent_id, user_id)
        values (p_key, v_workspace, v_agent, p_user_id)
        on conflict do nothing
        returning id into v_id;
        exit when v_id is not null;
      end loop;
      return v_id;
    end
    $$;

    -- Off Supabase the users are agentd's own table, and agentexpress.users writes it.
    do $$
    begin
      if exists (select 1 from agentd.platform_objects o where o.kind = 'table' and o.name = 'auth.users') then
        grant update, delete on auth.users to agentd_owner;
      end if;
    end
    $$;
    `,
  );
  await createDocumentSchemas(db);
  await applyAccess(db);
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await dropDocumentSchemas(db);
  await runSql(
    db,
    sql`
    do $$
    begin
      if exists (select 1 from agentd.platform_objects o where o.kind = 'table' and o.name = 'auth.users') then
        revoke update, delete on auth.users from agentd_owner;
      end if;
    end
    $$;
    drop function agentd.conversation_of(text, uuid, uuid);
    drop function agentd.uuid_of(text);
    drop index public.conversations_key_idx;
    drop index public.conversations_external_id_idx;
    -- two users may have chosen the same word by now: the first keeps it
    update public.conversations c set external_id = null
     where exists (select 1 from public.conversations o
                    where o.external_id = c.external_id and (o.created_at, o.id) < (c.created_at, c.id));
    alter table public.conversations add constraint conversations_external_id_key unique (external_id);
    `,
  );
  await runSql(
    db,
    sql.raw(
      keyed
        .map(
          (table) => `
    drop index public.${table}_key_idx;
    alter table public.${table} add constraint ${table}_external_id_key unique (external_id);`,
        )
        .join('\n'),
    ),
  );
}
