/**
 * What a tenant with SQL of his own could still do to others.
 *
 * Locks of agentd's are rows that he can't reach; a user goes whoever has named him in what; whoever was made a member may leave; what
 * is notified tells nothing of anybody's rows; and a guard asks who makes a statement, not how deep in triggers it is made.
 *
 * A list of a workspace's newest rows reads the index in its order: see weightPolicies.
 *
 * Policies come from access-rules.ts and the documents' views from src/db/compatibility/, in an earlier migration on a new database and
 * here on an older one; `down` leaves them.
 */
import { type Kysely, sql } from 'kysely';
import { remakeDocumentViews } from '../compatibility/schemas.ts';
import { applyAccess } from './access.ts';
import { tableRules, weighted } from './access-rules.ts';
import { DROP_LOCKS, LOCK_FUNCTIONS, LOCK_PIECES, LOCK_TABLES, type Piece } from './door-locks.ts';
import { changed, runSql } from './run-sql.ts';

/** Pieces of functions that are not about locks. */
const PIECES: readonly Piece[] = [
  // Anybody may listen: that there is something to look at is all that is said.
  [
    'notify_run',
    `pg_notify('agentd_runs', json_build_object(
        'run_id', run_id, 'workspace_id', workspace_id, 'task_id', task_id,
        'status', status, 'reason_code', reason_code)::text)`,
    `pg_notify('agentd_runs', '')`,
  ],
  ['close_run', `pg_notify('agentd_cancel', new.id::text)`, `pg_notify('agentd_cancel', '')`],
  // Somebody may have taken the slug when that was still possible.
  [
    'ensure_personal_workspace',
    `values ('Personal', 'personal-' || p_user_id, p_user_id, true)`,
    `values ('Personal', 'personal-' || p_user_id || case
                  when exists (select 1 from public.workspaces w where w.slug = 'personal-' || p_user_id)
                  then '-' || left(replace(gen_random_uuid()::text, '-', ''), 8) else '' end, p_user_id, true)`,
  ],
  // A table of users that is another's need not have more than an id and an address.
  [
    'system_user_id',
    `        insert into auth.users (id, email, raw_app_meta_data, raw_user_meta_data)
        values (system_id, 'system@agentd.invalid', '{"agentd": "system"}', '{}')
        on conflict do nothing;
`,
    `        if (select count(*) from pg_attribute a
             where a.attrelid = 'auth.users'::regclass and a.attname in ('raw_app_meta_data', 'raw_user_meta_data')) = 2 then
          insert into auth.users (id, email, raw_app_meta_data, raw_user_meta_data)
          values (system_id, 'system@agentd.invalid', '{"agentd": "system"}', '{}')
          on conflict do nothing;
        else
          insert into auth.users (id, email) values (system_id, 'system@agentd.invalid') on conflict do nothing;
        end if;
`,
  ],
  [
    'on_user_deleted',
    `      delete from public.workspaces w where w.owner_user_id = old.id and w.is_personal;
`,
    `      perform agentd.release_workspaces(old.id);
`,
  ],
];

/** What checking a policy is said to cost: as a hundred comparisons, so that lists of fifty are read from tables of a few megabytes. */
const WEIGHT = 200;

const RULES = Object.entries(tableRules).filter(([, rule]) => weighted(rule.select) !== rule.select);

/** Tables whose rules for deleting have changed: who is named in a row may take himself out. */
const LEFT = ['workspace_members', 'user_team_memberships', 'chat_room_members'];

export async function up(db: Kysely<unknown>): Promise<void> {
  await runSql(db, sql.raw(LOCK_TABLES + LOCK_FUNCTIONS));
  await releaseUsers(db);
  await askWhoStates(db);
  await guardConversations(db);
  for (const piece of [...LOCK_PIECES, ...PIECES]) await replacePiece(db, piece);
  await weightPolicies(db);
  await runSql(
    db,
    sql.raw(
      LEFT.map(
        (table) => `alter policy ${table}_delete on public.${table} using (${tableRules[table]?.delete});`,
      ).join('\n'),
    ),
  );
  await applyAccess(db);
  await remakeDocumentViews(db, [
    'agent_platform.agent_messages',
    'agent_platform.agent_feedback',
    'agentexpress.users',
  ]);
}

/** Says a function anew with a piece of it changed, however else it reads by now. */
async function replacePiece(db: Kysely<unknown>, [name, was, is]: Piece): Promise<void> {
  const found = await sql<{ text: string }>`
    select pg_catalog.pg_get_functiondef(p.oid) as text
      from pg_catalog.pg_proc p
     where p.pronamespace = 'agentd'::regnamespace and p.proname = ${sql.lit(name)}`.execute(db);
  if (found.rows.length !== 1) throw new Error(`There are ${found.rows.length} functions agentd.${name}.`);
  await runSql(db, sql.raw(`${changed(found.rows[0]?.text ?? '', was, is)};`));
}

/**
 * A workspace goes to who is next in it when its owner is deleted, and with him if nobody else is there. Two foreign keys without this
 * made a user undeletable, and anybody could point them at him.
 */
