-- The tables of document Agentopia, schema diagram, as its own application has them on a Supabase project.
create table user_profiles (
  id uuid primary key references auth.users (id), username text, full_name text, avatar_url text, updated_at timestamptz
);
create table roles (id uuid primary key default gen_random_uuid(), name text unique, description text, created_at timestamptz default now());
create table user_roles (
  user_id uuid references auth.users (id), role_id uuid references roles (id), created_at timestamptz default now(),
  primary key (user_id, role_id)
);
create table teams (
  id uuid primary key default gen_random_uuid(), name text not null, description text, owner_user_id uuid references auth.users (id),
  created_at timestamptz default now(), updated_at timestamptz default now()
);
create table agents (
  id uuid primary key default gen_random_uuid(), user_id uuid references auth.users (id), name text, description text,
  system_instructions text, assistant_instructions text, discord_channel text, discord_bot_key text, discord_bot_token_id text,
  discord_user_id text, active boolean default false, created_at timestamptz default now(), updated_at timestamptz default now()
);
create table team_members (
  id uuid primary key default gen_random_uuid(), team_id uuid not null references teams (id), agent_id uuid not null references agents (id),
  team_role text, team_role_description text, reports_to_agent_id uuid references agents (id), joined_at timestamptz default now()
);
create table user_team_memberships (
  id uuid primary key default gen_random_uuid(), user_id uuid not null references auth.users (id),
  team_id uuid not null references teams (id), joined_at timestamptz not null default now()
);
create table agent_discord_connections (
  id uuid primary key default gen_random_uuid(), agent_id uuid references agents (id), guild_id text not null, is_enabled boolean,
  discord_app_id text, discord_public_key text, inactivity_timeout_ms integer, worker_status text, created_at timestamptz default now()
);
create table datastores (
  id uuid primary key default gen_random_uuid(), user_id uuid references auth.users (id), name text, description text, type text,
  config jsonb, similarity_metric text, similarity_threshold float4, max_results integer, created_at timestamptz default now(),
  updated_at timestamptz default now()
);
create table agent_datastores (
  id uuid primary key default gen_random_uuid(), agent_id uuid references agents (id), datastore_id uuid references datastores (id),
  created_at timestamptz default now()
);
create table chat_rooms (
  id uuid primary key default gen_random_uuid(), name text not null, owner_user_id uuid not null references auth.users (id),
  created_at timestamptz default now()
);
create table chat_channels (
  id uuid primary key default gen_random_uuid(), room_id uuid not null references chat_rooms (id), name text not null, topic text,
  created_at timestamptz not null default now(), last_message_at timestamptz
);
create table chat_room_members (
  id uuid primary key default gen_random_uuid(), room_id uuid not null references chat_rooms (id),
  member_type text check (member_type in ('user', 'agent', 'team')), member_id uuid not null, added_at timestamptz default now()
);
create table chat_messages (
  id uuid primary key default gen_random_uuid(), channel_id uuid not null references chat_channels (id),
  sender_user_id uuid references auth.users (id), sender_agent_id uuid references agents (id), content text not null, metadata jsonb,
  embedding extensions.vector(1536), created_at timestamptz not null default now()
);
create table mcp_configurations (
  id uuid primary key default gen_random_uuid(), agent_id uuid references agents (id), is_enabled boolean,
  created_at timestamptz default now(), updated_at timestamptz default now()
);
create table mcp_servers (
  id uuid primary key default gen_random_uuid(), config_id uuid references mcp_configurations (id), name varchar, endpoint_url text,
  vault_api_key_id uuid, timeout_ms integer, max_retries integer, retry_backoff_ms integer, priority integer, is_active boolean,
  capabilities jsonb, created_at timestamptz default now(), updated_at timestamptz default now()
);
create table user_secrets (
  id uuid primary key default gen_random_uuid(), user_id uuid references auth.users (id), vault_id text, vault_item_id text,
  created_at timestamptz default now(), updated_at timestamptz default now()
);
