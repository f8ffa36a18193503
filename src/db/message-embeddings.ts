/**
 * Messages on their way to their embeddings: a workspace is claimed, a batch of its messages read, and what came of it stored.
 *
 * Every write carries the claim's epoch, and the version of each message as it was read: what another claim or an edit has
 * overtaken changes nothing.
 */
import type { Queryable } from './database.ts';
import { toJson } from './json.ts';
import { type HeldRow, type NotRenewed, renew, renewStatement } from './leases.ts';
import type { StoredCredential } from './runs.ts';

/** Messages that are longer are not embedded, in bytes: nobody says as much in a chat, and all of it would have to be read. */
export const LARGEST_MESSAGE = 100_000;
/** Characters of a message that are read. */
const READ = 8_000;
/** Messages of the largest batch. */
const LARGEST_BATCH = 256;
/** Attempts after which a message alone has failed, if others of its workspace have passed meanwhile, and if none has. */
const MOST_ATTEMPTS = 5;
const MOST_ATTEMPTS_ALONE = 20;

/** A workspace that a daemon holds. */
export type MessageClaim = {
  readonly id: string;
  readonly lease_epoch: number;
  /** False: it asks no more, and what it has is to be taken away. */
  readonly is_wanted: boolean;
  /** Older messages may be left that nobody has looked at. */
  readonly is_walking: boolean;
  readonly batch_size: number;
  /** Batches in a row that failed. */
  readonly failures: number;
};

/** A message as the queue has it. */
export type QueuedMessage = {
  readonly kind: 'channel' | 'conversation';
  readonly id: string;
  readonly version: number;
  /** Its beginning. */
  readonly content: string;
};

/** What became of a message. */
export type MessageOutcome = Omit<QueuedMessage, 'content'> & {
  /** As vector literal; null: it could not be embedded. */
  readonly embedding: string | null;
  readonly code: string | null;
  readonly reason: string | null;
};

/**
 * Takes the next workspace after `after` that has something to do and that nobody has; null: there is none. An id: so many of those rest that
 * it gave up looking at that one, and the next look begins there.
 */
export async function claimMessageWorkspace(
  db: Queryable,
  after: string | null,
  workerId: string,
  leaseSeconds: number,
): Promise<MessageClaim | string | null> {
  const [row] = await db.query<Omit<MessageClaim, 'lease_epoch'> & { readonly lease_epoch: number | null }>(
    {
      name: 'claim_message_workspace',
      text: `select id, lease_epoch, is_wanted, is_walking, batch_size, failures from agentd.claim_message_workspace($1, $2, $3)`,
    },
    [after, workerId, leaseSeconds],
  );
  if (row === undefined) return null;
  const { lease_epoch } = row;
  return lease_epoch === null ? row.id : { ...row, lease_epoch };
}

const RENEW = renewStatement(
  'renew_message_leases',
  'agentd.message_workspaces',
  'r.lease_expires_at is not null',
);

/** Renews the leases of a worker's workspaces. */
export function renewMessageLeases(
  db: Queryable,
  held: readonly HeldRow[],
  leaseSeconds: number,
): Promise<NotRenewed> {
  return renew(db, RENEW, held, leaseSeconds);
}

/** Goes on with the walk through older messages. Returns how many it came by; -1: not before others' transactions are over. */
export async function walkMessages(db: Queryable, claim: MessageClaim, limit: number): Promise<number> {
  const [row] = await db.query<{ seen: number }>(
    { name: 'walk_messages', text: 'select agentd.walk_messages($1, $2, $3) as seen' },
    [claim.id, claim.lease_epoch, limit],
  );
  return row?.seen ?? 0;
}

/**
 * The next messages of a claimed workspace; those with nothing to embed leave the queue. `looked_at` is fewer than `limit`: there are no
 * more now. `held` are those that were to leave and could not: another transaction holds them.
 */
