/** Views that no rule makes. Each is asked for by the name of its view. */

const CHAT_ROOM_MEMBERS = `
create view agentopia_diagram.chat_room_members with (security_invoker = true) as
  select t.id, t.room_id, t.member_type, t.member_id, t.added_at from public.chat_room_members t;
alter view agentopia_diagram.chat_room_members alter column id set default gen_random_uuid();
alter view agentopia_diagram.chat_room_members alter column added_at set default now();

create function agentd.write_agentopia_diagram_chat_room_members() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if tg_op = 'DELETE' then
    delete from public.chat_room_members t where t.id = old.id;
    return case when found then old end;
  end if;
  if new.member_type is null or new.member_type not in ('user', 'agent', 'team') then
    raise exception 'member_type is %, not user, agent or team', coalesce(new.member_type, 'null') using errcode = 'check_violation';
  end if;
  if tg_op = 'INSERT' then
    insert into public.chat_room_members (id, room_id, user_id, agent_id, team_id, added_at)
    values (new.id, new.room_id,
            case when new.member_type = 'user' then new.member_id end,
            case when new.member_type = 'agent' then new.member_id end,
            case when new.member_type = 'team' then new.member_id end,
            new.added_at);
    return new;
  end if;
  update public.chat_room_members t
     set room_id = new.room_id,
         user_id = case when new.member_type = 'user' then new.member_id end,
         agent_id = case when new.member_type = 'agent' then new.member_id end,
         team_id = case when new.member_type = 'team' then new.member_id end,
         added_at = new.added_at
   where t.id = old.id;
  return case when found then new end;
end
$$;
create trigger write_row instead of insert or update or delete on agentopia_diagram.chat_room_members
  for each row execute function agentd.write_agentopia_diagram_chat_room_members();`;

/** Authorization reads user_roles; who may change it is decided on workspace_members, of which it is the mirror. */
const USER_ROLES = `
create view agentcenter.user_roles with (security_invoker = true) as
  select t.id, t.user_id, t.workspace_id, t.role, t.created_at from public.user_roles t where t.workspace_id is not null;

create function agentd.write_agentcenter_user_roles() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_role agentcenter.user_roles;
begin
  if tg_op <> 'DELETE' and new.role is null then
    raise exception 'a role is OWNER, MANAGER or VIEWER, not null' using errcode = 'not_null_violation';
  end if;
  if tg_op = 'INSERT' then
    if not agentd.is_service_caller() and not exists (
      select 1 from agentd.my_workspace_ids('OWNER') as mine (id) where mine.id = new.workspace_id
    ) then
      raise exception 'only an OWNER of workspace % gives roles in it', new.workspace_id
        using errcode = 'insufficient_privilege', hint = 'Ask an owner, or let the platform (service_role) write the role.';
    end if;
    insert into public.workspace_members (workspace_id, user_id, role)
    values (new.workspace_id, new.user_id, lower(new.role::text)::public.workspace_member_role);
  elsif tg_op = 'UPDATE' then
    if (new.user_id, new.workspace_id, new.id) is distinct from (old.user_id, old.workspace_id, old.id) then
      raise exception 'the user and the workspace of a role cannot be changed'
        using errcode = 'feature_not_supported', hint = 'Delete the role and insert another.';
    end if;
    update public.workspace_members m set role = lower(new.role::text)::public.workspace_member_role
     where m.workspace_id = old.workspace_id and m.user_id = old.user_id;
    if not found then
      return null;
    end if;
  else
    delete from public.workspace_members m where m.workspace_id = old.workspace_id and m.user_id = old.user_id;
    return case when found then old end;
  end if;
  select r.* into v_role from agentcenter.user_roles r where r.workspace_id = new.workspace_id and r.user_id = new.user_id;
  return case when found then v_role else new end;
end
$$;
create trigger write_row instead of insert or update or delete on agentcenter.user_roles
  for each row execute function agentd.write_agentcenter_user_roles();`;

/**
 * Runs as its owner, since nobody signed in may read auth.users: the condition is what limits it. With security_barrier no function of
 * the asker's sees a row before the condition has.
 */
