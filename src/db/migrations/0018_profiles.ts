import { type Kysely, sql } from 'kysely';
import { onUserCreated } from './0002_identity.ts';
import { applyAccess } from './access.ts';
import { changed, runSql } from './run-sql.ts';

// Every user has a profile: those who are there already, and whoever signs up.
//
// Applications differ in who makes it. A trigger of theirs on auth.users comes before ours, which then finds the profile there.
// One that inserts it after sign-up must not fail because we were first: its row takes the place of the automatic one, as long
// as nobody has changed that or points at it.

export async function up(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    alter table public.profiles add column is_automatic boolean not null default false;
    comment on column public.profiles.is_automatic is
      'Made at sign-up and changed by nobody yet; an application that inserts the profile itself replaces it.';

    -- The names come from what the user said at sign-up, so they are cut. A table of users may lack the column.
    create function agentd.ensure_profile(p_user_id uuid) returns void
    language sql security definer set search_path = pg_catalog, pg_temp as $$
      insert into public.profiles (id, workspace_id, full_name, avatar_url, is_automatic)
      select u.id,
             (select w.id from public.workspaces w where w.owner_user_id = u.id and w.is_personal),
             left(coalesce(d.said ->> 'full_name', d.said ->> 'name'), 300),
             left(d.said ->> 'avatar_url', 2000),
             true
        from auth.users u
       cross join lateral (select to_jsonb(u) -> 'raw_user_meta_data' as said) d
       where u.id = p_user_id
      on conflict (id) do nothing
    $$;

    create function agentd.replace_automatic_profile() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      reference record;
      is_used   boolean;
      current   uuid;
    begin
      if not exists (select 1 from public.profiles p where p.id = new.id and p.is_automatic) then
        return new;
      end if;
      -- With the old row would go (or stop it) what an application has pointed at it: then the insert fails, as it would have.
      for reference in
        select k.conrelid::regclass as child, a.attname as name
          from pg_catalog.pg_constraint k
          join pg_catalog.pg_attribute a on a.attrelid = k.conrelid and a.attnum = k.conkey[1]
         where k.contype = 'f' and k.confrelid = 'public.profiles'::regclass
      loop
        begin
          execute format('select exists (select 1 from %s c where c.%I = $1)', reference.child, reference.name)
            into is_used
            using new.id;
        exception when insufficient_privilege then
          is_used := true;
        end;
        if is_used then
          return new;
        end if;
      end loop;
      delete from public.profiles p where p.id = new.id and p.is_automatic
        returning p.workspace_id into current;
      new.workspace_id := coalesce(new.workspace_id, current);
      return new;
    end
    $$;
    create trigger replace_automatic_profile
      before insert on public.profiles
      for each row when (not new.is_automatic) execute function agentd.replace_automatic_profile();

    create function agentd.keep_changed_profile() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp as $$
    begin
      new.is_automatic := false;
      return new;
    end
    $$;
    create trigger keep_changed_profile
      before update on public.profiles
      for each row when (old.is_automatic) execute function agentd.keep_changed_profile();

    comment on table agentd.signup_failures is
      'Users for whom no personal workspace or no profile could be made at sign-up. A workspace is made when first needed.';
    ${sql.raw(
      changed(
        onUserCreated.replace('create function', 'create or replace function'),
        /begin\n {6}begin\n[\s\S]*end;\n/,
        `begin
      -- One that fails does not take the other along.
      for i in 1 .. 2 loop
        begin
          if i = 1 then
            perform agentd.ensure_personal_workspace(new.id);
          else
            perform agentd.ensure_profile(new.id);
          end if;
        exception when others then
          begin
            insert into agentd.signup_failures (user_id, error_code, error_message) values (new.id, sqlstate, sqlerrm);
          exception when others then
            raise warning 'agentd: no personal workspace or profile for user %: %', new.id, sqlerrm;
          end;
        end;
      end loop;
`,
      ),
    )}

    select agentd.ensure_profile(u.id) from auth.users u;
    `,
  );
  await applyAccess(db);
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    ${sql.raw(onUserCreated.replace('create function', 'create or replace function'))}
    comment on table agentd.signup_failures is
      'Users for whom no personal workspace could be made at sign-up. It is made when first needed; doctor reports these.';
    drop trigger keep_changed_profile on public.profiles;
    drop function agentd.keep_changed_profile();
    drop trigger replace_automatic_profile on public.profiles;
    drop function agentd.replace_automatic_profile();
    drop function agentd.ensure_profile(uuid);
    alter table public.profiles drop column is_automatic;
    `,
  );
}
