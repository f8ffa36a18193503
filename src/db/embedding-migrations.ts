/**
 * Workspaces on their way to another embedding model, as daemons see them: claimed, read passage by passage, stored, switched.
 *
 * Every write carries the claim's epoch. One of an older claim, or of a move that was cancelled, changes nothing and says so.
 */
import { createHash } from 'node:crypto';
import type { Queryable } from './database.ts';
import { toJson } from './json.ts';
import { type HeldRow, type NotRenewed, renew, renewStatement } from './leases.ts';
import type { StoredCredential } from './runs.ts';

/** How far above the generation that is searched the new vectors are: an ingestion writes one above it. */
const STAGED = 2;
/** Bytes of a passage and of what stands before it. Our own are far below; a tenant may write what he likes. */
const LONGEST_TEXT = 100_000;
/** What is not our own text is not read into memory. */
const isShort = (row: string): string =>
  `octet_length(${row}.content) + coalesce(octet_length(${row}.embed_prefix), 0) <= ${LONGEST_TEXT}`;

/** What stands before a passage when it is embedded. Of those stored before that was kept: its headings, without a table's header. */
export const embedPrefix = (row: string): string =>
  `coalesce(${row}.embed_prefix, nullif(left(array_to_string(${row}.heading_path, ' > '), 2000), '') || E'\\n\\n', '')`;
/** What is embedded of a passage; null where it is none of ours. */
export const embedText = (row: string): string =>
  `case when ${isShort(row)} then ${embedPrefix(row)} || ${row}.content end`;

/**
 * Whether a source has passages of another model; with $1 and $2 as the new model and its dimensions. Those that an application chunks
 * itself (they have no model) are left alone.
 */
export const isToMove = (row: string, model = '$1', dimensions = '$2'): string =>
  `(${row}.processing_status <> 'archived' and ${row}.chunk_count > 0 and ${row}.embedding_model is not null
    and (${row}.embedding_model <> ${model} or ${row}.embedding_dimensions is distinct from ${dimensions}))`;

/**
 * Whether the passage `row` has its new vector beside it, or the word that it gets none: one of the text that it has now.
 *
 * The offset keeps this a look into the index for each passage. Made a join, it compared every passage of a source with every other.
 */
export const isStaged = (row: string, model: string, dimensions: string): string =>
  `exists (select 1 from public.knowledge_chunks n
            where n.source_id = ${row}.source_id and n.generation = ${row}.generation + ${STAGED} and n.chunk_index = ${row}.chunk_index
              and n.embedding_model = ${model} and (n.embedding_bits is null or length(n.embedding_bits) = ${dimensions})
              and n.content = ${row}.content and n.embed_prefix is not distinct from ${row}.embed_prefix
              and n.heading_path is not distinct from ${row}.heading_path
           offset 0)`;

/** A pause that is longer than any that is written here is one of a server whose clock was ahead: it is over. */
export const LONGEST_PAUSE_MS = 15 * 60_000;
const LONGEST_PAUSE = `interval '${LONGEST_PAUSE_MS} milliseconds'`;

/** What names a claim. */
export type MoveClaim = { readonly id: string; readonly lease_epoch: number };

/** A workspace's move, read when it is claimed. */
export type ClaimedMove = MoveClaim & {
  readonly workspace_id: string;
  readonly model: string;
  readonly dimensions: number;
  /** This one included; those since which a passage was stored do not count. */
  readonly attempts: number;
  /** Of the provider or the database, in a row, since which no passage was stored. */
  readonly failures: number;
  readonly credentials: readonly StoredCredential[];
};

/**
 * Claims the open move that was worked on longest ago, of a workspace whose documents are not paused.
 *
 * @param takesOver whether one may be taken whose lease has lapsed
 */
