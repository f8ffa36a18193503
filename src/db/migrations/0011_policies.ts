import { type Kysely, sql } from 'kysely';
import { applyAccess, changeOwner, names, ourPublicFunction, tables } from './access.ts';
import { runSql } from './run-sql.ts';

// Row security, grants and ownership of everything that the earlier migrations made.

export async function up(db: Kysely<unknown>): Promise<void> {
  await applyAccess(db);
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await changeOwner(
    db,
    'current_user',
    `exists (
       select 1 from pg_catalog.pg_class c
        where c.oid = 'public.workspaces'::regclass and c.relowner = 'agentd_owner'::regrole
     )`,
  );
  await runSql(
    db,
    sql`
    do $$
    declare
      t record;
      made record;
      f regprocedure;
    begin
      for t in
        select c.oid, c.oid::regclass as name, c.relname::text as relname, c.relkind
          from pg_catalog.pg_class c
         where c.relkind in ('r', 'p', 'v', 'm')
           and not c.relispartition
           and (   c.relnamespace = 'agentd'::regnamespace
                or (c.relnamespace = 'public'::regnamespace and c.relname = any (${names(tables)})))
      loop
        -- An application may have added policies of its own; they stay.
        for made in
          select polname
            from pg_catalog.pg_policy
           where polrelid = t.oid
             and (polname = 'agentd_worker_all'
                  or polname = any (array[t.relname || '_select', t.relname || '_insert', t.relname || '_update', t.relname || '_delete']))
        loop
          execute format('drop policy %I on %s', made.polname, t.name);
        end loop;
        if t.relkind in ('r', 'p') then
          execute format('alter table %s disable row level security', t.name);
        end if;
        execute format('revoke all on %s from authenticated, service_role, agentd_worker', t.name);
      end loop;

      for f in
        select x.oid::regprocedure
          from pg_catalog.pg_proc x
         where x.pronamespace = 'agentd'::regnamespace
            or (x.pronamespace = 'public'::regnamespace
                and x.oid in (select p.oid from pg_catalog.pg_proc p where ${ourPublicFunction}))
      loop
        execute format('revoke all on function %s from authenticated, service_role, agentd_worker', f);
        execute format('grant execute on function %s to public', f);
      end loop;
    end
    $$;

    revoke all on all sequences in schema agentd from service_role, agentd_worker;
    revoke all on schema agentd from authenticated, service_role, agentd_worker, agentd_owner;
    -- What other roles need of schemas public and auth is left: on a Supabase project they had it before.
    -- By itself: a member of the owner passes SELECT on for himself if he may, and all the rest for the owner.
    revoke select on auth.users from agentd_worker, agentd_owner;
    revoke all on auth.users from agentd_worker, agentd_owner;
    revoke usage on schema auth from agentd_worker, agentd_owner;
    revoke usage, create on schema public from agentd_worker, agentd_owner;

    do $$
    begin
      execute (
        select format('revoke usage on schema %I from agentd_worker, agentd_owner', n.nspname)
          from pg_catalog.pg_extension e
          join pg_catalog.pg_namespace n on n.oid = e.extnamespace
         where e.extname = 'vector'
      );
    end
    $$;
    `,
  );
}