export async function takeMessages(
  db: Queryable,
  claim: MessageClaim,
  limit: number,
): Promise<{
  readonly messages: readonly QueuedMessage[];
  readonly looked_at: number;
  readonly held: number;
}> {
  const [row] = await db.query<{ messages: QueuedMessage[]; looked_at: number; held: number }>(
    // without a name, so that it is planned for the tables as they are: a plan of when they were empty takes seconds
    `
with own as (
  select w.id from agentd.message_workspaces w where w.id = $1 and w.lease_epoch = $2 and w.is_wanted
),
next as materialized (
  select q.kind, q.message_id, q.version, q.attempts, q.seq, q.workspace_id
    from agentd.message_queue q
   where q.workspace_id = (select own.id from own) and q.failed_at is null
   order by q.attempts, q.seq limit $3
),
read as materialized (
  select n.*, coalesce(c.id, a.id) is not null and coalesce(c.embedding, a.embedding) is null
              and not agentd.is_hidden_message(coalesce(c.metadata, a.metadata)) as is_open,
         octet_length(coalesce(c.content, a.content)) as bytes,
         case when octet_length(coalesce(c.content, a.content)) <= ${LARGEST_MESSAGE} then
           left(coalesce(c.content, a.content), ${READ}) end as content
    from next n
    left join public.chat_messages c on n.kind = 'channel' and c.id = n.message_id and c.workspace_id = n.workspace_id
    left join public.agent_messages a on n.kind = 'conversation' and a.id = n.message_id and a.workspace_id = n.workspace_id
),
gone as (
  delete from agentd.message_queue q
   where (q.message_id, q.kind) in (
     select o.message_id, o.kind from agentd.message_queue o
       join read r on r.message_id = o.message_id and r.kind = o.kind and r.version = o.version
      where not r.is_open or r.content !~ '[^[:space:]]'
        for update of o skip locked)
  returning 1
),
too_large as (
  update agentd.message_queue q
     set failed_at = agentd.now(), reason_code = 'too_large',
         reason = format('The message has %s bytes, and no more than ${LARGEST_MESSAGE} are embedded. It is found by its words.', t.bytes)
    from (
      select o.message_id, o.kind, r.bytes from agentd.message_queue o
        join read r on r.message_id = o.message_id and r.kind = o.kind and r.version = o.version
       where r.is_open and r.bytes > ${LARGEST_MESSAGE}
         for update of o skip locked) t
   where q.message_id = t.message_id and q.kind = t.kind
  returning 1
)
select (select count(*) from read) as looked_at,
       (select count(*) from read r where not coalesce(r.is_open and r.content ~ '[^[:space:]]', false))
         - (select count(*) from gone) - (select count(*) from too_large) as held,
       coalesce((select jsonb_agg(jsonb_build_object('kind', r.kind, 'id', r.message_id, 'version', r.version, 'content', r.content)
                                  order by r.attempts, r.seq)
                   from read r where r.is_open and r.content ~ '[^[:space:]]'), '[]') as messages`,
    [claim.id, claim.lease_epoch, limit],
  );
  return row ?? { messages: [], looked_at: 0, held: 0 };
}

/** The workspace's keys of model providers. */
export async function messageCredentials(
  db: Queryable,
  workspaceId: string,
): Promise<readonly StoredCredential[]> {
  const [row] = await db.query<{ credentials: StoredCredential[] }>(
    {
      name: 'message_credentials',
      text: `
select coalesce(jsonb_agg(jsonb_build_object('id', w.id, 'provider', w.provider, 'secret', w.api_key, 'vault_id', w.vault_api_key_id)
                          order by w.created_at), '[]') as credentials
  from public.workspace_llm_config w where w.workspace_id = $1 and w.is_active`,
    },
    [workspaceId],
  );
  return row?.credentials ?? [];
}

/**
 * Stores what became of messages and what that cost, in one transaction. A message that somebody holds keeps its place in the queue
 * with an attempt more. Said twice, it is stored once: `key` names it in the workspace's ledger of usage.
 *
 * Returns how many are embedded now, and how many are done with; null: the workspace is no longer the worker's, and nothing was stored
 * but what it cost.
 */