export async function claimMove(
  db: Queryable,
  workerId: string,
  leaseSeconds: number,
  takesOver: boolean,
): Promise<ClaimedMove | null> {
  const [row] = await db.query<ClaimedMove>(
    {
      name: 'claim_embedding_migration',
      text: `
with next as (
  select m.workspace_id from agentd.embedding_migrations m
   where m.status in ('waiting', 'running')
     and ((m.status = 'waiting' and (m.retry_at is null or m.retry_at <= agentd.now() or m.retry_at > agentd.now() + ${LONGEST_PAUSE}))
          or (m.status = 'running' and $3
              and (m.lease_expires_at < agentd.now() or m.lease_expires_at > agentd.now() + make_interval(secs => $2) + ${LONGEST_PAUSE})))
     and not exists (select 1 from agentd.queue_controls c
                      where c.queue = 'document-ingest' and (c.workspace_id is null or c.workspace_id = m.workspace_id))
   order by m.worked_at nulls first, m.requested_at
   limit 1
     for no key update skip locked
),
claimed as (
  update agentd.embedding_migrations m
     set status = 'running', lease_epoch = m.lease_epoch + 1, attempts = m.attempts + 1, worker_id = $1,
         lease_expires_at = agentd.now() + make_interval(secs => $2), retry_at = null,
         started_at = coalesce(m.started_at, agentd.now()), worked_at = agentd.now()
    from next where m.workspace_id = next.workspace_id
  returning m.*
)
select c.id, c.lease_epoch, c.workspace_id, c.model, c.dimensions, c.attempts, c.failures,
       coalesce((
         select jsonb_agg(jsonb_build_object('id', w.id, 'provider', w.provider, 'secret', w.api_key,
                                             'vault_id', w.vault_api_key_id) order by w.created_at)
           from public.workspace_llm_config w
          where w.workspace_id = c.workspace_id and w.is_active), '[]') as credentials
  from claimed c`,
    },
    [workerId, leaseSeconds, takesOver],
  );
  return row ?? null;
}

const RENEW = renewStatement(
  'renew_embedding_migrations',
  'agentd.embedding_migrations',
  `r.status = 'running'`,
);

/** Renews the leases of a worker's moves. */
export function renewMoves(
  db: Queryable,
  held: readonly HeldRow[],
  leaseSeconds: number,
): Promise<NotRenewed> {
  return renew(db, RENEW, held, leaseSeconds);
}

/** A passage that has no new vector yet. */
export type OldPassage = {
  readonly id: string;
  readonly source_id: string;
  readonly chunk_index: number;
  /** What is embedded; null: it is longer than any of ours. */
  readonly text: string | null;
  readonly tokens: number;
};

/** The next passages without a new vector, in a fixed order. `isPaused`: an operator has paused the workspace's documents. */
export async function nextPassages(
  db: Queryable,
  claim: ClaimedMove,
  after: Pick<OldPassage, 'source_id' | 'chunk_index'> | null,
  limit: number,
): Promise<{ readonly passages: readonly OldPassage[]; readonly isPaused: boolean }> {
  const rows = await db.query<OldPassage & { is_paused: boolean }>(
    {
      name: 'next_passages_to_move',
      text: `
select o.id, o.source_id, o.chunk_index, ${embedText('o')} as text, coalesce(o.token_count, 0) as tokens
  from (select k.id, k.generation from public.knowledge_sources k
         where k.workspace_id = $3 and ${isToMove('k')} and ($4::uuid is null or k.id >= $4)) k
 cross join lateral (
   select c.* from public.knowledge_chunks c
    where c.source_id = k.id and c.generation = k.generation
      and ($4::uuid is null or (c.source_id, c.chunk_index) > ($4, $5))
      and not ${isStaged('c', '$1', '$2')}
    order by c.chunk_index limit $6) o
 order by k.id, o.chunk_index
 limit $6`,
    },
    [
      claim.model,
      claim.dimensions,
      claim.workspace_id,
      after?.source_id ?? null,
      after?.chunk_index ?? null,
      limit,
    ],
  );
  const [control] = await db.query<{ is_paused: boolean }>(
    {
      name: 'are_documents_paused',
      text: `select exists (select 1 from agentd.queue_controls c
                             where c.queue = 'document-ingest' and (c.workspace_id is null or c.workspace_id = $1)) as is_paused`,
    },
    [claim.workspace_id],
  );
  return { passages: rows, isPaused: control?.is_paused === true };
}

const COPIED =
  'chunk_index, content, content_sha256, token_count, page, heading_path, char_start, char_end, embed_prefix';
