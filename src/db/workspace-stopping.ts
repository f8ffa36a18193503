/** A workspace's work brought to an end, before its rows go. */
import type { Queryable } from './database.ts';
import { cancelMoves } from './embedding-reports.ts';
import type { MemoryStore } from './memory.ts';
import { pauseQueue, queueNames } from './queue-controls.ts';

/** Runs that are cancelled at once. */
const BATCH_ROWS = 1_000;

/** Lets nothing of the workspace begin, and calls off what has begun. Returns how many runs were cancelled; again until that is 0. */
export async function stopWork(tx: Queryable, workspaceId: string, by: string): Promise<number> {
  const there = await tx.query('select 1 from public.workspaces where id = $1 for key share', [workspaceId]);
  // one that is gone by now has nothing left to stop
  for (const queue of there.length > 0 ? await queueNames(tx) : [])
    await pauseQueue(tx, { queue, workspaceId }, by, 'The workspace is being erased.');
  await cancelMoves(tx, workspaceId);
  await tx.query(
    `update public.workspaces set settings = settings - 'embed_messages' where id = $1 and settings ? 'embed_messages'`,
    [workspaceId],
  );
  // what is on its way to a memory is in hand; what is not does not go
  await tx.query(
    `delete from agentd.memory_outbox m
      where m.run_id in (select x.run_id from agentd.memory_outbox x
                          where x.workspace_id = $1 and not (x.attempts > 0 and x.reason_code is null and x.due_at > agentd.now())
                          limit ${BATCH_ROWS} for update skip locked)`,
    [workspaceId],
  );
  const cancelled = await tx.query(
    `
with batch as (
  select r.id from public.task_runs r
   where r.workspace_id = $1 and r.status in ('queued', 'running', 'waiting')
   limit ${BATCH_ROWS}
     for update skip locked
)
update public.task_runs r set status = 'cancelled', reason_code = 'cancelled', reason = 'The workspace is being erased.'
  from batch b where r.id = b.id
returning 1`,
    [workspaceId],
  );
  return cancelled.length;
}

/**
 * What daemons have in hand of a workspace at the moment, by kind. What they write afterwards is fenced by the rows that it belongs to, but calls that they
 * are making cost money.
 */
export function workInHand(db: Queryable, workspaceId: string): Promise<{ kind: string; count: number }[]> {
  return db.query(
    `
select * from (
  select 'runs' as kind, count(*)::integer as count from public.task_runs r
   where r.workspace_id = $1 and (r.status in ('queued', 'running', 'waiting') or r.lease_expires_at > agentd.now())
  union all
  select 'documents', count(*)::integer from public.knowledge_sources k where k.workspace_id = $1 and k.lease_expires_at > agentd.now()
  union all
  select 'messages', count(*)::integer from agentd.message_workspaces m where m.id = $1 and m.lease_expires_at > agentd.now()
  union all
  select 'embedding moves', count(*)::integer from agentd.embedding_migrations m where m.workspace_id = $1 and m.lease_expires_at > agentd.now()
  union all
  select 'memories', count(*)::integer from agentd.memory_outbox m
   where m.workspace_id = $1 and m.attempts > 0 and m.reason_code is null and m.due_at > agentd.now()
  union all
  select 'MCP servers', count(*)::integer from agentd.mcp_refreshes m where m.workspace_id = $1 and m.lease_expires_at > agentd.now()
  union all
  select 'tokens', count(*)::integer from public.user_integration_credentials c
   where c.workspace_id = $1 and c.refresh_lease_until > agentd.now()) x
 where x.count > 0`,
    [workspaceId],
  );
}

/** Stores that are memories of agents, and may remember people of a workspace: its own, and others that its agents use. */
export function memoriesOf(db: Queryable, workspaceId: string): Promise<MemoryStore[]> {
  return db.query(
    `
select d.id as datastore_id, d.workspace_id, d.config
  from public.datastores d
 where d.type = 'getzep' and d.config ->> 'use' = 'memory'
   and (d.workspace_id = $1
        or exists (select 1 from public.agent_datastores l join public.agents a on a.id = l.agent_id
                    where l.datastore_id = d.id and a.workspace_id = $1))
 order by d.id`,
    [workspaceId],
  );
}

/**
 * Retires the workspace's stores elsewhere: as datastores of another type they have nothing there, so all that is there is to be deleted.
 * Returns how many.
 */
export async function retireStores(tx: Queryable, workspaceId: string): Promise<number> {
  const rows = await tx.query(
    `update public.datastores set type = 'pgvector' where workspace_id = $1 and type in ('pinecone', 'getzep') returning 1`,
    [workspaceId],
  );
  return rows.length;
}
