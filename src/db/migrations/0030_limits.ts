/**
 * Bounds of what tenants write and a process reads, a daemon or an export: a value that compresses well takes little room in the database and gigabytes in a process.
 */
import { type Kysely, sql } from 'kysely';
import { applyAccess } from './access.ts';
import { runSql, vectorSchema } from './run-sql.ts';

/** Bytes as text. */
const CONFIG = 16_384;
const SECRET = 16_384;
const METADATA = 65_536;
/** What is said: more than a model's longest answer. */
const CONTENT = 10_000_000;
/** What else every member may write. */
const TEXT = 1_000_000;

const CHECKS = [
  ['datastores', 'datastores_config_size', `octet_length(config::text) <= ${CONFIG}`],
  ['api_connections', 'api_connections_api_key_size', `octet_length(api_key) <= ${SECRET}`],
  ['workspace_llm_config', 'workspace_llm_config_api_key_size', `octet_length(api_key) <= ${SECRET}`],
  ['chat_messages', 'chat_messages_metadata_size', `octet_length(metadata::text) <= ${METADATA}`],
  ['agent_messages', 'agent_messages_metadata_size', `octet_length(metadata::text) <= ${METADATA}`],
  ['chat_messages', 'chat_messages_content_size', `octet_length(content) <= ${CONTENT}`],
  ['agent_messages', 'agent_messages_content_size', `octet_length(content) <= ${CONTENT}`],
  ['agent_messages', 'agent_messages_role_size', `octet_length(role) <= ${TEXT}`],
  ['agent_feedback', 'agent_feedback_comment_size', `octet_length(comment) <= ${TEXT}`],
  ['chat_rooms', 'chat_rooms_name_size', `octet_length(name) <= ${TEXT}`],
  ['conversations', 'conversations_title_size', `octet_length(title) <= ${TEXT}`],
  ['api_connections', 'api_connections_name_size', `octet_length(name) + octet_length(service) <= ${TEXT}`],
  ['api_connections', 'api_connections_metadata_size', `octet_length(metadata::text) <= ${TEXT}`],
  ['user_agents', 'user_agents_settings_size', `octet_length(settings::text) <= ${TEXT}`],
  [
    'integrations',
    'integrations_size',
    `octet_length(type) + octet_length(credentials::text) + octet_length(settings::text) <= ${TEXT}`,
  ],
  [
    'team_canvas_layouts',
    'team_canvas_layouts_size',
    `octet_length(positions::text) + octet_length(connections::text) + octet_length(view_settings::text) <= ${TEXT}`,
  ],
  ['knowledge_chunks', 'knowledge_chunks_token_count_check', 'token_count between 0 and 10000000'],
] as const;

export async function up(db: Kysely<unknown>): Promise<void> {
  const home = `"${(await vectorSchema(db)).replaceAll('"', '""')}"`;
  await runSql(
    db,
    sql`
    ${sql.raw(
      // what is there already stays: an upgrade fails for no row
      CHECKS.map(
        ([table, name, rule]) =>
          `alter table public.${table} add constraint ${name} check (${rule}) not valid;`,
      ).join('\n    '),
    )}

    -- An index of half-precision numbers takes none beyond their range, and one row that it can't take would keep everybody's from
    -- being made.
    create function agentd.check_embedding() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp as $$
    begin
      perform new.embedding::${sql.raw(home)}.halfvec;
      return new;
    exception when numeric_value_out_of_range then
      raise exception 'the numbers of an embedding must lie between -65504 and 65504' using errcode = 'numeric_value_out_of_range';
    end
    $$;
    create trigger check_embedding before insert or update of embedding on public.knowledge_chunks
      for each row when (new.embedding is not null) execute function agentd.check_embedding();
    `,
  );
  await applyAccess(db);
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    drop trigger check_embedding on public.knowledge_chunks;
    drop function agentd.check_embedding();
    ${sql.raw(CHECKS.map(([table, name]) => `alter table public.${table} drop constraint ${name};`).join('\n    '))}
    `,
  );
}