const copied = (row: string): string =>
  COPIED.split(', ')
    .map((column) => `${row}.${column}`)
    .join(', ');
const OVERWRITE = [
  ...COPIED.split(', ').slice(1),
  'metadata',
  'embedding_model',
  'embedding_key',
  'embedding',
]
  .map((column) => `${column} = excluded.${column}`)
  .join(', ');

/** Locks the sources of the items, as they are now: a reingestion waits or has been. @param locked what to do about one that somebody holds */
const sources = (locked: '' | 'skip locked'): string => `
source as materialized (
  select k.id, k.generation from public.knowledge_sources k
   where k.id in (select o.source_id from item i join public.knowledge_chunks o on o.id = i.id)
     and k.workspace_id = (select held.workspace_id from held)
   order by k.id for share ${locked}
)`;

/** A passage's new vector. */
export type NewVector = {
  /** Of the old passage. */
  readonly id: string;
  /** What was embedded of it: a passage whose text has changed since is left out. Null: it is longer than any of ours. */
  readonly text: string | null;
  /** sha256 of model, dimensions and text, as bytea literal (\\x…). */
  readonly embedding_key: string;
  /** As vector literal; null: it could not be embedded. */
  readonly embedding: string | null;
  readonly metadata: Readonly<Record<string, unknown>>;
};

/** Items as rows of knowledge_chunks: in `content_sha256` is that of the text that was embedded. */
const itemRows = (items: readonly Pick<NewVector, 'id' | 'text'>[]): string =>
  toJson(
    items.map(({ text, ...item }) => ({
      ...item,
      content_sha256: text === null ? null : createHash('sha256').update(text).digest('hex'),
    })),
  );
const IS_UNCHANGED = `encode(sha256(convert_to(${embedText('o')}, 'UTF8')), 'hex') is not distinct from i.content_sha256`;

/**
 * Stores vectors that the workspace has paid for before, wherever they are. Waits for no source that somebody holds. Null: no longer the
 * worker's.
 */
export async function storeKnownVectors(
  db: Queryable,
  claim: ClaimedMove,
  items: readonly Pick<NewVector, 'id' | 'text' | 'embedding_key'>[],
): Promise<{
  /** Old passages that have their new vector. */
  readonly known: ReadonlySet<string>;
  /** Sources that somebody holds: nothing of them can be stored now. */
  readonly locked: ReadonlySet<string>;
} | null> {
  const [row] = await db.query<{ is_own: boolean; ids: string[]; locked: string[] }>(
    {
      name: 'store_known_vectors',
      text: `
with held as (
  select m.workspace_id, m.model, m.dimensions from agentd.embedding_migrations m
   where m.id = $1 and m.lease_epoch = $2 and m.status = 'running' for no key update
),
item as materialized (select x.* from jsonb_populate_recordset(null::public.knowledge_chunks, $3::jsonb) x),${sources('skip locked')},
known as materialized (
  select o.id as old_id, e.embedding, i.embedding_key
    from held cross join item i
    join public.knowledge_chunks o on o.id = i.id and ${IS_UNCHANGED}
    join source s on s.id = o.source_id and s.generation = o.generation
   cross join lateral (
     select c.embedding from public.knowledge_chunks c
      where c.workspace_id = held.workspace_id and c.embedding_key = i.embedding_key and c.embedding is not null
      limit 1) e
),
stored as (
  insert into public.knowledge_chunks (workspace_id, source_id, generation, ${COPIED}, metadata, embedding_model, embedding_key, embedding)
  select held.workspace_id, o.source_id, o.generation + ${STAGED}, ${copied('o')}, o.metadata - 'not_embedded', held.model,
         k.embedding_key, k.embedding
    from held cross join known k join public.knowledge_chunks o on o.id = k.old_id
  on conflict (source_id, generation, chunk_index) do update set ${OVERWRITE}
  returning 1
),
booked as (
  update agentd.embedding_migrations m
     set done_chunks = m.done_chunks + (select count(*) from stored), attempts = case when exists (select 1 from stored) then 0 else m.attempts end,
         failures = case when exists (select 1 from stored) then 0 else m.failures end
    from held where m.workspace_id = held.workspace_id
)
select exists (select 1 from held) as is_own, coalesce((select array_agg(k.old_id) from known k), '{}') as ids,
       coalesce((select array_agg(distinct k.id) from item i join public.knowledge_chunks o on o.id = i.id
                   join public.knowledge_sources k on k.id = o.source_id and k.generation = o.generation
                  where k.id not in (select s.id from source s)), '{}') as locked`,
    },
    [claim.id, claim.lease_epoch, itemRows(items)],
  );
  return row?.is_own ? { known: new Set(row.ids), locked: new Set(row.locked) } : null;
}

