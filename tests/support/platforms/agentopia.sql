-- The tables, enums and functions of document Agentopia as its own application has them on a Supabase project.
create type team_connection_type as enum ('reports_to', 'collaborates_with', 'supports', 'custom');
create type workspace_member_role as enum ('member', 'owner');
create type message_type as enum ('text', 'system');
create type provider_type as enum ('oauth', 'api_key', 'smtp');
create type credential_type as enum ('oauth', 'api_key');
create type account_tool_installation_status_enum as enum ('pending', 'active', 'error');
create type datastore_type as enum ('pinecone', 'getzep');
create type processing_status as enum ('uploaded', 'processing', 'completed', 'failed');
create type assignment_type as enum ('training', 'reference', 'context');
create type processing_log_status as enum ('started', 'completed', 'failed');
create type task_type as enum ('scheduled', 'event_based');
create type task_status as enum ('active', 'paused', 'completed', 'failed');
create type task_step_status as enum ('pending', 'running', 'completed', 'failed');

create table profiles (
  id uuid primary key references auth.users (id), full_name text, avatar_url text, created_at timestamptz default now(),
  updated_at timestamptz default now()
);
create table user_preferences (
  user_id uuid primary key references auth.users (id), theme text default 'light', timezone text default 'UTC',
  notification_settings jsonb, ui_preferences jsonb
);
create table agents (
  id uuid primary key default gen_random_uuid(), user_id uuid references auth.users (id), name text, instructions text, avatar_url text,
  is_active boolean, context_window_size integer default 4000, max_tokens integer default 1000, created_at timestamptz default now(),
  updated_at timestamptz default now()
);
create table teams (
  id uuid primary key default gen_random_uuid(), name text, description text, owner_user_id uuid references auth.users (id),
  created_at timestamptz default now(), updated_at timestamptz default now()
);
create table team_members (
  id uuid primary key default gen_random_uuid(), team_id uuid references teams (id), agent_id uuid references agents (id),
  team_role text default 'member', reports_to_user boolean default false, created_at timestamptz default now()
);
create table workspaces (
  id uuid primary key default gen_random_uuid(), name text, description text, owner_user_id uuid references auth.users (id),
  is_public boolean default false, settings jsonb, created_at timestamptz default now(), updated_at timestamptz default now()
);
create table team_canvas_layouts (
  id uuid primary key default gen_random_uuid(), user_id uuid references auth.users (id), workspace_id uuid references workspaces (id),
  positions jsonb, connections jsonb, view_settings jsonb, created_at timestamptz default now(), updated_at timestamptz default now()
);
create table team_connections (
  id uuid primary key default gen_random_uuid(), from_team_id uuid references teams (id), to_team_id uuid references teams (id),
  connection_type team_connection_type, label text, color text, style text, created_by_user_id uuid references auth.users (id)
);
create table workspace_members (
  id uuid primary key default gen_random_uuid(), workspace_id uuid references workspaces (id), user_id uuid references auth.users (id),
  agent_id uuid references agents (id), team_id uuid references teams (id), role workspace_member_role default 'member',
  joined_at timestamptz default now()
);
create table chat_channels (
  id uuid primary key default gen_random_uuid(), workspace_id uuid references workspaces (id), name text, description text,
  is_public boolean default true, created_by_user_id uuid references auth.users (id), created_at timestamptz default now()
);
create table chat_messages (
  id uuid primary key default gen_random_uuid(), channel_id uuid references chat_channels (id), user_id uuid references auth.users (id),
  agent_id uuid references agents (id), content text, message_type message_type default 'text', metadata jsonb,
  created_at timestamptz default now()
);
create table service_providers (
  id uuid primary key default gen_random_uuid(), name text, display_name text, provider_type provider_type,
  authorization_endpoint text, token_endpoint text, scopes_supported jsonb, configuration_metadata jsonb, is_active boolean default true
);
create table user_integration_credentials (
  id uuid primary key default gen_random_uuid(), user_id uuid references auth.users (id),
  service_provider_id uuid references service_providers (id), credential_type credential_type, vault_access_token_id text,
  vault_refresh_token_id text, encrypted_access_token text, encrypted_refresh_token text, connection_name text,
  connection_status text default 'active', connection_metadata jsonb, scopes_granted jsonb, token_expires_at timestamptz,
  created_at timestamptz default now()
);
create table integration_capabilities (
  id uuid primary key default gen_random_uuid(), integration_id uuid references service_providers (id), capability_key text,
  display_label text, display_order integer, created_at timestamptz default now(), updated_at timestamptz default now()
);
create table agent_integration_permissions (
  id uuid primary key default gen_random_uuid(), agent_id uuid references agents (id),
  connection_id uuid references user_integration_credentials (id), allowed_scopes jsonb, permission_level text default 'custom',
  is_active boolean default true, created_at timestamptz default now()
);
create table agent_mcp_connections (
  id uuid primary key default gen_random_uuid(), agent_id uuid references agents (id), connection_name text, server_url text,
  is_active boolean default true, created_at timestamptz default now(), updated_at timestamptz default now()
);
create table mcp_tools_cache (
  id uuid primary key default gen_random_uuid(), connection_id uuid references agent_mcp_connections (id), tool_name text,
  tool_schema jsonb, openai_schema jsonb, last_updated timestamptz, created_at timestamptz default now()
);
create table tool_catalog (
  id uuid primary key default gen_random_uuid(), name text, display_name text, description text, category text, docker_image text,
  default_config jsonb, resource_requirements jsonb, is_active boolean default true
);
create table account_tool_environments (
  id uuid primary key default gen_random_uuid(), user_id uuid references auth.users (id), environment_name text default 'default',
  do_droplet_id bigint, do_droplet_name text, region_slug text not null default 'nyc3', size_slug text not null default 's-1vcpu-1gb',
  image_slug text not null default 'ubuntu-22-04-x64', status_on_toolbox account_tool_installation_status_enum,
  created_at timestamptz default now(), updated_at timestamptz default now()
);
create table datastores (
  id uuid primary key default gen_random_uuid(), name text, type datastore_type, config jsonb,
  created_by_user_id uuid references auth.users (id), created_at timestamptz default now()
);
create table agent_datastores (agent_id uuid references agents (id), datastore_id uuid references datastores (id), is_active boolean default true);
create table media_library (
  id uuid primary key default gen_random_uuid(), user_id uuid references auth.users (id), file_name text, display_name text,
  file_type text, file_size bigint, storage_path text, bucket text default 'media-library', category text, description text,
  tags text[], processing_status processing_status, assigned_agents_count integer default 0, chunk_count integer default 0,
  file_url text, is_archived boolean default false, created_at timestamptz default now(), updated_at timestamptz default now()
);
create table agent_media_assignments (
  id uuid primary key default gen_random_uuid(), agent_id uuid references agents (id), media_id uuid references media_library (id),
  assignment_type assignment_type, assigned_by_user_id uuid references auth.users (id), created_at timestamptz default now()
);
create table media_processing_logs (
  id uuid primary key default gen_random_uuid(), media_id uuid references media_library (id), processing_step text,
  status processing_log_status, details jsonb, created_at timestamptz default now()
);
create table agent_tasks (
  id uuid primary key default gen_random_uuid(), user_id uuid references auth.users (id), agent_id uuid references agents (id), name text,
  description text, task_type task_type default 'scheduled', status task_status default 'active', instructions text,
  is_multi_step boolean default false, step_count integer default 1, cron_expression text, timezone text default 'UTC',
  next_run_at timestamptz, start_date date, end_date date, max_executions integer, total_executions integer default 0,
  target_conversation_id uuid, created_at timestamptz default now(), updated_at timestamptz default now()
);
create table task_steps (
  id uuid primary key default gen_random_uuid(), task_id uuid references agent_tasks (id), step_order integer, step_name text,
  instructions text, include_previous_context boolean default false, status task_step_status default 'pending',
  execution_result jsonb, execution_started_at timestamptz, execution_completed_at timestamptz, execution_duration_ms integer,
  error_message text, retry_count integer default 0, created_at timestamptz default now(), updated_at timestamptz default now()
);

