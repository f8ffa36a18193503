/**
 * Datastores of type getzep: passages that are copied to a graph of Zep's, by the same outbox as vectors.
 *
 * Zep gives each passage (an episode) an id of its own, and what is added twice is there twice. agentd.graph_episodes has the ids. Its
 * rows come before the request (no id yet) and get their ids by the answer: where the answer is lost, the row says what to look for.
 *
 * agentd.zep_graphs has a row for each graph from before it is made until it is deleted: one for a store and a workspace, named by both.
 */
import { type Kysely, sql } from 'kysely';
import { LIMITS } from './0022_retrieval.ts';
import { DATASTORE_TRIGGERS, FOLLOW_DATASTORE, RETIRE_STORE } from './0025_remote_vectors.ts';
import { applyAccess } from './access.ts';
import { matchGraphChunks } from './match-graph-chunks.ts';
import { matchRemoteChunks } from './match-remote-chunks.ts';
import { changed, runSql, vectorSchema } from './run-sql.ts';

const replaced = (text: string): string => changed(text, 'create function', 'create or replace function');

/** With the graphs, which go whole: one that was emptied has no copies, and what Zep made of what was in it. */
const RETIRE = changed(
  RETIRE_STORE,
  '      update agentd.vector_outbox o\n         set op =',
  `      insert into agentd.vector_outbox as o (store_id, source_id, workspace_id, op, claimed_at)
      select g.store_id, g.store_id, g.workspace_id, 'delete', agentd.now() from agentd.zep_graphs g where g.store_id = v_store
      on conflict (store_id, source_id, workspace_id) do nothing;
      update agentd.vector_outbox o
         set op =`,
);

const FOLLOW = [
  [`old.type = 'pinecone'`, `old.type in ('pinecone', 'getzep')`],
  [`new.type = 'pinecone'`, `new.type in ('pinecone', 'getzep')`],
  [
    'if v_was and v_is and agentd.vector_place',
    'if v_was and v_is and new.type = old.type and agentd.vector_place',
  ],
  [
    'insert into agentd.vector_stores (datastore_id, workspace_id) values (new.id, new.workspace_id)',
    'insert into agentd.vector_stores (datastore_id, workspace_id, kind) values (new.id, new.workspace_id, new.type::text)',
  ],
].reduce((text, [part = '', by = '']) => changed(text, part, by), FOLLOW_DATASTORE);

const TRIGGERS = DATASTORE_TRIGGERS.replaceAll(
  /(new|old)\.type = 'pinecone'/g,
  `$1.type in ('pinecone', 'getzep')`,
);

const DROP_TRIGGERS = `
    drop trigger follow_datastore_insert on public.datastores;
    drop trigger follow_datastore_update on public.datastores;
    drop trigger follow_datastore_delete on public.datastores;
`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- pinecone or getzep, as the datastore was when it became this store
    alter table agentd.vector_stores add column kind text not null default 'pinecone';

    create table agentd.zep_graphs (
      store_id     uuid        not null references agentd.vector_stores (id) on delete cascade,
      workspace_id uuid        not null,
      created_at   timestamptz not null default agentd.now(),
      primary key (store_id, workspace_id)
    );
    create index zep_graphs_workspace_idx on agentd.zep_graphs (workspace_id);

    create table agentd.graph_episodes (
      store_id     uuid        not null references agentd.vector_stores (id) on delete cascade,
      source_id    uuid        not null,
      workspace_id uuid        not null,
      generation   integer     not null,
      chunk_index  integer     not null,
      -- of a passage that is longer than an episode may be
      part         integer     not null,
      -- of one request: what is looked for where its answer was lost
      batch        uuid        not null,
      -- Zep's; null: no answer has come, or it was refused
      episode_id   uuid,
      is_refused   boolean     not null default false,
      asked_at     timestamptz not null default agentd.now(),
      primary key (store_id, source_id, workspace_id, generation, chunk_index, part)
    );
    create index graph_episodes_episode_idx on agentd.graph_episodes (store_id, episode_id) where episode_id is not null;
    create index graph_episodes_unanswered_idx on agentd.graph_episodes (store_id, source_id)
      where episode_id is null and not is_refused;
    ${sql.raw(replaced(RETIRE))}
    ${sql.raw(replaced(FOLLOW))}
    ${sql.raw(DROP_TRIGGERS)}
    ${sql.raw(TRIGGERS)}
    insert into agentd.vector_stores (datastore_id, workspace_id, kind)
    select d.id, d.workspace_id, 'getzep' from public.datastores d where d.type = 'getzep';
    select agentd.request_all_vectors(s.id) from agentd.vector_stores s where s.kind = 'getzep';
    `,
  );
  await runSql(db, sql.raw(matchGraphChunks(await home(db), LIMITS)));
  await applyAccess(db);
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(db, sql.raw(replaced(matchRemoteChunks(await home(db), LIMITS))));
  await runSql(
    db,
    sql`
    ${sql.raw(replaced(RETIRE_STORE))}
    ${sql.raw(replaced(FOLLOW_DATASTORE))}
    ${sql.raw(DROP_TRIGGERS)}
    ${sql.raw(DATASTORE_TRIGGERS)}
    -- what is in Zep's graphs stays there
    delete from agentd.vector_stores where kind = 'getzep';
    drop table agentd.graph_episodes, agentd.zep_graphs;
    alter table agentd.vector_stores drop column kind;
    `,
  );
}

async function home(db: Kysely<unknown>): Promise<string> {
  return `"${(await vectorSchema(db)).replaceAll('"', '""')}"`;
}