/**
 * Stores vectors as they were embedded, what that cost, and extends the lease, in one transaction. False: no longer the worker's. A
 * passage that was changed, or whose source was ingested anew, meanwhile is left out. May be said again when its answer was lost: a batch
 * is booked once.
 */
export async function storeNewVectors(
  db: Queryable,
  claim: ClaimedMove,
  stored: {
    /** Names the batch, a UUID: batches are stored one after the other. Null: nothing was paid for it. */
    readonly batch: string | null;
    readonly items: readonly NewVector[];
    readonly tokens: number;
    readonly costMicros: number;
    readonly provider: string;
    readonly leaseSeconds: number;
    /** Passages of sources that somebody holds are left out too, rather than waited for. */
    readonly skipsLocked: boolean;
  },
): Promise<boolean> {
  const [row] = await db.query<{ is_own: boolean }>(
    {
      name: stored.skipsLocked ? 'store_new_vectors_of_free' : 'store_new_vectors',
      text: `
with held as (
  select m.workspace_id, m.id, m.model, ($4::uuid is null or m.last_batch is distinct from $4) as is_new from agentd.embedding_migrations m
   where m.id = $1 and m.lease_epoch = $2 and m.status = 'running' for no key update
),
item as materialized (select x.* from jsonb_populate_recordset(null::public.knowledge_chunks, $3::jsonb) x),${sources(stored.skipsLocked ? 'skip locked' : '')},
stored as (
  insert into public.knowledge_chunks (workspace_id, source_id, generation, ${COPIED}, metadata, embedding_model, embedding_key, embedding)
  select held.workspace_id, o.source_id, o.generation + ${STAGED}, ${copied('o')}, (o.metadata - 'not_embedded') || i.metadata, held.model,
         i.embedding_key, i.embedding
    from held cross join item i
    join public.knowledge_chunks o on o.id = i.id and ${IS_UNCHANGED}
    join source s on s.id = o.source_id and s.generation = o.generation
  on conflict (source_id, generation, chunk_index) do update set ${OVERWRITE}
  returning embedding is null as is_refused
),
booked as (
  update agentd.embedding_migrations m
     set done_chunks = m.done_chunks + case when held.is_new then (select count(*) from stored) else 0 end,
         refused_chunks = m.refused_chunks + case when held.is_new then (select count(*) from stored where is_refused) else 0 end,
         embedded_tokens = m.embedded_tokens + case when held.is_new then $5 else 0 end,
         cost_micros = m.cost_micros + case when held.is_new then $6 else 0 end,
         attempts = 0, failures = 0, last_batch = coalesce($4, m.last_batch), worked_at = agentd.now(), lease_expires_at = agentd.now() + make_interval(secs => $7)
    from held where m.workspace_id = held.workspace_id
),
used as (
  insert into public.usage_events (workspace_id, metric, quantity, cost_micros, idempotency_key, dimensions, occurred_at)
  select held.workspace_id, 'embedding_tokens', $5, $6, 'embed:' || $4::text,
         jsonb_build_object('embedding_migration_id', held.id, 'provider', $8::text, 'model', held.model), agentd.now()
    from held where held.is_new and $5::bigint > 0
)
select exists (select 1 from held) as is_own`,
    },
    [
      claim.id,
      claim.lease_epoch,
      itemRows(stored.items),
      stored.batch,
      stored.tokens,
      stored.costMicros,
      stored.leaseSeconds,
      stored.provider,
    ],
  );
  return row?.is_own ?? false;
}

/** What is left of a move after a switch, and what the switch has moved; null: no longer the worker's. */
export type Switched = {
  readonly moved: number;
  /** Sources of another model that could not be switched: not all of their passages have new vectors, or somebody holds them. */
  readonly left: number;
  /** Those that are being ingested, in whatever model: they are looked at when they are done. */
  readonly busy: number;
};