create index idx_agents_user_id on agents (user_id);
create index idx_chat_messages_channel_id on chat_messages (channel_id);
create index idx_user_integration_credentials_user_id on user_integration_credentials (user_id);
create index idx_agent_tasks_next_run_at on agent_tasks (next_run_at) where status = 'active';
create index idx_workspace_members_composite on workspace_members (workspace_id, user_id, agent_id);
create index idx_agent_permissions_composite on agent_integration_permissions (agent_id, is_active);

create function create_vault_secret(p_secret text, p_name text, p_description text) returns text language sql security definer as $$
  select vault.create_secret(p_secret, p_name, p_description)::text
$$;
create function vault_decrypt(vault_id text) returns text language sql security definer as $$
  select decrypted_secret from vault.decrypted_secrets where id = vault_id::uuid
$$;
create function create_task_step(p_task_id uuid, p_step_order integer, p_step_name text, p_instructions text) returns uuid language sql as $$
  insert into task_steps (task_id, step_order, step_name, instructions) values ($1, $2, $3, $4) returning id
$$;
create function delete_task_step(p_step_id uuid) returns void language sql as 'delete from task_steps where id = p_step_id';
create function revoke_agent_integration_permission(p_permission_id uuid) returns void language sql as $$
  delete from agent_integration_permissions where id = p_permission_id
$$;

alter table agents enable row level security;
create policy "Users can view their own agents" on agents for select using (auth.uid() = user_id);
