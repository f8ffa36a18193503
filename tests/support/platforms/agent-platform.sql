-- The tables of document Agent Platform. Its text ids come from the application (cuid() is no function of PostgreSQL), and so do
-- its users.
create table users (id text primary key default gen_random_uuid()::text, email text unique);
create function current_user_id() returns text language sql stable as $$ select current_setting('app.current_user_id') $$;

create table agents (
  id text primary key default gen_random_uuid()::text, name text not null, description text, system_prompt text not null,
  model text not null default 'gpt-3.5-turbo', temperature numeric not null default 0.7, max_tokens integer,
  created_at timestamptz not null default now(), updated_at timestamptz not null default now(),
  user_id text not null references users (id) on delete cascade on update cascade
);
create index agents_user_id_idx on agents (user_id);
create index agents_name_idx on agents (name);

create table api_connections (
  id text primary key default gen_random_uuid()::text, name text not null, service text not null, api_key text not null,
  user_id text not null references users (id) on delete cascade on update cascade,
  created_at timestamptz not null default now(), updated_at timestamptz not null default now(), metadata jsonb
);
create index api_connections_user_id_idx on api_connections (user_id);
create index api_connections_service_idx on api_connections (service);

create table agent_api_connections (
  id text primary key default gen_random_uuid()::text,
  agent_id text not null references agents (id) on delete cascade on update cascade,
  api_connection_id text not null references api_connections (id) on delete cascade on update cascade,
  created_at timestamptz not null default now(), updated_at timestamptz not null default now()
);
create index agent_api_connections_agent_id_idx on agent_api_connections (agent_id);
create index agent_api_connections_api_connection_id_idx on agent_api_connections (api_connection_id);
create unique index agent_api_connections_unique_connection_idx on agent_api_connections (agent_id, api_connection_id);

create table agent_messages (
  id text primary key default gen_random_uuid()::text,
  agent_id text not null references agents (id) on delete cascade on update cascade,
  user_id text not null references users (id) on delete cascade on update cascade,
  role text not null, content text not null, created_at timestamptz not null default now(), conversation_id text not null,
  metadata jsonb
);
create index agent_messages_agent_id_idx on agent_messages (agent_id);
create index agent_messages_user_id_idx on agent_messages (user_id);
create index agent_messages_conversation_id_idx on agent_messages (conversation_id);
create index agent_messages_created_at_idx on agent_messages (created_at);

create table agent_feedback (
  id text primary key default gen_random_uuid()::text,
  message_id text not null references agent_messages (id) on delete cascade on update cascade,
  user_id text not null references users (id) on delete cascade on update cascade,
  rating integer not null, comment text, created_at timestamptz not null default now()
);
create index agent_feedback_message_id_idx on agent_feedback (message_id);
create index agent_feedback_user_id_idx on agent_feedback (user_id);

alter table agents enable row level security;
create policy agents_isolation_policy on agents using (user_id = current_user_id());