/**
 * The new vectors of all sources take the place of the old ones, in one statement, where all of them are there; else nothing changes. From
 * then on the workspace's documents are embedded with the new model. Sources that are being ingested at the moment, or whose rows
 * somebody holds, follow later, by the same statement.
 */
export async function switchSources(db: Queryable, claim: ClaimedMove): Promise<Switched | null> {
  const [row] = await db.query<Switched & { is_own: boolean }>(
    {
      name: 'switch_sources',
      text: `
with held as (
  select m.workspace_id, m.switched_at from agentd.embedding_migrations m
   where m.id = $3 and m.lease_epoch = $4 and m.status = 'running' for no key update
),
candidate as materialized (
  select k.id, k.generation, k.chunk_count from public.knowledge_sources k join held on held.workspace_id = k.workspace_id
   where ${isToMove('k')} and k.processing_status <> 'processing'
   order by k.id
     for no key update of k skip locked
),
missing as materialized (
  select c.id from candidate c
   -- counted in pairs: of a source that was ingested anew a moment ago, this statement may see neither the old nor the new passages
   where (select count(*) from public.knowledge_chunks o
           where o.source_id = c.id and o.generation = c.generation and ${isStaged('o', '$1', '$2')}) < c.chunk_count
),
-- of passages that an application has deleted meanwhile
orphaned as (
  delete from public.knowledge_chunks n using candidate c
   where n.source_id = c.id and n.generation = c.generation + ${STAGED} and not exists (select 1 from missing)
     and not exists (select 1 from public.knowledge_chunks o
                      where o.source_id = c.id and o.generation = c.generation and o.chunk_index = n.chunk_index)
),
switched as (
  update public.knowledge_sources k
     set generation = k.generation + ${STAGED}, embedding_model = $1, embedding_dimensions = $2
    from candidate c
   where k.id = c.id and not exists (select 1 from missing)
  returning k.id
),
pinned as (
  update agentd.embedding_migrations m
     set switched_at = coalesce(m.switched_at, agentd.now()), pinned_model = m.model, pinned_dimensions = m.dimensions
    from held
   where m.workspace_id = held.workspace_id and not exists (select 1 from missing)
)
select exists (select 1 from held) as is_own,
       (select count(*)::integer from switched) as moved,
       (select count(*)::integer from public.knowledge_sources k join held on held.workspace_id = k.workspace_id
         where ${isToMove('k')} and k.processing_status <> 'processing' and k.id not in (select s.id from switched s)) as left,
       (select count(*)::integer from public.knowledge_sources k join held on held.workspace_id = k.workspace_id
         where ${isToMove('k')} and k.processing_status = 'processing') as busy`,
    },
    [claim.model, claim.dimensions, claim.id, claim.lease_epoch],
  );
  return row?.is_own ? { moved: row.moved, left: row.left, busy: row.busy } : null;
}

/** Everything has the new model. False: no longer the worker's. */
export async function completeMove(db: Queryable, claim: MoveClaim): Promise<boolean> {
  const rows = await db.query(
    {
      name: 'complete_embedding_migration',
      text: `
update agentd.embedding_migrations m
   set status = 'completed', lease_expires_at = null, attempts = 0, failures = 0, finished_at = agentd.now(), retry_at = agentd.now(),
       reason_code = case when m.refused_chunks > 0 then 'embedding_refused' end,
       reason = case when m.refused_chunks > 0 then
         m.refused_chunks || ' passages could not be embedded and are found by their words alone; knowledge_chunks.metadata says why.' end
 where m.id = $1 and m.lease_epoch = $2 and m.status = 'running' and m.switched_at is not null
returning 1`,
    },
    [claim.id, claim.lease_epoch],
  );
  return rows.length > 0;
}