async function releaseUsers(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- Viewers and members inherit nothing: a workspace that only they use is the system's, and theirs to use as before.
    create function agentd.release_workspaces(p_user_id uuid) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
    declare
      v_workspace record;
    begin
      delete from public.workspaces w
       where w.owner_user_id = p_user_id
         and not exists (select 1 from public.user_roles r where r.workspace_id = w.id and r.user_id <> p_user_id);
      for v_workspace in
        select w.id,
               (select r.user_id from public.user_roles r
                 where r.workspace_id = w.id and r.user_id <> p_user_id and r.role >= 'MANAGER'
                 order by r.role desc, r.created_at, r.user_id limit 1) as heir
          from public.workspaces w
         where w.owner_user_id = p_user_id
      loop
        update public.workspaces
           set owner_user_id = coalesce(v_workspace.heir, agentd.system_user_id()), is_personal = false
         where id = v_workspace.id;
      end loop;
      update public.teams t set owner_user_id = w.owner_user_id
        from public.workspaces w
       where w.id = t.workspace_id and t.owner_user_id = p_user_id;
    end
    $$;
    `,
  );
}

/**
 * A statement of a function of ours is made as the owner of our tables. How deep in triggers it is says nothing: a temporary table may
 * have a trigger of anybody's.
 */
async function askWhoStates(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create function agentd.is_own_statement() returns boolean
    language sql stable set search_path = pg_catalog, pg_temp as $$
      select pg_has_role(current_user, (select c.relowner from pg_class c where c.oid = 'public.workspaces'::regclass), 'USAGE')
    $$;
    drop trigger a_guard_ingestion on public.knowledge_sources;
    create trigger a_guard_ingestion before insert or update on public.knowledge_sources
      for each row when (not agentd.is_own_statement()) execute function agentd.guard_ingestion();
    drop trigger zz_guard_workspace_insert on public.workspaces;
    create trigger zz_guard_workspace_insert before insert on public.workspaces
      for each row when (new.is_personal and not agentd.is_own_statement()) execute function agentd.guard_workspace();
    drop trigger zz_guard_workspace_update on public.workspaces;
    create trigger zz_guard_workspace_update before update of is_personal, owner_user_id on public.workspaces
      for each row when (not agentd.is_own_statement()) execute function agentd.guard_workspace();

    -- Nobody takes the slug of another's personal workspace or of one that is erased but for its bills, or lets another's insert wait for a
    -- slug that a name is made into. One that looks like an id may be anybody's name ("cafe24"): whoever types it is asked which he means.
    create function agentd.guard_slug() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if new.slug ~ '^(personal|erased)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' and not agentd.is_service_caller()
         and not (new.is_personal and new.slug = 'personal-' || new.owner_user_id) then
        raise exception 'the slug % is for % workspace', new.slug, case when new.slug like 'personal-%' then 'a personal' else 'an erased' end
          using errcode = 'insufficient_privilege', hint = 'Choose another slug, or leave it out.';
      end if;
      perform agentd.try_lock('slug:' || (hashtextextended(new.slug, 0) & 255));
      return new;
    end
    $$;
    create trigger zz_guard_slug before insert or update of slug on public.workspaces
      for each row when (not agentd.is_own_statement()) execute function agentd.guard_slug();
    `,
  );
}

/** An id of a channel names that channel, also where a task says it as its conversation's: nobody else makes a conversation of it. */
async function guardConversations(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create function agentd.guard_conversation_id() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if exists (select 1 from public.chat_channels c where c.id = new.id and c.workspace_id <> new.workspace_id) then
        -- as for any id that is taken
        raise exception 'duplicate key value violates unique constraint "conversations_pkey"'
          using errcode = 'unique_violation', table = 'conversations', constraint = 'conversations_pkey';
      end if;
      return new;
    end
    $$;
    create trigger zz_guard_id before insert or update of id, workspace_id on public.conversations
      for each row execute function agentd.guard_conversation_id();
    `,
  );
}

/**
 * A policy's condition on the workspace stands beside the asker's own, and the planner multiplies the two: it expects a fiftieth of the
 * rows, too few for a limit to matter, and would rather read them all and sort them. So it is told that the condition is dear to check,
 * which it is in a heap and not in an index: then it takes the index in its order.
 */
async function weightPolicies(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create function agentd.no_workspaces() returns uuid[]
    language sql stable cost ${sql.raw(String(WEIGHT))} set search_path = pg_catalog, pg_temp as $$ select '{}'::uuid[] $$;
    comment on function agentd.no_workspaces() is
      'Stands in policies where it is never called, for what the planner thinks that it would cost.';
    ${sql.raw(RULES.map(([table, rule]) => `alter policy ${table}_select on public.${table} using (${weighted(rule.select)});`).join('\n'))}
    `,
  );
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    ${sql.raw(RULES.map(([table, rule]) => `alter policy ${table}_select on public.${table} using (${rule.select});`).join('\n'))}
    drop function agentd.no_workspaces();

    drop trigger zz_guard_id on public.conversations;
    drop function agentd.guard_conversation_id();
    drop trigger zz_guard_slug on public.workspaces;
    drop function agentd.guard_slug();
    drop trigger zz_guard_workspace_update on public.workspaces;
    create trigger zz_guard_workspace_update before update of is_personal, owner_user_id on public.workspaces
      for each row execute function agentd.guard_workspace();
    drop trigger zz_guard_workspace_insert on public.workspaces;
    create trigger zz_guard_workspace_insert before insert on public.workspaces
      for each row when (new.is_personal and pg_trigger_depth() = 0) execute function agentd.guard_workspace();
    drop trigger a_guard_ingestion on public.knowledge_sources;
    create trigger a_guard_ingestion before insert or update on public.knowledge_sources
      for each row when (pg_trigger_depth() = 0) execute function agentd.guard_ingestion();
    drop function agentd.is_own_statement();
    `,
  );
  for (const [name, was, is] of [...LOCK_PIECES, ...PIECES].toReversed())
    await replacePiece(db, [name, is, was]);
  await runSql(db, sql.raw(`drop function agentd.release_workspaces(uuid);${DROP_LOCKS}`));
}
