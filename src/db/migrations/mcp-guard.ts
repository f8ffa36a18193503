/** What of a connection is the worker's to say, and what happens to its secrets when somebody else points it elsewhere. */

export const GUARD_MCP_CONNECTION = `create function agentd.guard_mcp_connection() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if agentd.is_service_caller() then
    return new;
  end if;
  if tg_op = 'INSERT' then
    new.reason_code := null;
    new.reason := null;
    new.refresh_failures := 0;
    new.last_refreshed_at := null;
    new.next_refresh_at := null;
    new.server_info := null;
    new.tools_listed := null;
    new.tools_usable := null;
  else
    new.reason_code := old.reason_code;
    new.reason := old.reason;
    new.refresh_failures := old.refresh_failures;
    new.last_refreshed_at := old.last_refreshed_at;
    new.next_refresh_at := old.next_refresh_at;
    new.server_info := old.server_info;
    new.tools_listed := old.tools_listed;
    new.tools_usable := old.tools_usable;
    -- A secret that he can't read would be sent to a server of his choice: another origin, or another way of sending it, needs it anew.
    if substring(lower(new.server_url) from '^[a-z]+://[^/?#]*') is distinct from substring(lower(old.server_url) from '^[a-z]+://[^/?#]*')
       or new.agent_id is distinct from old.agent_id then
      if new.auth_secret is not distinct from old.auth_secret then
        new.auth_secret := null;
      end if;
      if new.credential_id is not distinct from old.credential_id
         and not exists (select 1 from public.user_integration_credentials k
                          where k.id = new.credential_id and k.user_id = public.current_user_id()) then
        new.credential_id := null;
      end if;
    end if;
  end if;
  if new.credential_id is not null and (tg_op = 'INSERT' or new.credential_id is distinct from old.credential_id)
     and not exists (select 1 from public.user_integration_credentials k
                      where k.id = new.credential_id and k.user_id = public.current_user_id()) then
    raise exception 'credential % is not yours', new.credential_id using errcode = 'insufficient_privilege';
  end if;
  return new;
end
$$;`;