/** The move waits, for its turn or for what its reason says. @param again.counts as what it is counted */
export async function postponeMove(
  db: Queryable,
  claim: MoveClaim,
  again: {
    /** At most LONGEST_PAUSE_MS; 0: until its turn. */
    readonly inMs: number;
    /** An attempt: of these the move has few. A failure: of these it has many. */
    readonly counts: 'attempt' | 'failure' | null;
    readonly reasonCode: string | null;
    readonly reason: string | null;
  },
): Promise<boolean> {
  const rows = await db.query(
    {
      name: 'postpone_embedding_migration',
      text: `
update agentd.embedding_migrations m
   set status = 'waiting', lease_expires_at = null, retry_at = case when $3::double precision > 0 then agentd.now() + $3::double precision * interval '1 millisecond' end,
       attempts = greatest(m.attempts - case when $4::text = 'attempt' then 0 else 1 end, 0),
       failures = m.failures + case when $4::text = 'failure' then 1 else 0 end, reason_code = $5, reason = left($6, 2000),
       worked_at = agentd.now()
 where m.id = $1 and m.lease_epoch = $2 and m.status = 'running'
returning 1`,
    },
    [
      claim.id,
      claim.lease_epoch,
      Math.min(again.inMs, LONGEST_PAUSE_MS),
      again.counts,
      again.reasonCode,
      again.reason,
    ],
  );
  return rows.length > 0;
}

/** The move has failed for good, until it is asked for again. What was searched stays so; what was paid for is kept. */
export async function failMove(
  db: Queryable,
  claim: MoveClaim,
  reasonCode: string,
  reason: string,
): Promise<boolean> {
  const rows = await db.query(
    {
      name: 'fail_embedding_migration',
      text: `
update agentd.embedding_migrations m
   set status = 'failed', lease_expires_at = null, finished_at = agentd.now(), reason_code = $3, reason = left($4, 2000)
 where m.id = $1 and m.lease_epoch = $2 and m.status = 'running'
returning 1`,
    },
    [claim.id, claim.lease_epoch, reasonCode, reason],
  );
  return rows.length > 0;
}

/** How long after a move was complete its workspace is looked at for what was under way at the switch. */
const STRAYS_FOR = `interval '1 day'`;

/** How many workspaces are looked at in one go. */
const STRAYS_AT_ONCE = 500;

/**
 * Moves that were complete go on where a document has the old model after all: its ingestion was under way at the switch. Returns how
 * many. A workspace is looked at ever more rarely, once an hour at last: `retry_at` of a completed move says when.
 */
export async function reopenMoves(db: Queryable): Promise<number> {
  const rows = await db.query({
    name: 'reopen_embedding_migrations',
    text: `
with due as materialized (
  select o.workspace_id, o.model, o.dimensions, o.finished_at from agentd.embedding_migrations o
   where o.status = 'completed'
     -- later than any is put off to: the server's clock was ahead
     and (o.retry_at <= agentd.now() or (o.retry_at > agentd.now() + interval '61 minutes' and o.retry_at < 'infinity'))
   order by o.retry_at
   limit ${STRAYS_AT_ONCE}
     for no key update skip locked
),
looked as materialized (
  select d.workspace_id, d.finished_at,
         exists (select 1 from public.knowledge_sources k
                  where k.workspace_id = d.workspace_id and k.processing_status <> 'processing'
                    and ${isToMove('k', 'd.model', 'd.dimensions')}) as has_strays
    from due d
),
looked_after as (
  update agentd.embedding_migrations m
     set status = case when l.has_strays then 'waiting' else m.status end,
         finished_at = case when l.has_strays then null else m.finished_at end,
         attempts = 0, failures = 0,
         retry_at = case when not l.has_strays and l.finished_at > agentd.now() - ${STRAYS_FOR} then
           agentd.now() + least(greatest(agentd.now() - l.finished_at, interval '30 seconds'), interval '1 hour') end
    from looked l
   where m.workspace_id = l.workspace_id
  returning l.has_strays
)
select 1 from looked_after a where a.has_strays`,
  });
  return rows.length;
}

/** Whether the workspace has a vector of the new model at all. */
export async function hasVectors(db: Queryable, claim: ClaimedMove): Promise<boolean> {
  const rows = await db.query(
    {
      name: 'has_vectors',
      text: `select 1 from agentd.embedding_migrations m where m.id = $1 and m.done_chunks > m.refused_chunks`,
    },
    [claim.id],
  );
  return rows.length > 0;
}