export async function storeMessageEmbeddings(
  db: Queryable,
  claim: MessageClaim,
  stored: {
    readonly key: string;
    readonly messages: readonly MessageOutcome[];
    readonly tokens: number;
    readonly costMicros: number;
    readonly provider: string;
    readonly model: string;
    readonly dimensions: number;
    readonly leaseSeconds: number;
  },
): Promise<{ readonly embedded: number; readonly settled: number } | null> {
  const [row] = await db.query<{ is_own: boolean; embedded: number; settled: number }>(
    `
with own as (
  select w.id from agentd.message_workspaces w
   where w.id = $1 and w.lease_epoch = $2 and w.is_wanted for no key update
),
item as materialized (
  select i.kind, i.id, i.version, i.code, i.reason, v.embedding
    from own, jsonb_to_recordset($3::jsonb) as i (kind text, id uuid, version integer, embedding text, code text, reason text)
   -- the column's type, wherever pgvector is
   cross join lateral jsonb_populate_record(null::public.chat_messages, jsonb_build_object('embedding', i.embedding)) v
),
queued as materialized (
  select q.message_id as id, q.kind, q.workspace_id, i.embedding, i.code, i.reason
    from agentd.message_queue q join item i on i.id = q.message_id and i.kind = q.kind and i.version = q.version
   order by q.message_id, q.kind for update of q skip locked
),
free_channel as materialized (
  select m.id from public.chat_messages m join queued q on q.id = m.id and q.kind = 'channel' and q.workspace_id = m.workspace_id
   where q.embedding is not null and m.embedding is null and not agentd.is_hidden_message(m.metadata)
   order by m.id for no key update of m skip locked
),
free_conversation as materialized (
  select m.id from public.agent_messages m join queued q on q.id = m.id and q.kind = 'conversation' and q.workspace_id = m.workspace_id
   where q.embedding is not null and m.embedding is null and not agentd.is_hidden_message(m.metadata)
   order by m.id for no key update of m skip locked
),
written as (
  update public.chat_messages m
     set embedding = q.embedding, embedding_model = $7, embedding_dimensions = $8
    from queued q join free_channel f on f.id = q.id where q.kind = 'channel' and m.id = q.id
  returning m.id, 'channel' as kind
),
written_too as (
  update public.agent_messages m
     set embedding = q.embedding, embedding_model = $7, embedding_dimensions = $8
    from queued q join free_conversation f on f.id = q.id where q.kind = 'conversation' and m.id = q.id
  returning m.id, 'conversation' as kind
),
done as (
  select w.id, w.kind from written w union all select w.id, w.kind from written_too w
),
settled as (
  delete from agentd.message_queue q using done d where q.message_id = d.id and q.kind = d.kind
),
left_over as (
  update agentd.message_queue q
     set attempts = q.attempts + 1, first_failed_at = coalesce(q.first_failed_at, agentd.now()),
         reason_code = coalesce(o.code, 'row_locked'),
         reason = coalesce(o.reason, 'Another transaction held the message when its embedding was to be written.'),
         failed_at = case when o.code is not null or q.attempts + 1 >= ${MOST_ATTEMPTS_ALONE} then agentd.now() end
    from queued o
   where q.message_id = o.id and q.kind = o.kind and (o.id, o.kind) not in (select d.id, d.kind from done d)
),
-- paid is paid, also where the workspace asks no more by now
booked as (
  insert into public.usage_event_keys (workspace_id, idempotency_key, recorded_at)
  select w.id, $6, agentd.now() from public.workspaces w where w.id = $1
  on conflict do nothing
  returning workspace_id
),
used as (
  insert into public.usage_events (workspace_id, metric, quantity, cost_micros, idempotency_key, dimensions, occurred_at)
  select b.workspace_id, 'embedding_tokens', $4, $5, $6,
         jsonb_build_object('what', 'messages', 'provider', $9::text, 'model', $7::text), agentd.now()
    from booked b where $4::bigint > 0
),
counted as (
  update agentd.message_workspaces w
     set messages = w.messages + (select count(*) from done), tokens = w.tokens + case when exists (select 1 from booked) then $4::bigint else 0 end,
         cost_micros = w.cost_micros + case when exists (select 1 from booked) then $5::bigint else 0 end,
         succeeded_at = case when exists (select 1 from item where embedding is not null) then agentd.now() else w.succeeded_at end,
         lease_expires_at = agentd.now() + make_interval(secs => $10),
         models = case when w.models -> -1 = jsonb_build_object('model', $7::text, 'dimensions', $8::integer) then w.models
                       else (select coalesce(jsonb_agg(m.model order by m.place), '[]')
                               from jsonb_array_elements(w.models) with ordinality m (model, place)
                              where m.model <> jsonb_build_object('model', $7::text, 'dimensions', $8::integer)
                                and m.place > jsonb_array_length(w.models) - 5)
                            || jsonb_build_object('model', $7::text, 'dimensions', $8::integer) end
    from own where w.id = own.id
)
select exists (select 1 from own) as is_own, (select count(*) from done) as embedded,
       (select count(*) from done) + (select count(*) from queued q where q.code is not null) as settled`,
    [
      claim.id,
      claim.lease_epoch,
      toJson(stored.messages),
      stored.tokens,
      stored.costMicros,
      stored.key,
      stored.model,
      stored.dimensions,
      stored.provider,
      stored.leaseSeconds,
    ],
  );
  return row?.is_own ? row : null;
}

