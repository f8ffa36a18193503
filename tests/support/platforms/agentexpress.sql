-- The tables of document AgentExpress in snake_case, with users of its own.
create table users (
  id uuid primary key default gen_random_uuid(), email varchar(255) unique, password varchar(255), first_name varchar(100),
  last_name varchar(100), avatar_url varchar(255), role varchar(50) default 'user', created_at timestamp default now(),
  updated_at timestamp default now()
);
create table agents (
  id uuid primary key default gen_random_uuid(), name varchar(100), description text, type varchar(50), capabilities jsonb,
  is_public boolean, creator_id uuid references users (id), created_at timestamp default now(), updated_at timestamp default now()
);
create table user_agents (
  id uuid primary key default gen_random_uuid(), user_id uuid references users (id), agent_id uuid references agents (id),
  settings jsonb, is_active boolean, created_at timestamp default now(), updated_at timestamp default now()
);
create index user_agents_user_id_agent_id_idx on user_agents (user_id, agent_id);
create table agent_logs (
  id uuid primary key default gen_random_uuid(), agent_id uuid references agents (id), user_id uuid references users (id),
  "timestamp" timestamp default now(), input text, output text, metadata jsonb
);
create index agent_logs_user_id_agent_id_timestamp_idx on agent_logs (user_id, agent_id, "timestamp");
create table plans (
  id uuid primary key default gen_random_uuid(), name varchar(100), description text, price decimal, features jsonb,
  created_at timestamp default now(), updated_at timestamp default now()
);
create table subscriptions (
  id uuid primary key default gen_random_uuid(), user_id uuid references users (id), plan_id uuid references plans (id),
  status varchar(50), start_date timestamp, end_date timestamp, created_at timestamp default now(),
  updated_at timestamp default now()
);
create table integrations (
  id uuid primary key default gen_random_uuid(), user_agent_id uuid references user_agents (id), type varchar(50),
  credentials jsonb, settings jsonb, created_at timestamp default now(), updated_at timestamp default now()
);
