import { type Kysely, sql } from 'kysely';
import { dropTables, keepUpdatedAt, runSql, vectorSchema } from './run-sql.ts';

// Rooms, channels and conversations, what is said in them, and the log of what agents were asked and answered.

export async function up(db: Kysely<unknown>): Promise<void> {
  await createRooms(db);
  await createConversations(db);
  await createChatMessages(db);
  await createAgentMessages(db);
  await createSessions(db);
}

async function createRooms(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table public.chat_rooms (
      id            uuid        primary key default gen_random_uuid(),
      workspace_id  uuid        not null references public.workspaces (id) on delete cascade,
      name          text        not null,
      owner_user_id uuid        not null references auth.users (id) on delete cascade,
      created_at    timestamptz not null default now(),
      constraint chat_rooms_workspace_key unique (workspace_id, id)
    );
    create index chat_rooms_owner_user_id_idx on public.chat_rooms (owner_user_id);

    create trigger fill_1_workspace_id
      before insert on public.chat_rooms
      for each row when (new.workspace_id is null) execute function agentd.fill_workspace_id();
    create trigger fill_2_owner_user_id
      before insert on public.chat_rooms
      for each row when (new.owner_user_id is null) execute function agentd.fill_owner_user_id();

    -- Document Agentopia diagram has one member_id that refers to three tables; here they are three real foreign keys, and
    -- its two columns follow from them.
    create table public.chat_room_members (
      id           uuid        primary key default gen_random_uuid(),
      workspace_id uuid        not null references public.workspaces (id) on delete cascade,
      room_id      uuid        not null,
      user_id      uuid        references auth.users (id) on delete cascade,
      agent_id     uuid,
      team_id      uuid,
      member_type  text        generated always as (
        case when user_id is not null then 'user' when agent_id is not null then 'agent' else 'team' end
      ) stored,
      member_id    uuid        generated always as (coalesce(user_id, agent_id, team_id)) stored,
      added_at     timestamptz not null default now(),
      constraint chat_room_members_one_kind check (num_nonnulls(user_id, agent_id, team_id) = 1),
      constraint chat_room_members_room_fkey foreign key (workspace_id, room_id)
        references public.chat_rooms (workspace_id, id) on delete cascade,
      constraint chat_room_members_agent_fkey foreign key (workspace_id, agent_id)
        references public.agents (workspace_id, id) on delete cascade,
      constraint chat_room_members_team_fkey foreign key (workspace_id, team_id)
        references public.teams (workspace_id, id) on delete cascade
    );
    create index chat_room_members_workspace_id_idx on public.chat_room_members (workspace_id);
    create index chat_room_members_room_id_idx on public.chat_room_members (room_id, member_type, member_id);
    create index chat_room_members_user_id_idx on public.chat_room_members (user_id);
    create index chat_room_members_agent_id_idx on public.chat_room_members (agent_id, workspace_id);
    create index chat_room_members_team_id_idx on public.chat_room_members (team_id, workspace_id);

    create trigger fill_1_workspace_id
      before insert on public.chat_room_members
      for each row when (new.workspace_id is null) execute function agentd.fill_workspace_id('room_id', 'chat_rooms');

    create table public.chat_channels (
      id                 uuid        primary key default gen_random_uuid(),
      workspace_id       uuid        not null references public.workspaces (id) on delete cascade,
      room_id            uuid,
      name               text        not null,
      topic              text,
      description        text,
      is_public          boolean     not null default true,
      created_by_user_id uuid        references auth.users (id) on delete set null,
      last_message_at    timestamptz,
      created_at         timestamptz not null default now(),
      constraint chat_channels_workspace_key unique (workspace_id, id),
      constraint chat_channels_room_fkey foreign key (workspace_id, room_id)
        references public.chat_rooms (workspace_id, id) on delete cascade
    );
    create index chat_channels_room_id_idx on public.chat_channels (room_id, workspace_id);
    create index chat_channels_created_by_user_id_idx on public.chat_channels (created_by_user_id);

    create trigger fill_1_workspace_id
      before insert on public.chat_channels
      for each row when (new.workspace_id is null) execute function agentd.fill_workspace_id('room_id', 'chat_rooms');
    `,
  );
}

async function createConversations(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- A conversation lies in the workspace of whoever talks. agent_id is null where the agent is a public one of another
    -- workspace: only user_agents, agent_logs and agent_messages point across.
    create table public.conversations (
      id           uuid        primary key default gen_random_uuid(),
      external_id  text        unique,
      workspace_id uuid        not null references public.workspaces (id) on delete cascade,
      agent_id     uuid,
      user_id      uuid        references auth.users (id) on delete cascade,
      title        text,
      created_at   timestamptz not null default now(),
      updated_at   timestamptz not null default now(),
      constraint conversations_workspace_key unique (workspace_id, id),
      constraint conversations_agent_fkey foreign key (workspace_id, agent_id)
        references public.agents (workspace_id, id) on delete cascade
    );
    create index conversations_agent_id_idx on public.conversations (agent_id, workspace_id);
    create index conversations_user_id_idx on public.conversations (user_id);

    create trigger fill_1_workspace_id
      before insert on public.conversations
      for each row when (new.workspace_id is null) execute function agentd.fill_workspace_id('agent_id', 'agents');

    ${keepUpdatedAt('conversations')}
    `,
  );
}