/** Gives a workspace back after a batch that went well: the next may be twice as large. */
export async function releaseMessageWorkspace(
  db: Queryable,
  claim: MessageClaim,
  how: { readonly grows: boolean; readonly inMs?: number },
): Promise<void> {
  await db.query(
    {
      name: 'release_message_workspace',
      text: `
update agentd.message_workspaces w
   set lease_expires_at = null, worker_id = null,
       batch_size = case when $3 then least(w.batch_size * 2, ${LARGEST_BATCH}) else w.batch_size end,
       failures = case when $3 then 0 else w.failures end,
       reason_code = case when $3 then null else w.reason_code end, reason = case when $3 then null else w.reason end,
       -- an operator's pause stays
       retry_at = case when w.retry_at = 'infinity' then w.retry_at
                       when $4::double precision > 0 then agentd.now() + $4::double precision * interval '1 millisecond' end
 where w.id = $1 and w.lease_epoch = $2`,
    },
    [claim.id, claim.lease_epoch, how.grows, how.inMs ?? 0],
  );
}

/** How a batch failed. */
export type BatchFailure = {
  readonly messages: readonly QueuedMessage[];
  readonly code: string;
  readonly reason: string;
  readonly inMs: number;
  /** Whether a message of it may be the reason: then they have an attempt more, and fewer are tried at once. */
  readonly mayBeMessage: boolean;
  /** The same will not pass later: a message that is alone has failed. */
  readonly isFinal: boolean;
};

/** Gives a workspace back after a batch that failed, with the reason in its row. Returns how many messages have failed for good. */
export async function failMessageBatch(
  db: Queryable,
  claim: MessageClaim,
  failure: BatchFailure,
): Promise<number> {
  const [row] = await db.query<{ failed: number }>(
    `
with own as (
  update agentd.message_workspaces w
     set lease_expires_at = null, worker_id = null, failures = w.failures + case when $4 = 'rate_limited' then 0 else 1 end, reason_code = $4, reason = $5,
         retry_at = case when w.retry_at = 'infinity' then w.retry_at else agentd.now() + $6::double precision * interval '1 millisecond' end,
         batch_size = case when $7 and jsonb_array_length($3::jsonb) > 0 then greatest(least(w.batch_size, jsonb_array_length($3::jsonb)) / 2, 1) else w.batch_size end
   where w.id = $1 and w.lease_epoch = $2
  returning w.succeeded_at
),
item as materialized (
  select q.message_id, q.kind from agentd.message_queue q
    join jsonb_to_recordset($3::jsonb) as i (kind text, id uuid, version integer)
      on i.id = q.message_id and i.kind = q.kind and i.version = q.version
   where $7 and exists (select 1 from own)
     for update of q skip locked
),
tried as (
  update agentd.message_queue q
     set attempts = q.attempts + 1, first_failed_at = coalesce(q.first_failed_at, agentd.now()), reason_code = $4, reason = $5,
         failed_at = case when jsonb_array_length($3::jsonb) = 1 and (
             $8 or q.attempts + 1 >= ${MOST_ATTEMPTS_ALONE}
             or (q.attempts + 1 >= ${MOST_ATTEMPTS} and (select own.succeeded_at from own) > q.first_failed_at)) then agentd.now() end
    from item i
   where q.message_id = i.message_id and q.kind = i.kind
  returning q.failed_at
)
select count(*) as failed from tried where failed_at is not null`,
    [
      claim.id,
      claim.lease_epoch,
      toJson(failure.messages.map(({ kind, id, version }) => ({ kind, id, version }))),
      failure.code,
      failure.reason.slice(0, 2000),
      failure.inMs,
      failure.mayBeMessage,
      failure.isFinal,
    ],
  );
  return row?.failed ?? 0;
}

/** Forgets rows of the queue that nobody will come for. Returns how many. */
export async function sweepMessageQueue(db: Queryable, limit: number): Promise<number> {
  const [row] = await db.query<{ swept: number }>(
    { name: 'sweep_message_queue', text: 'select agentd.sweep_message_queue($1) as swept' },
    [limit],
  );
  return row?.swept ?? 0;
}
