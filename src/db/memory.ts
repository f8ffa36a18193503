/** Memories of agents: which one a run has, and what has yet to be sent to it. */
import { createHash } from 'node:crypto';
import type { Queryable } from './database.ts';

/** A store that is a memory, with its key as stored. */
export type MemoryStore = {
  readonly datastore_id: string;
  readonly workspace_id: string;
  readonly config: unknown;
};

/** Whose memory, and which talk: ids of no meaning elsewhere. */
export type MemoryTalk = { readonly userId: string; readonly threadId: string };

type TalkRow = {
  readonly run_workspace_id: string;
  readonly datastore_id: string;
  readonly agent_id: string;
  readonly user_id: string;
  readonly thread: string;
};

/**
 * An agent remembers a person, not a workspace: what one has said is not told to another. The ids are made of workspace, store, agent and
 * person, so that they meet nobody else's where two workspaces use one account of Zep's.
 */
function talkOf(row: TalkRow): MemoryTalk {
  const person = hashed(row.run_workspace_id, row.datastore_id, row.agent_id, row.user_id);
  return {
    userId: `agentd-${row.run_workspace_id}-${person}`,
    threadId: `agentd-${row.run_workspace_id}-${hashed(person, row.thread)}`,
  };
}

function hashed(...parts: readonly string[]): string {
  return createHash('sha256').update(parts.join('|')).digest('hex').slice(0, 40);
}

/** The memory that a run's agent has; null: none. */
export async function findMemory(
  db: Queryable,
  runId: string,
): Promise<{ readonly store: MemoryStore; readonly talk: MemoryTalk } | null> {
  const [row] = await db.query<MemoryStore & TalkRow>(
    {
      name: 'find_memory',
      text: `
select m.datastore_id, m.workspace_id, m.config, m.thread, r.workspace_id as run_workspace_id, r.agent_id, r.user_id
  from public.task_runs r cross join lateral agentd.memory_of(r) m
 where r.id = $1`,
    },
    [runId],
  );
  return row === undefined ? null : { store: row, talk: talkOf(row) };
}

/** A run to be remembered. */
export type ClaimedMemory = {
  readonly run_id: string;
  readonly workspace_id: string;
  readonly datastore_id: string;
  /** Requests for it may have been sent so often before. */
  readonly attempts: number;
  /** Null: the memory is gone, or another now, or the run is; there is nothing to send. */
  readonly memory: { readonly store: MemoryStore; readonly talk: MemoryTalk } | null;
  readonly input: unknown;
  readonly instructions: string;
  readonly answer: string;
};

/** Of one store at once, so that a slow one has not all of a daemon's hands. */
const OF_STORE = 2;

/**
 * Takes runs that are due, of each store a few, of those that are `busy` none. What is not settled within `leaseSeconds` is taken again, by
 * anybody.
 */
export async function claimMemories(
  db: Queryable,
  limit: number,
  leaseSeconds: number,
  busy: readonly string[],
): Promise<ClaimedMemory[]> {
  const rows = await db.query<
    Omit<ClaimedMemory, 'memory'> & Partial<MemoryStore & TalkRow> & { store_workspace_id: string | null }
  >(
    {
      name: 'claim_memories',
      text: `
with recursive stores as (
  (select o.datastore_id from agentd.memory_outbox o order by o.datastore_id limit 1)
  union all
  select (select o.datastore_id from agentd.memory_outbox o where o.datastore_id > s.datastore_id order by o.datastore_id limit 1)
    from stores s where s.datastore_id is not null
),
due as (
  select n.run_id
    from (
      select w.datastore_id from stores w
       where w.datastore_id <> all ($3::uuid[])
         and exists (select 1 from agentd.memory_outbox o where o.datastore_id = w.datastore_id and o.due_at <= agentd.now())
       order by random() limit $1) s
   cross join lateral (
     select o.run_id from agentd.memory_outbox o
      where o.datastore_id = s.datastore_id and o.due_at <= agentd.now()
      order by o.due_at limit ${OF_STORE}
        for update skip locked) n
   limit $1
),
claimed as (
  update agentd.memory_outbox o
     set attempts = o.attempts + 1, due_at = agentd.now() + make_interval(secs => $2)
    from due where o.run_id = due.run_id
  returning o.run_id, o.workspace_id, o.datastore_id, o.attempts - 1 as attempts
)
select c.*, m.workspace_id as store_workspace_id, m.config, m.thread, r.workspace_id as run_workspace_id, r.agent_id, r.user_id,
       r.input, coalesce(left(r.settings ->> 'instructions', 4000), '') as instructions,
       coalesce(left(r.output ->> 'text', 4000), '') as answer
  from claimed c
  left join public.task_runs r on r.id = c.run_id and r.status = 'completed'
  left join lateral agentd.memory_of(r) m on m.datastore_id = c.datastore_id`,
    },
    [limit, leaseSeconds, busy],
  );
  return rows.map((row) => ({
    run_id: row.run_id,
    workspace_id: row.workspace_id,
    datastore_id: row.datastore_id,
    attempts: row.attempts,
    memory:
      row.store_workspace_id === null || row.thread == null
        ? null
        : {
            store: {
              datastore_id: row.datastore_id,
              workspace_id: row.store_workspace_id,
              config: row.config,
            },
            talk: talkOf(row as TalkRow),
          },
    input: row.input,
    instructions: row.instructions,
    answer: row.answer,
  }));
}

/** It is remembered, or there is nothing to remember. */
export async function settleMemory(db: Queryable, runId: string): Promise<void> {
  await db.query({ name: 'settle_memory', text: 'delete from agentd.memory_outbox where run_id = $1' }, [
    runId,
  ]);
}

/** How long what can't be sent is kept. */
const PATIENCE = '1 day';

/**
 * It could not be sent, and neither can what else waits for its store: all of it rests for `inMs`. Returns whether it was given up, after a day.
 */
export async function postponeMemory(
  db: Queryable,
  item: Pick<ClaimedMemory, 'run_id' | 'datastore_id'>,
  failure: { readonly code: string; readonly reason: string; readonly inMs: number },
): Promise<boolean> {
  const [row] = await db.query<{ lost: boolean }>(
    {
      name: 'postpone_memory',
      text: `
with lost as (
  delete from agentd.memory_outbox o where o.run_id = $1 and o.created_at < agentd.now() - interval '${PATIENCE}' returning 1
),
rested as (
  update agentd.memory_outbox o
     set due_at = greatest(o.due_at, agentd.now() + $5::double precision * interval '1 millisecond')
    where o.run_id in (select w.run_id from agentd.memory_outbox w
                        where w.datastore_id = $2 and w.run_id <> $1
                          and w.due_at < agentd.now() + $5::double precision * interval '1 millisecond'
                        order by w.due_at limit 1000 for update skip locked)
),
noted as (
  update agentd.memory_outbox o
     set due_at = agentd.now() + $5::double precision * interval '1 millisecond', reason_code = $3, reason = $4
   where o.run_id = $1 and not exists (select 1 from lost)
)
select exists (select 1 from lost) as lost`,
    },
    [item.run_id, item.datastore_id, failure.code, failure.reason.slice(0, 2000), failure.inMs],
  );
  return row?.lost ?? false;
}
