/**
 * What held references within one tenant only as long as nobody moved a row, and what a former member could still do.
 *
 * A reference is checked where it is written (composite keys; agentd.check_owned_parent and its like). Here it is checked from the other
 * end: when what is referred to changes its workspace, its owner or its agent. Both ends lock the row that is referred to, so that a
 * reference made while it moves is seen by one of them. The journal's rows get the composite key that other tables have.
 *
 * Policies come from access-rules.ts, in an earlier migration on a new database and here on an older one; `down` leaves them.
 */
import { type Kysely, sql } from 'kysely';
import { MY_WORKSPACE_IDS } from './0002_identity.ts';
import { CHECK_OWNED_PARENT, MY_AGENT_IDS } from './0004_agents.ts';
import { applyAccess } from './access.ts';
import { changed, runSql } from './run-sql.ts';

/** Tables whose rows a member could change or delete after leaving the workspace. */
const CHANGED_RULES = ['chat_rooms', 'conversations', 'chat_messages', 'agent_messages'];

const JOURNAL = ['task_step_runs', 'llm_calls', 'tool_calls'];

export async function up(db: Kysely<unknown>): Promise<void> {
  await keepJournal(db);
  await keepOwnedParents(db);
  await keepAgents(db);
  await keepServers(db);
  await keepProfiles(db);
  await keepPlans(db);
  await runSql(
    db,
    sql.raw(
      CHANGED_RULES.flatMap((table) =>
        ['select', 'insert', 'update', 'delete'].map(
          (command) => `drop policy ${table}_${command} on public.${table};`,
        ),
      ).join('\n'),
    ),
  );
  await applyAccess(db);
}

/** A call, a step or a retry is of its run's workspace. */
async function keepJournal(db: Kysely<unknown>): Promise<void> {
  const journal = JOURNAL.map(
    (table) => `
      alter table public.${table}
        drop constraint ${table}_run_id_fkey,
        add constraint ${table}_run_fkey foreign key (workspace_id, run_id)
          references public.task_runs (workspace_id, id) on delete cascade;`,
  );
  await runSql(
    db,
    sql`
    alter table public.task_runs add constraint task_runs_workspace_key unique (workspace_id, id);
    ${sql.raw(journal.join('\n'))}
    -- Its policy asks for the workspace: without it a member's list read the steps of all tenants.
    create index task_step_runs_workspace_idx on public.task_step_runs (workspace_id, created_at);
    alter table public.task_runs
      drop constraint task_runs_retry_of_run_id_fkey,
      add constraint task_runs_retry_of_run_fkey foreign key (workspace_id, retry_of_run_id)
        references public.task_runs (workspace_id, id) on delete set null (retry_of_run_id);
    `,
  );
}

/** What a user owns stays within reach of the agents and sources that use it. */
async function keepOwnedParents(db: Kysely<unknown>): Promise<void> {
  const links: Readonly<Record<string, readonly (readonly [string, string])[]>> = {
    datastores: [
      ['agent_datastores', 'datastore_id'],
      ['knowledge_sources', 'datastore_id'],
    ],
    media_library: [
      ['agent_media_assignments', 'media_id'],
      ['knowledge_sources', 'media_id'],
    ],
    api_connections: [['agent_api_connections', 'api_connection_id']],
    user_integration_credentials: [
      ['agent_integration_permissions', 'connection_id'],
      ['integrations', 'credential_id'],
    ],
  };
  const triggers = Object.entries(links).map(
    ([table, children]) => `
    create trigger zz_check_users
      before update of workspace_id, user_id on public.${table}
      for each row when ((new.workspace_id, new.user_id) is distinct from (old.workspace_id, old.user_id))
      execute function agentd.check_owned_move(${children.flat().map((word) => `'${word}'`)});`,
  );
  await runSql(
    db,
    sql`
    -- The key's own lock, taken before the row is read: whoever moves it waits for us, or we for him.
    ${sql.raw(
      changed(
        changed(CHECK_OWNED_PARENT, 'where id = $1', 'where id = $1 for key share'),
        `where a.id = (given ->> 'agent_id')::uuid;`,
        `where a.id = (given ->> 'agent_id')::uuid for key share;`,
      ),
    )}

    -- For what a user owns. Arguments are pairs "table, column" of the rows that use it: each was allowed to as one of the same workspace
    -- or as one of the same owner, and must still be.
    create function agentd.check_owned_move() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      is_used boolean;
    begin
      -- The user got another id, and that comes by here on its way through all that is his.
      if not exists (select 1 from auth.users u where u.id = old.user_id) then
        return new;
      end if;
      execute format('select true from public.%I where id = $1 for update', tg_table_name) using old.id;
      for i in 0 .. tg_nargs - 2 by 2 loop
        execute format(
          case tg_argv[i]
            when 'integrations' then
              'select exists (
                 select 1 from public.integrations c join public.user_agents u on u.id = c.user_agent_id
                  where c.%2$I = $1 and u.user_id is distinct from $4 and $4 is distinct from $5)'
            when 'knowledge_sources' then
              'select exists (
                 select 1 from public.knowledge_sources c left join public.agents a on a.id = c.agent_id
                  where c.%2$I = $1 and c.workspace_id <> $2 and a.user_id is distinct from $4
                    and (c.workspace_id = $3 or $4 is distinct from $5))'
            else
              'select exists (
                 select 1 from public.%1$I c join public.agents a on a.id = c.agent_id
                  where c.%2$I = $1 and a.workspace_id <> $2 and a.user_id is distinct from $4
                    and (a.workspace_id = $3 or $4 is distinct from $5))'
          end, tg_argv[i], tg_argv[i + 1])
          into is_used
          using old.id, new.workspace_id, old.workspace_id, new.user_id, old.user_id;
        if is_used then
          raise exception '% % is used where its new owner or workspace is not', tg_table_name, old.id
            using errcode = 'insufficient_privilege',
                  hint = format('Delete its rows of %s first.', tg_argv[i]);
        end if;
      end loop;
      return new;
    end
    $$;
    ${sql.raw(triggers.join('\n'))}
    `,
  );
}

