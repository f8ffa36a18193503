import { type Kysely, sql } from 'kysely';
import { FILL_CHUNK } from './0005_knowledge.ts';
import { FILL_TASK } from './0008_tasks.ts';
import { INCREMENT_CONVERSATION_COUNT } from './0009_billing.ts';
import { applyAccess } from './access.ts';
import { changed, runSql } from './run-sql.ts';

// What applications of the documents expect of schema public behind their views.
//
// Document Agentopia has target_conversation_id and no table of conversations: its applications write an id of their own making,
// or a channel's. Neither may fail for want of a row that they do not know of. And its tasks have no workspace: a task of an agent that is
// not there says so, and nothing of workspaces.
//
// Document AgentCenter counts a conversation by one call and asks for the limit by another: the second sees the first at once, whether or
// not events have been rolled up. Its chunks have no workspace, and say what they miss by the name that the document has for it.

const fillTask = changed(
  changed(
    FILL_TASK,
    `    begin
      if new.workspace_id is null then
        select workspace_id into new.workspace_id from public.agents where id = new.agent_id;
      end if;
`,
    `    declare
      has_workspace constant boolean := new.workspace_id is not null;
    begin
      if not has_workspace then
        if new.agent_id is null then
          raise exception using errcode = 'not_null_violation', column = 'agent_id', table = tg_table_name,
            message = 'null value in column "agent_id" of relation "agent_tasks" violates not-null constraint';
        end if;
        select workspace_id into new.workspace_id from public.agents where id = new.agent_id;
        if new.workspace_id is null and agentd.is_service_caller() then
          raise exception using errcode = 'foreign_key_violation', message = format('agent %s does not exist', new.agent_id);
        end if;
      end if;
`,
  ),
  `          message = format('user %s is no member of the workspace of this task', new.user_id),
          hint = 'Leave user_id out, or name a member.';`,
  `          message = case when has_workspace then format('user %s is no member of the workspace of this task', new.user_id)
                         else format('agent %s does not exist, or user %s is no member of its workspace', new.agent_id, new.user_id) end,
          hint = case when has_workspace then 'Leave user_id out, or name a member.'
                      else 'Name an agent that the user sees.' end;`,
);

const fillChunk = changed(
  FILL_CHUNK,
  `      return new;`,
  `      if not found and new.source_id is null then
        raise exception using errcode = 'not_null_violation', column = 'source_id', table = tg_table_name,
          message = 'null value in column "source_id" of relation "knowledge_chunks" violates not-null constraint';
      elsif not found then
        raise exception using errcode = 'foreign_key_violation', message = format('source %s does not exist', new.source_id);
      end if;
      return new;`,
);

export const incrementConversationCount = changed(
  INCREMENT_CONVERSATION_COUNT,
  `      perform agentd.record_usage(`,
  `      -- Beyond the limit too: what has begun is counted. Events whose key begins with call: are in the counter by this.
      insert into public.workspace_usage_counters as c (workspace_id, month, metric, used)
      select p_workspace_id, b.month, 'conversations', 1 from agentd.month_bounds(p_workspace_id, agentd.now()) b
      on conflict (workspace_id, month, metric) do update set used = c.used + 1;
      perform agentd.record_usage(`,
);

export async function up(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    ${sql.raw(fillTask)}
    ${sql.raw(incrementConversationCount)}
    ${sql.raw(fillChunk)}

    -- BEFORE INSERT OR UPDATE of target_conversation_id: makes the conversation if there is none. One that has the id of a channel of
    -- the workspace means that channel: answers are posted there. As the caller, whose policies decide; a conversation of another
    -- workspace is left to the foreign key.
    create function agentd.fill_task_conversation() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp as $$
    declare
      v_channel uuid;
    begin
      if tg_op = 'UPDATE' then
        if new.target_conversation_id is not distinct from old.target_conversation_id then
          return new;
        end if;
        -- it was the channel's only because of the conversation
        if new.target_channel_id = old.target_conversation_id then
          new.target_channel_id := null;
        end if;
      end if;
      if new.target_conversation_id is null then
        return new;
      end if;
      insert into public.conversations (id, workspace_id, agent_id, user_id)
      values (
        new.target_conversation_id, new.workspace_id,
        -- an agent of another workspace is for the task's own key to refuse
        (select a.id from public.agents a where a.id = new.agent_id and a.workspace_id = new.workspace_id),
        coalesce(public.current_user_id(), new.user_id))
      on conflict do nothing;
      select c.id into v_channel
        from public.chat_channels c
       where c.id = new.target_conversation_id and c.workspace_id = new.workspace_id;
      new.target_channel_id := coalesce(new.target_channel_id, v_channel);
      return new;
    end
    $$;
    -- after fill_task, which fills the workspace and the user
    create trigger fill_task_conversation
      before insert or update of target_conversation_id on public.agent_tasks
      for each row execute function agentd.fill_task_conversation();
    comment on column public.agent_tasks.target_conversation_id is
      'Where answers are written. A conversation that does not exist is made; the id of a chat channel of the workspace means that channel.';
    `,
  );
  await applyAccess(db);
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    comment on column public.agent_tasks.target_conversation_id is null;
    drop trigger fill_task_conversation on public.agent_tasks;
    drop function agentd.fill_task_conversation();
    ${sql.raw(FILL_TASK)}
    ${sql.raw(INCREMENT_CONVERSATION_COUNT)}
    ${sql.raw(FILL_CHUNK)}
    `,
  );
}
