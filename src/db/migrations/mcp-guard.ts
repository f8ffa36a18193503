/** What of a connection is the worker's to say, and what happens to its secrets when somebody else points it elsewhere. */

export const GUARD_MCP_CONNECTION = `
-- What stands before a URL's path, to compare it with another's; of what is none, all of it.
create function agentd.url_origin(p_url text) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select coalesce(substring(lower(p_url) from '^[a-z]+://[^/?#]*'), p_url)
$$;

create function agentd.guard_mcp_connection() returns trigger
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
    -- A secret that he can't read would be sent to a server of his choice: another origin needs it anew.
    if agentd.url_origin(new.server_url) is distinct from agentd.url_origin(old.server_url) or new.agent_id is distinct from old.agent_id then
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
$$;

-- The key of a server is another's secret too. Who may write the row may not read it.
create function agentd.guard_mcp_server() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if not agentd.is_service_caller() and new.vault_api_key_id is not distinct from old.vault_api_key_id
     and (agentd.url_origin(new.endpoint_url), new.config_id) is distinct from (agentd.url_origin(old.endpoint_url), old.config_id) then
    new.vault_api_key_id := null;
  end if;
  return new;
end
$$;`;