/** An agent takes nothing along that its new workspace or owner has no part in. */
async function keepAgents(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create function agentd.check_agent_move() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      held text;
    begin
      if not exists (select 1 from auth.users u where u.id = old.user_id) then
        return new;
      end if;
      perform 1 from public.agents a where a.id = old.id for update;
      select x.name into held
        from (
          select 'agent_datastores' as name
            from public.agent_datastores c join public.datastores p on p.id = c.datastore_id
           where c.agent_id = old.id and p.workspace_id <> new.workspace_id and p.user_id <> new.user_id
          union all
          select 'agent_media_assignments'
            from public.agent_media_assignments c join public.media_library p on p.id = c.media_id
           where c.agent_id = old.id and p.workspace_id <> new.workspace_id and p.user_id <> new.user_id
          union all
          select 'agent_api_connections'
            from public.agent_api_connections c join public.api_connections p on p.id = c.api_connection_id
           where c.agent_id = old.id and p.workspace_id <> new.workspace_id and p.user_id <> new.user_id
          union all
          select 'agent_integration_permissions'
            from public.agent_integration_permissions c
            join public.user_integration_credentials p on p.id = c.connection_id
           where c.agent_id = old.id and p.workspace_id <> new.workspace_id and p.user_id <> new.user_id
          union all
          select 'knowledge_sources'
            from public.knowledge_sources c
            left join public.media_library m on m.id = c.media_id
            left join public.datastores d on d.id = c.datastore_id
           where c.agent_id = old.id
             and (   (m.workspace_id <> new.workspace_id and m.user_id <> new.user_id)
                  or (d.workspace_id <> new.workspace_id and d.user_id <> new.user_id))
          union all
          select 'user_agents'
            from public.user_agents c
           where c.agent_id = old.id and new.workspace_id <> old.workspace_id and not new.is_public
             and c.user_id <> new.user_id
             and not exists (
               select 1 from public.user_roles r where r.user_id = c.user_id and r.workspace_id = new.workspace_id)
          union all
          select 'agent_messages'
            from public.agent_messages c
           where c.agent_id = old.id and c.workspace_id <> new.workspace_id
             and new.workspace_id <> old.workspace_id and not new.is_public
          union all
          select 'agent_logs'
            from public.agent_logs c
           where c.agent_id = old.id and c.workspace_id <> new.workspace_id
             and new.workspace_id <> old.workspace_id and not new.is_public
        ) x
       limit 1;
      if held is not null then
        raise exception 'agent % has rows of % that its new owner or workspace has no part in', old.id, held
          using errcode = 'insufficient_privilege', hint = 'Delete them first, or make a new agent there.';
      end if;
      return new;
    end
    $$;
    -- After guard_agent_owner, by its name: who may not do this at all learns nothing here.
    create trigger zz_check_move
      before update of workspace_id, user_id on public.agents
      for each row when ((new.workspace_id, new.user_id) is distinct from (old.workspace_id, old.user_id))
      execute function agentd.check_agent_move();
    `,
  );
}

/** A server stays with the agent whose connections point at it. */
async function keepServers(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create function agentd.check_mcp_move() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      v_agent uuid;
      v_used  boolean;
    begin
      if tg_table_name = 'mcp_servers' then
        select c.agent_id into v_agent from public.mcp_configurations c where c.id = new.config_id for key share;
        perform 1 from public.mcp_servers s where s.id = old.id for update;
        v_used := exists (
          select 1 from public.agent_mcp_connections n where n.mcp_server_id = old.id and n.agent_id <> v_agent);
      else
        perform 1 from public.mcp_configurations c where c.id = old.id for update;
        v_used := exists (
          select 1
            from public.mcp_servers s
            join public.agent_mcp_connections n on n.mcp_server_id = s.id
           where s.config_id = old.id and n.agent_id <> new.agent_id);
      end if;
      if v_used then
        raise exception '% % is used by connections of its agent', tg_table_name, old.id
          using errcode = 'insufficient_privilege', hint = 'Delete those rows of agent_mcp_connections first.';
      end if;
      return new;
    end
    $$;
    create trigger zz_check_connections
      before update of agent_id on public.mcp_configurations
      for each row when (new.agent_id <> old.agent_id) execute function agentd.check_mcp_move();
    create trigger zz_check_connections
      before update of config_id on public.mcp_servers
      for each row when (new.config_id <> old.config_id) execute function agentd.check_mcp_move();
    `,
  );
}