const USERS = `
-- Whether passwords are the application's own, and the asker may see them.
create function agentd.has_own_users() returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select agentd.is_service_caller()
     and exists (select 1 from agentd.platform_objects o where o.kind = 'table' and o.name = 'auth.users')
$$;

create view agentexpress.users with (security_barrier = true) as
  select u.id, u.email::text as email, case when (select agentd.has_own_users()) then to_jsonb(u) ->> 'encrypted_password' end as password,
         p.first_name, p.last_name, p.avatar_url,
         coalesce((select string_agg(r.name, ',' order by r.name)
                     from public.user_roles ur join public.roles r on r.id = ur.role_id where ur.user_id = u.id), 'user') as role,
         (to_jsonb(u) ->> 'created_at')::timestamptz as created_at,
         greatest((to_jsonb(u) ->> 'updated_at')::timestamptz, p.updated_at) as updated_at
    from auth.users u
    left join public.profiles p on p.id = u.id
   where (select agentd.is_service_caller()) or u.id = (select public.current_user_id());

create function agentd.write_agentexpress_users() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_is_service constant boolean := agentd.is_service_caller();
  v_user agentexpress.users;
begin
  if not v_is_service and (tg_op <> 'UPDATE' or old.id is distinct from public.current_user_id()) then
    raise exception 'users are made and deleted by the platform' using errcode = 'insufficient_privilege';
  end if;
  if not agentd.has_own_users() and (tg_op <> 'UPDATE'
       or (new.id, new.email, new.password) is distinct from (old.id, old.email, old.password)) then
    raise exception 'users, their addresses and passwords belong to the sign-in service' using errcode = 'insufficient_privilege',
      hint = 'Make, change and delete users where they sign in (Supabase Auth).';
  end if;
  -- What refers to him would not follow, or all of it in one statement.
  if tg_op = 'UPDATE' and new.id is distinct from old.id then
    raise exception 'the id of a user cannot be changed' using errcode = 'feature_not_supported',
      hint = 'Make another user.';
  end if;
  if tg_op = 'UPDATE' and new.role is null then
    raise exception 'a user has a role: it cannot be null' using errcode = 'not_null_violation';
  end if;
  if tg_op = 'DELETE' then
    delete from auth.users u where u.id = old.id;
    return case when found then old end;
  end if;
  if tg_op = 'INSERT' then
    new.id := coalesce(new.id, gen_random_uuid());
    insert into auth.users (id, email, encrypted_password, created_at)
    values (new.id, new.email, new.password, coalesce(new.created_at, now()));
  elsif v_is_service and (new.email, new.password) is distinct from (old.email, old.password) then
    -- What the statement leaves as it was is not written: it may have changed since.
    update auth.users u
       set email = case when new.email is distinct from old.email then new.email else u.email end,
           encrypted_password = case when new.password is distinct from old.password then new.password else u.encrypted_password end,
           updated_at = now()
     where u.id = old.id;
  end if;
  insert into public.profiles as p (id, first_name, last_name, full_name, avatar_url)
  values (new.id, new.first_name, new.last_name, nullif(concat_ws(' ', new.first_name, new.last_name), ''), new.avatar_url)
  on conflict (id) do update
     set first_name = case when new.first_name is distinct from old.first_name then new.first_name else p.first_name end,
         last_name = case when new.last_name is distinct from old.last_name then new.last_name else p.last_name end,
         avatar_url = case when new.avatar_url is distinct from old.avatar_url then new.avatar_url else p.avatar_url end,
         full_name = case when (new.first_name, new.last_name) is not distinct from (old.first_name, old.last_name) then p.full_name
                          else nullif(concat_ws(' ',
                            case when new.first_name is distinct from old.first_name then new.first_name else p.first_name end,
                            case when new.last_name is distinct from old.last_name then new.last_name else p.last_name end), '') end;
  if new.role is not null and (tg_op = 'INSERT' or new.role is distinct from old.role) then
    if not v_is_service then
      raise exception 'no user changes his own role' using errcode = 'insufficient_privilege';
    end if;
    insert into public.roles (name) values (new.role) on conflict (name) do nothing;
    delete from public.user_roles ur where ur.user_id = new.id and ur.role_id is not null;
    insert into public.user_roles (user_id, role_id) select new.id, r.id from public.roles r where r.name = new.role;
  end if;
  select u.* into v_user from agentexpress.users u where u.id = new.id;
  return case when found then v_user else new end;
end
$$;
create trigger write_row instead of insert or update or delete on agentexpress.users
  for each row execute function agentd.write_agentexpress_users();`;

/** The SQL of a view that is written by hand. */
export function handWritten(view: string): string {
  if (view === 'agentopia_diagram.chat_room_members') return CHAT_ROOM_MEMBERS;
  if (view === 'agentcenter.user_roles') return USER_ROLES;
  if (view === 'agentexpress.users') return USERS;
  throw new Error(`The view ${view} is not written.`);
}