async function createChatMessages(db: Kysely<unknown>): Promise<void> {
  const vector = sql`${sql.id(await vectorSchema(db))}.vector`;
  await runSql(
    db,
    sql`
    create table public.chat_messages (
      id              uuid                primary key default gen_random_uuid(),
      workspace_id    uuid                not null references public.workspaces (id) on delete cascade,
      channel_id      uuid                not null,
      sender_user_id  uuid                references auth.users (id) on delete set null,
      sender_agent_id uuid,
      content         text                not null,
      message_type    public.message_type not null default 'text',
      metadata        jsonb               not null default '{}',
      embedding       ${vector},
      run_id          uuid,
      created_at      timestamptz         not null default now(),
      constraint chat_messages_one_sender check (num_nonnulls(sender_user_id, sender_agent_id) <= 1),
      constraint chat_messages_channel_fkey foreign key (workspace_id, channel_id)
        references public.chat_channels (workspace_id, id) on delete cascade,
      constraint chat_messages_sender_agent_fkey foreign key (workspace_id, sender_agent_id)
        references public.agents (workspace_id, id) on delete set null (sender_agent_id)
    );
    comment on column public.chat_messages.run_id is
      'The run that said it. No foreign key: a message outlives the retention of runs.';
    create index idx_chat_messages_channel_id on public.chat_messages (channel_id, created_at desc);
    create index chat_messages_workspace_id_idx on public.chat_messages (workspace_id);
    create index chat_messages_sender_user_id_idx on public.chat_messages (sender_user_id);
    create index chat_messages_sender_agent_id_idx on public.chat_messages (sender_agent_id, workspace_id);
    -- A run that is taken over after its last call must not speak twice.
    create unique index chat_messages_one_per_run on public.chat_messages (run_id) where run_id is not null;

    create trigger fill_1_workspace_id
      before insert on public.chat_messages
      for each row when (new.workspace_id is null) execute function agentd.fill_workspace_id('channel_id', 'chat_channels');

    create function agentd.touch_channel() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      update public.chat_channels c
         set last_message_at = greatest(c.last_message_at, n.latest)
        from (select m.channel_id, max(m.created_at) as latest from new_rows m group by m.channel_id) n
       where c.id = n.channel_id
         and c.last_message_at is distinct from greatest(c.last_message_at, n.latest);
      return null;
    end
    $$;

    create trigger touch_channel
      after insert on public.chat_messages
      referencing new table as new_rows
      for each statement execute function agentd.touch_channel();
    `,
  );
}