/** A signed-in user looks at workspaces of his own. It would grant him nothing else, but tell him which ids exist. */
async function keepProfiles(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create function agentd.check_profile_workspace() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if (tg_op = 'INSERT' or new.workspace_id is distinct from old.workspace_id)
         and not agentd.is_service_caller()
         and not exists (
           select 1 from public.user_roles r where r.user_id = new.id and r.workspace_id = new.workspace_id) then
        raise exception 'workspace % does not exist, or user % is no member of it', new.workspace_id, new.id
          using errcode = 'insufficient_privilege';
      end if;
      return new;
    end
    $$;
    create trigger zz_check_workspace
      before insert or update of workspace_id on public.profiles
      for each row when (new.workspace_id is not null) execute function agentd.check_profile_workspace();
    `,
  );
}

/**
 * Every statement of a signed-in user begins with one of these. As PL/pgSQL they keep their plan from one statement to the next; as SQL they
 * were planned each time. Measured with pgbench, a round trip: 0.108 ms before, 0.076 ms after.
 */
async function keepPlans(db: Kysely<unknown>): Promise<void> {
  const planned = (text: string): string =>
    changed(
      changed(
        changed(text, 'language sql', 'language plpgsql'),
        'as $$\n',
        'as $$\n    begin\n      return query\n',
      ),
      '\n    $$;',
      ';\n    end\n    $$;',
    );
  await runSql(db, sql.raw([MY_WORKSPACE_IDS, MY_AGENT_IDS].map(planned).join('\n')));
}

export async function down(db: Kysely<unknown>): Promise<void> {
  const journal = JOURNAL.map(
    (table) => `
      alter table public.${table}
        drop constraint ${table}_run_fkey,
        add constraint ${table}_run_id_fkey foreign key (run_id) references public.task_runs (id) on delete cascade;`,
  );
  await runSql(
    db,
    sql`
    drop trigger zz_check_workspace on public.profiles;
    drop function agentd.check_profile_workspace();
    drop trigger zz_check_connections on public.mcp_servers;
    drop trigger zz_check_connections on public.mcp_configurations;
    drop function agentd.check_mcp_move();
    drop trigger zz_check_move on public.agents;
    drop function agentd.check_agent_move();
    drop trigger zz_check_users on public.user_integration_credentials;
    drop trigger zz_check_users on public.api_connections;
    drop trigger zz_check_users on public.media_library;
    drop trigger zz_check_users on public.datastores;
    drop function agentd.check_owned_move();
    ${sql.raw([CHECK_OWNED_PARENT, MY_WORKSPACE_IDS, MY_AGENT_IDS].join('\n'))}
    drop index public.task_step_runs_workspace_idx;
    alter table public.task_runs
      drop constraint task_runs_retry_of_run_fkey,
      add constraint task_runs_retry_of_run_id_fkey foreign key (retry_of_run_id)
        references public.task_runs (id) on delete set null;
    ${sql.raw(journal.join('\n'))}
    alter table public.task_runs drop constraint task_runs_workspace_key;
    `,
  );
}
