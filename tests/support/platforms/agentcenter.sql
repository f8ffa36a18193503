-- The tables, enums and functions of document AgentCenter as its own application has them on a Supabase project.
create type agent_status as enum ('draft', 'live');
create type app_role as enum ('OWNER', 'MANAGER', 'VIEWER');
create type business_domain as enum ('healthcare', 'retail', 'finance', 'realestate', 'hospitality', 'other');
create type persona_tone as enum ('professional', 'friendly', 'casual', 'formal');
create type fallback_policy as enum ('apologize', 'escalate', 'retry', 'transfer');
create type knowledge_type as enum ('PDF', 'URL', 'TEXT');
create type subscription_status as enum ('trialing', 'active', 'past_due', 'canceled', 'unpaid', 'paused');

create table workspaces (
  id uuid primary key default gen_random_uuid(), name text not null, slug text not null unique,
  created_at timestamptz default now(), updated_at timestamptz default now()
);
create table profiles (
  id uuid primary key references auth.users (id) on delete cascade, workspace_id uuid references workspaces (id),
  full_name text, avatar_url text, created_at timestamptz default now(), updated_at timestamptz default now()
);
create table user_roles (
  id uuid primary key default gen_random_uuid(), user_id uuid not null references auth.users (id) on delete cascade,
  workspace_id uuid not null references workspaces (id), role app_role not null, created_at timestamptz default now()
);
create table personas (
  id uuid primary key default gen_random_uuid(), workspace_id uuid not null references workspaces (id), name text not null,
  tone persona_tone, greeting text, fallback_message text, escalation_policy fallback_policy,
  created_at timestamptz default now(), updated_at timestamptz default now()
);
create table llm_models (
  id uuid primary key default gen_random_uuid(), provider text not null, name text not null, model_id text not null,
  context_window integer, input_cost_per_1k decimal, output_cost_per_1k decimal, is_default boolean default false,
  created_at timestamptz default now()
);
create table agents (
  id uuid primary key default gen_random_uuid(), workspace_id uuid not null references workspaces (id), name text not null,
  description text, domain business_domain, status agent_status default 'draft', persona_id uuid references personas (id),
  goals text[], channels text[], llm_model_id uuid references llm_models (id),
  created_at timestamptz default now(), updated_at timestamptz default now()
);
create table knowledge_sources (
  id uuid primary key default gen_random_uuid(), workspace_id uuid not null references workspaces (id),
  agent_id uuid references agents (id), name text not null, type knowledge_type not null, content text, url text,
  created_at timestamptz default now(), updated_at timestamptz default now()
);
create table knowledge_chunks (
  id uuid primary key default gen_random_uuid(), source_id uuid not null references knowledge_sources (id) on delete cascade,
  content text not null, embedding extensions.vector(1536), chunk_index integer, created_at timestamptz default now()
);
create table chat_sessions (
  id uuid primary key default gen_random_uuid(), workspace_id uuid not null references workspaces (id),
  agent_id uuid not null references agents (id), channel text, status text default 'active', messages jsonb default '[]',
  internal_notes text, started_at timestamptz default now(), ended_at timestamptz, created_at timestamptz default now()
);
create table leads (
  id uuid primary key default gen_random_uuid(), workspace_id uuid not null references workspaces (id),
  agent_id uuid references agents (id), session_id uuid references chat_sessions (id), name text, email text, phone text,
  channel text, metadata jsonb, created_at timestamptz default now()
);
create table channel_configs (
  id uuid primary key default gen_random_uuid(), workspace_id uuid not null references workspaces (id),
  agent_id uuid references agents (id), channel text not null, config jsonb, enabled boolean default true,
  created_at timestamptz default now(), updated_at timestamptz default now()
);
create table agent_web_widget_config (
  id uuid primary key default gen_random_uuid(), agent_id uuid not null references agents (id), primary_color text, position text,
  welcome_message text, allowed_domains text[], created_at timestamptz default now(), updated_at timestamptz default now()
);
create table workspace_llm_config (
  id uuid primary key default gen_random_uuid(), workspace_id uuid not null references workspaces (id), provider text not null,
  api_key text, is_active boolean default true, created_at timestamptz default now(), updated_at timestamptz default now()
);
create table pricing_plans (
  id uuid primary key default gen_random_uuid(), name text not null, stripe_price_id text, price_monthly decimal,
  price_yearly decimal, conversation_limit integer, features jsonb, created_at timestamptz default now()
);
create table workspace_subscriptions (
  id uuid primary key default gen_random_uuid(), workspace_id uuid not null references workspaces (id),
  plan_id uuid references pricing_plans (id), stripe_subscription_id text, status subscription_status,
  current_period_start timestamptz, current_period_end timestamptz,
  created_at timestamptz default now(), updated_at timestamptz default now()
);
create table workspace_usage (
  id uuid primary key default gen_random_uuid(), workspace_id uuid not null references workspaces (id), month date not null,
  conversations integer default 0, messages integer default 0, tokens_used bigint default 0,
  created_at timestamptz default now(), updated_at timestamptz default now()
);
create table billing_invoices (
  id uuid primary key default gen_random_uuid(), workspace_id uuid not null references workspaces (id), stripe_invoice_id text,
  amount decimal, status text, invoice_url text, created_at timestamptz default now()
);

create index idx_agents_workspace on agents (workspace_id);
create index idx_agents_status on agents (status);
create index idx_sessions_agent on chat_sessions (agent_id);
create index idx_sessions_status on chat_sessions (status);
create index idx_leads_workspace on leads (workspace_id);
create index idx_knowledge_agent on knowledge_sources (agent_id);

create function get_user_role(workspace_id uuid) returns app_role language sql stable security definer as $$
  select r.role from user_roles r where r.user_id = auth.uid() and r.workspace_id = get_user_role.workspace_id
$$;
create function has_role(workspace_id uuid, min_role app_role) returns boolean language sql stable as $$
  select coalesce(get_user_role(workspace_id) <= min_role, false)
$$;
create function user_has_workspace_access(workspace_id uuid) returns boolean language sql stable as $$
  select get_user_role(workspace_id) is not null
$$;
create function get_workspace_usage(workspace_id uuid) returns workspace_usage language sql stable as $$
  select u from workspace_usage u where u.workspace_id = get_workspace_usage.workspace_id order by month desc limit 1
$$;
create function increment_conversation_count(workspace_id uuid) returns void language sql as $$
  update workspace_usage u set conversations = conversations + 1 where u.workspace_id = increment_conversation_count.workspace_id
$$;
create function check_usage_limit(workspace_id uuid) returns boolean language sql stable as 'select true';

alter table agents enable row level security;
create policy "Users can view own workspace data" on agents for select
  using (workspace_id in (select p.workspace_id from profiles p where p.id = auth.uid()));
create policy "Managers can insert agents" on agents for insert with check (has_role(workspace_id, 'MANAGER'));