async function createAgentMessages(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table public.agent_messages (
      id              uuid        primary key default gen_random_uuid(),
      external_id     text        unique,
      workspace_id    uuid        not null references public.workspaces (id) on delete cascade,
      conversation_id uuid        not null,
      agent_id        uuid        not null references public.agents (id) on delete cascade on update cascade,
      user_id         uuid        not null references auth.users (id) on delete cascade on update cascade,
      role            text        not null,
      content         text        not null,
      metadata        jsonb,
      run_id          uuid,
      created_at      timestamptz not null default now(),
      constraint agent_messages_conversation_fkey foreign key (workspace_id, conversation_id)
        references public.conversations (workspace_id, id) on delete cascade
    );
    comment on column public.agent_messages.run_id is
      'The run that said it. No foreign key: a message outlives the retention of runs.';
    create index agent_messages_agent_id_idx on public.agent_messages (agent_id);
    create index agent_messages_user_id_idx on public.agent_messages (user_id);
    create index agent_messages_conversation_id_idx on public.agent_messages (conversation_id, created_at);
    create index agent_messages_created_at_idx on public.agent_messages (created_at);
    create index agent_messages_workspace_id_idx on public.agent_messages (workspace_id);
    create unique index agent_messages_one_per_run on public.agent_messages (run_id) where run_id is not null;

    -- Only the worker says which run a message answers: a run has one answer, and whoever could claim to be it could
    -- keep the run from giving it.
    create function agentd.clear_run_id() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if not agentd.is_service_caller() then
        new.run_id := case when tg_op = 'UPDATE' then old.run_id end;
      end if;
      return new;
    end
    $$;
    create trigger clear_run_id
      before insert or update of run_id on public.agent_messages
      for each row when (new.run_id is not null) execute function agentd.clear_run_id();
    create trigger clear_run_id
      before insert or update of run_id on public.chat_messages
      for each row when (new.run_id is not null) execute function agentd.clear_run_id();

    create trigger fill_1_workspace_id
      before insert on public.agent_messages
      for each row when (new.workspace_id is null)
      execute function agentd.fill_workspace_id('conversation_id', 'conversations', 'agent_id', 'agents');
    create trigger fill_2_user_id
      before insert on public.agent_messages
      for each row when (new.user_id is null) execute function agentd.fill_user_id();
    create trigger zz_check_agent
      before insert or update of agent_id, workspace_id on public.agent_messages
      for each row execute function agentd.check_agent_of_workspace();

    create table public.agent_feedback (
      id          uuid        primary key default gen_random_uuid(),
      external_id text        unique,
      message_id  uuid        not null references public.agent_messages (id) on delete cascade on update cascade,
      user_id     uuid        not null references auth.users (id) on delete cascade on update cascade,
      rating      integer     not null,
      comment     text,
      created_at  timestamptz not null default now()
    );
    comment on column public.agent_feedback.rating is '1 is a thumb up, 0 a thumb down.';
    create index agent_feedback_message_id_idx on public.agent_feedback (message_id);
    create index agent_feedback_user_id_idx on public.agent_feedback (user_id);

    create trigger fill_2_user_id
      before insert on public.agent_feedback
      for each row when (new.user_id is null) execute function agentd.fill_user_id();
    `,
  );
}

async function createSessions(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table public.chat_sessions (
      id             uuid        primary key default gen_random_uuid(),
      workspace_id   uuid        not null references public.workspaces (id) on delete cascade,
      agent_id       uuid        not null,
      channel        text        not null default 'web',
      status         text        not null default 'active',
      messages       jsonb       not null default '[]',
      internal_notes text,
      started_at     timestamptz not null default now(),
      ended_at       timestamptz,
      created_at     timestamptz not null default now(),
      constraint chat_sessions_workspace_key unique (workspace_id, id),
      constraint chat_sessions_agent_fkey foreign key (workspace_id, agent_id)
        references public.agents (workspace_id, id) on delete cascade
    );
    comment on column public.chat_sessions.status is 'active, completed or escalated.';
    create index idx_sessions_agent on public.chat_sessions (agent_id);
    create index idx_sessions_status on public.chat_sessions (status);

    create trigger fill_1_workspace_id
      before insert on public.chat_sessions
      for each row when (new.workspace_id is null) execute function agentd.fill_workspace_id('agent_id', 'agents');

    create table public.leads (
      id           uuid        primary key default gen_random_uuid(),
      workspace_id uuid        not null references public.workspaces (id) on delete cascade,
      agent_id     uuid,
      session_id   uuid,
      name         text,
      email        text,
      phone        text,
      channel      text,
      metadata     jsonb       not null default '{}',
      created_at   timestamptz not null default now(),
      constraint leads_agent_fkey foreign key (workspace_id, agent_id)
        references public.agents (workspace_id, id) on delete set null (agent_id),
      constraint leads_session_fkey foreign key (workspace_id, session_id)
        references public.chat_sessions (workspace_id, id) on delete set null (session_id)
    );
    create index idx_leads_workspace on public.leads (workspace_id);
    create index leads_agent_id_idx on public.leads (agent_id, workspace_id);
    create index leads_session_id_idx on public.leads (session_id, workspace_id);

    create trigger fill_1_workspace_id
      before insert on public.leads
      for each row when (new.workspace_id is null)
      execute function agentd.fill_workspace_id('session_id', 'chat_sessions', 'agent_id', 'agents');

    -- A log row lies in the workspace of whoever used the agent: the agent's own, or the user's where the agent is public.
    create table public.agent_logs (
      id           uuid        primary key default gen_random_uuid(),
      workspace_id uuid        not null references public.workspaces (id) on delete cascade,
      agent_id     uuid        not null references public.agents (id) on delete cascade,
      user_id      uuid        references auth.users (id) on delete set null,
      "timestamp"  timestamptz not null default now(),
      input        text,
      output       text,
      metadata     jsonb       not null default '{}'
    );
    create index agent_logs_agent_id_idx on public.agent_logs (agent_id);
    create index agent_logs_user_id_idx on public.agent_logs (user_id);
    create index agent_logs_timestamp_idx on public.agent_logs ("timestamp");
    create index agent_logs_workspace_id_idx on public.agent_logs (workspace_id, "timestamp");

    create function agentd.fill_log_workspace() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      select a.workspace_id into new.workspace_id
        from public.agents a
       where a.id = new.agent_id
         and (   new.user_id is null
              or a.user_id = new.user_id
              or exists (
                   select 1 from public.user_roles r where r.user_id = new.user_id and r.workspace_id = a.workspace_id
                 ));
      if new.workspace_id is null then
        new.workspace_id := agentd.ensure_personal_workspace(coalesce(new.user_id, agentd.system_user_id()));
      end if;
      return new;
    end
    $$;

    create trigger fill_1_workspace_id
      before insert on public.agent_logs
      for each row when (new.workspace_id is null) execute function agentd.fill_log_workspace();
    create trigger zz_check_agent
      before insert or update of agent_id, workspace_id on public.agent_logs
      for each row execute function agentd.check_agent_of_workspace();
    `,
  );
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    ${dropTables(
      'agent_logs',
      'leads',
      'chat_sessions',
      'agent_feedback',
      'agent_messages',
      'chat_messages',
      'conversations',
      'chat_channels',
      'chat_room_members',
      'chat_rooms',
    )}
    drop function agentd.fill_log_workspace();
    drop function agentd.clear_run_id();
    drop function agentd.touch_channel();
    `,
  );
}
