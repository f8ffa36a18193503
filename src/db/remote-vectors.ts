/**
 * Vectors on their way to other stores: stores claimed, rows of the outbox read and settled, chunks read as vectors.
 *
 * Every write carries the store's claim. One of an older claim changes nothing and says so.
 */
import type { Queryable } from './database.ts';
import { toJson } from './json.ts';

/** A store that has been claimed. */
export type ClaimedStore = {
  readonly id: string;
  readonly datastore_id: string;
  readonly kind: 'pinecone' | 'getzep';
  /** The datastore's workspace, in which its key is sealed. */
  readonly workspace_id: string;
  readonly lease_epoch: number;
  readonly attempts: number;
  /** Only deletions are left. */
  readonly is_retired: boolean;
  /** As stored, the key sealed or plain; null where there is none. */
  readonly config: unknown;
  readonly is_reconcile_due: boolean;
  readonly reconcile_place: unknown;
};

/** Stores of one workspace that are worked on at once, by all daemons. */
const STORES_OF_WORKSPACE = 2;

/** No lease is as long, and no pause longer: what is further ahead is of a clock that was wrong, and counts as over. */
const LEASE_MINUTES = 10;
const PAUSE_MINUTES = 60;
const RECONCILE_MINUTES = 120;
const ahead = (minutes: number): string => `agentd.now() + interval '${minutes} minutes'`;

/** The store `s` is nobody's at present. */
const IS_FREE = `(s.leased_until is null or s.leased_until <= agentd.now() or s.leased_until > ${ahead(LEASE_MINUTES)})`;
/** The store `s` does not rest. */
export const IS_RESTED = `(s.rest_until is null or s.rest_until <= agentd.now() or s.rest_until > ${ahead(PAUSE_MINUTES)})`;
/** The store `s` is to be compared. */
const IS_RECONCILE_DUE = `(s.reconcile_at <= agentd.now() or s.reconcile_at > ${ahead(RECONCILE_MINUTES)})`;
/** How many stores of the workspace of `s` are worked on. */
const AT_WORK = `(select count(*) from agentd.vector_stores l
             where l.workspace_id = s.workspace_id and l.leased_until > agentd.now() and l.leased_until <= ${ahead(LEASE_MINUTES)})`;
/** When the row `o` of the outbox is due. */
const DUE = ['o.retry_at is null', 'o.retry_at <= agentd.now()', `o.retry_at > ${ahead(PAUSE_MINUTES)}`];

/** Claims stores that have something to do, those that have waited longest first, and of each workspace a few. */
export function claimStores(
  db: Queryable,
  workerId: string,
  limit: number,
  leaseSeconds: number,
): Promise<ClaimedStore[]> {
  return db.query<ClaimedStore>(
    {
      name: 'claim_vector_stores',
      text: `
with recursive waiting (store_id) as (
  (select o.store_id from agentd.vector_outbox o order by o.store_id limit 1)
  union all
  select (select o.store_id from agentd.vector_outbox o where o.store_id > w.store_id order by o.store_id limit 1)
    from waiting w where w.store_id is not null
),
wanted as (
  select w.store_id as id from waiting w
   where w.store_id is not null
     and (${DUE.map((due) => `exists (select 1 from agentd.vector_outbox o where o.store_id = w.store_id and ${due})`).join('\n          or ')})
  union
  -- those that can be claimed now: others must not fill what is looked at
  (select s.id from agentd.vector_stores s
    where ${IS_RECONCILE_DUE} and s.retired_at is null and ${IS_FREE} and ${IS_RESTED} and ${AT_WORK} < ${STORES_OF_WORKSPACE}
    order by s.reconcile_at limit 200)
),
free as (
  select s.id, s.worked_at,
         row_number() over (partition by s.workspace_id order by s.worked_at nulls first, s.id)
           + ${AT_WORK} as place
    from wanted w
    join agentd.vector_stores s on s.id = w.id
   where ${IS_FREE} and ${IS_RESTED}
),
chosen as (
  select s.id from agentd.vector_stores s
   where s.id in (select f.id from free f where f.place <= ${STORES_OF_WORKSPACE} order by f.worked_at nulls first, f.id limit $2)
     and ${IS_FREE}
     for no key update skip locked
)
update agentd.vector_stores s
   set lease_epoch = s.lease_epoch + 1, leased_until = agentd.now() + make_interval(secs => $3), worker_id = $1, worked_at = agentd.now()
  from chosen c
  left join lateral (
    select d.config from public.datastores d join agentd.vector_stores l on l.datastore_id = d.id where l.id = c.id) d on true
 where s.id = c.id
returning s.id, s.datastore_id, s.kind, s.workspace_id, s.lease_epoch, s.attempts, s.retired_at is not null as is_retired,
          case when s.retired_at is null then d.config else s.config end as config,
          s.retired_at is null and ${IS_RECONCILE_DUE} as is_reconcile_due, s.reconcile_place`,
    },
    [workerId, limit, leaseSeconds],
  );
}

/** Gives a store back. A reason says why it rests; `restMs` null: it does not. */
export async function releaseStore(
  db: Queryable,
  store: Pick<ClaimedStore, 'id' | 'lease_epoch'>,
  outcome: {
    readonly restMs: number | null;
    readonly reasonCode: string | null;
    readonly reason: string | null;
  },
): Promise<void> {
  await db.query(
    {
      name: 'release_vector_store',
      text: `
update agentd.vector_stores s
   set leased_until = null, worker_id = null,
       attempts = case when $4::text is null then 0 else least(s.attempts, 1000) + 1 end,
       rest_until = agentd.now() + $3::double precision * interval '1 millisecond', reason_code = $4, reason = left($5, 2000)
 where s.id = $1 and s.lease_epoch = $2`,
    },
    [store.id, store.lease_epoch, outcome.restMs, outcome.reasonCode, outcome.reason],
  );
}

/** A row of the outbox with what the ledger says of its source now. */
export type OutboxRow = {
  readonly source_id: string;
  readonly workspace_id: string;
  readonly request: number;
  readonly sent_to: number;
  /** How far the deletion of what is too much has come; null: it begins. */
  readonly removal_place: unknown;
  readonly attempts: number;
  /** Whether anything may be there: it was taken before, or a copy is known. */
  readonly is_known: boolean;
  /** What the copy that is known was of; null: none is. */
  readonly copy_generation: number | null;
  readonly copy_chunks: number | null;
  /** The generation that the store is to hold; null: nothing of the source. */
  readonly generation: number | null;
  /** Of the generation that `sent_to` is about. */
  readonly sent_generation: number | null;
  /** As of now: it may have become so since the claim. */
  readonly is_store_retired: boolean;
};

/** Takes the next row of a store that is due; null: none is, or the claim is another's. */
export async function takeOutboxRow(
  db: Queryable,
  store: Pick<ClaimedStore, 'id' | 'lease_epoch'>,
  leaseSeconds: number,
): Promise<OutboxRow | null> {
  const [row] = await db.query<OutboxRow>(
    {
      name: 'take_vector_outbox_row',
      text: `
with own as (
  update agentd.vector_stores s set leased_until = agentd.now() + make_interval(secs => $3)
   where s.id = $1 and s.lease_epoch = $2 and s.leased_until is not null
  returning s.id, s.datastore_id, s.retired_at
),
next as (
  select o.store_id, o.source_id, o.workspace_id, o.claimed_at, o.generation as sent_generation
    from agentd.vector_outbox o
   -- one value, and no join: the index has the order then
   where o.store_id = (select own.id from own) and (${DUE.join(' or ')})
   order by o.turn_at
   limit 1
     for update of o skip locked
),
wanted as (
  select n.*, k.generation as wanted, own.retired_at is not null as is_store_retired
    from next n
   cross join own
    left join public.knowledge_sources k
      on k.id = n.source_id and k.workspace_id = n.workspace_id and k.datastore_id = own.datastore_id and own.retired_at is null
     and k.processing_status <> 'archived' and k.chunk_count > 0
)
update agentd.vector_outbox o
   set claimed_at = coalesce(o.claimed_at, agentd.now()), turn_at = agentd.now(),
       op = case when w.wanted is null then 'delete' else 'upsert' end,
       generation = w.wanted, sent_to = case when w.wanted = w.sent_generation then o.sent_to else 0 end,
       removal_place = case when w.wanted is not distinct from w.sent_generation then o.removal_place end
  from wanted w
  left join agentd.vector_copies c
    on c.store_id = w.store_id and c.source_id = w.source_id and c.workspace_id = w.workspace_id
 where (o.store_id, o.source_id, o.workspace_id) = (w.store_id, w.source_id, w.workspace_id)
returning o.source_id, o.workspace_id, o.request, o.sent_to, o.removal_place, o.attempts, w.claimed_at is not null or c.store_id is not null as is_known,
          c.generation as copy_generation, c.chunks as copy_chunks, w.wanted as generation, w.sent_generation, w.is_store_retired`,
    },
    [store.id, store.lease_epoch, leaseSeconds],
  );
  return row ?? null;
}

/** A chunk as a store gets it. */
export type VectorRow = {
  readonly chunk_index: number;
  readonly page: number | null;
  readonly heading: string;
  readonly title: string;
  /** pgvector's text form is JSON. */
  readonly embedding: string;
};

/** Stores refuse a vector of zeros, which is nowhere. */
const STORABLE = `and c.embedding::text ~ '[1-9]'`;
const VECTOR_COLUMNS = `c.chunk_index, c.page, left(array_to_string(c.heading_path, ' › '), 1000) as heading, left(k.name, 500) as title,
       c.embedding::text as embedding`;

/** The next chunks of a generation that have a vector, in their order. */
export function readVectors(
  db: Queryable,
  of: { readonly sourceId: string; readonly generation: number },
  from: number,
  limit: number,
): Promise<VectorRow[]> {
  return db.query<VectorRow>(
    {
      name: 'read_vectors',
      text: `
select ${VECTOR_COLUMNS}
  from public.knowledge_chunks c join public.knowledge_sources k on k.id = c.source_id
 where c.source_id = $1 and c.generation = $2 and c.chunk_index >= $3 and c.embedding is not null
   ${STORABLE}
 order by c.chunk_index
 limit $4`,
    },
    [of.sourceId, of.generation, from, limit],
  );
}

/** Chunks of a generation by their places. */
export function readVectorsAt(
  db: Queryable,
  of: { readonly sourceId: string; readonly generation: number },
  places: readonly number[],
): Promise<VectorRow[]> {
  return db.query<VectorRow>(
    {
      name: 'read_vectors_at',
      text: `
select ${VECTOR_COLUMNS}
  from public.knowledge_chunks c join public.knowledge_sources k on k.id = c.source_id
 where c.source_id = $1 and c.generation = $2 and c.chunk_index = any ($3::integer[]) and c.embedding is not null
   ${STORABLE}
 order by c.chunk_index`,
    },
    [of.sourceId, of.generation, places],
  );
}

/** Places of a generation's chunks that have a vector which a store can hold. */
export async function vectorPlaces(
  db: Queryable,
  of: { readonly sourceId: string; readonly generation: number },
): Promise<number[]> {
  const rows = await db.query<{ chunk_index: number }>(
    {
      name: 'vector_places',
      text: `
select c.chunk_index from public.knowledge_chunks c
 where c.source_id = $1 and c.generation = $2 and c.embedding is not null
   ${STORABLE}
 order by c.chunk_index`,
    },
    [of.sourceId, of.generation],
  );
  return rows.map((row) => row.chunk_index);
}

/** Notes how far a source has been sent, and its removals have come, so that the next claim goes on there. */
export async function noteSent(
  db: Queryable,
  store: Pick<ClaimedStore, 'id' | 'lease_epoch'>,
  row: OutboxRow,
  sentTo: number,
  removalPlace: object | null = null,
): Promise<void> {
  await db.query(
    {
      name: 'note_vectors_sent',
      text: `
update agentd.vector_outbox o set sent_to = $6, removal_place = $8::jsonb
  from agentd.vector_stores s
 where s.id = $1 and s.lease_epoch = $2 and o.store_id = s.id and o.source_id = $3 and o.workspace_id = $4
   and o.generation is not distinct from $5 and o.request = $7`,
    },
    [
      store.id,
      store.lease_epoch,
      row.source_id,
      row.workspace_id,
      row.generation,
      sentTo,
      row.request,
      removalPlace === null ? null : toJson(removalPlace),
    ],
  );
}

/** A source that needs more turns waits behind the others. */
export async function noteUnfinished(
  db: Queryable,
  store: Pick<ClaimedStore, 'id' | 'lease_epoch'>,
  row: Pick<OutboxRow, 'source_id' | 'workspace_id'>,
): Promise<void> {
  await db.query(
    {
      name: 'note_vectors_unfinished',
      text: `
update agentd.vector_outbox o set turn_at = agentd.now()
  from agentd.vector_stores s
 where s.id = $1 and s.lease_epoch = $2 and o.store_id = s.id and o.source_id = $3 and o.workspace_id = $4`,
    },
    [store.id, store.lease_epoch, row.source_id, row.workspace_id],
  );
}

/** All of a source's generation is there and nothing else: it may be searched there. What changed meanwhile stays to be done. */
export async function settleUpsert(
  db: Queryable,
  store: Pick<ClaimedStore, 'id' | 'lease_epoch'>,
  row: OutboxRow,
  chunks: number,
): Promise<void> {
  await db.query(
    {
      name: 'settle_vector_upsert',
      text: `
with own as (
  select s.id from agentd.vector_stores s where s.id = $1 and s.lease_epoch = $2 for key share
),
copied as (
  insert into agentd.vector_copies as v (store_id, source_id, workspace_id, generation, chunks, model, dimensions)
  select own.id, $3, $4, $5, $6, k.embedding_model, k.embedding_dimensions
    from own left join public.knowledge_sources k on k.id = $3 and k.generation = $5
  on conflict (store_id, source_id, workspace_id) do update
    set generation = excluded.generation, chunks = excluded.chunks, model = excluded.model, dimensions = excluded.dimensions,
        synced_at = excluded.synced_at
)
delete from agentd.vector_outbox o using own
 where o.store_id = own.id and o.source_id = $3 and o.workspace_id = $4 and o.request = $7`,
    },
    [store.id, store.lease_epoch, row.source_id, row.workspace_id, row.generation, chunks, row.request],
  );
}

/** Nothing of a source is there any more. */
export async function settleDelete(
  db: Queryable,
  store: Pick<ClaimedStore, 'id' | 'lease_epoch'>,
  row: Pick<OutboxRow, 'source_id' | 'workspace_id' | 'request'>,
): Promise<void> {
  await db.query(
    {
      name: 'settle_vector_delete',
      text: `
with own as (
  select s.id from agentd.vector_stores s where s.id = $1 and s.lease_epoch = $2 for key share
),
copies as (
  delete from agentd.vector_copies c using own where c.store_id = own.id and c.source_id = $3 and c.workspace_id = $4
)
delete from agentd.vector_outbox o using own
 where o.store_id = own.id and o.source_id = $3 and o.workspace_id = $4 and o.request = $5`,
    },
    [store.id, store.lease_epoch, row.source_id, row.workspace_id, row.request],
  );
}

/** A source that the store does not take waits, with the reason; the others go on. */
export async function postponeRow(
  db: Queryable,
  store: Pick<ClaimedStore, 'id' | 'lease_epoch'>,
  row: Pick<OutboxRow, 'source_id' | 'workspace_id' | 'request'>,
  again: { readonly inMs: number; readonly reasonCode: string; readonly reason: string },
): Promise<void> {
  await db.query(
    {
      name: 'postpone_vector_outbox_row',
      text: `
update agentd.vector_outbox o
   set attempts = least(o.attempts, 1000) + 1, retry_at = agentd.now() + $6::double precision * interval '1 millisecond',
       reason_code = $7, reason = left($8, 2000)
  from agentd.vector_stores s
 where s.id = $1 and s.lease_epoch = $2 and o.store_id = s.id and o.source_id = $3 and o.workspace_id = $4 and o.request = $5`,
    },
    [
      store.id,
      store.lease_epoch,
      row.source_id,
      row.workspace_id,
      row.request,
      again.inMs,
      again.reasonCode,
      again.reason,
    ],
  );
}

/** Days that a store which is no more keeps its key, where its vectors can't be deleted. */
const KEPT_DAYS = 7;

/** Forgets retired stores that are empty, and those that would not be emptied for a week. Returns the latter, whose vectors are left behind. */
export async function dropRetiredStores(db: Queryable): Promise<{ id: string; datastore_id: string }[]> {
  const rows = await db.query<{ id: string; datastore_id: string; was_left: boolean }>({
    name: 'drop_retired_vector_stores',
    text: `
with done as (
  select s.id, exists (select 1 from agentd.vector_outbox o where o.store_id = s.id) as was_left
    from agentd.vector_stores s
   where s.retired_at is not null
     and ${IS_FREE}
     and (s.retired_at < agentd.now() - interval '${KEPT_DAYS} days'
          or not exists (select 1 from agentd.vector_outbox o where o.store_id = s.id))
   order by s.retired_at
   limit 100
     for update skip locked
)
delete from agentd.vector_stores s using done where s.id = done.id returning s.id, s.datastore_id, done.was_left`,
  });
  return rows.filter((row) => row.was_left);
}

/** A source that a store is to hold, for the comparison. */
export type CopiedSource = {
  readonly source_id: string;
  readonly workspace_id: string;
  readonly generation: number;
};

/** The next sources of a store whose copies are settled: nothing of them is on its way, and the store has had time to show what it was sent. */
export function copiesAfter(
  db: Queryable,
  storeId: string,
  after: string | null,
  limit: number,
  settledSeconds: number,
): Promise<CopiedSource[]> {
  return db.query<CopiedSource>(
    {
      name: 'vector_copies_after',
      text: `
select c.source_id, c.workspace_id, c.generation
  from agentd.vector_copies c
 where c.store_id = $1 and ($2::uuid is null or c.source_id > $2) and c.synced_at <= agentd.now() - make_interval(secs => $4)
   and not exists (select 1 from agentd.vector_outbox o where o.store_id = c.store_id and o.source_id = c.source_id)
 order by c.source_id
 limit $3`,
    },
    [storeId, after, limit, settledSeconds],
  );
}

/** Namespaces in which a store has or awaits something. */
export async function namespacesOf(db: Queryable, storeId: string): Promise<string[]> {
  const rows = await db.query<{ workspace_id: string }>(
    {
      name: 'vector_namespaces',
      text: `
select c.workspace_id from agentd.vector_copies c where c.store_id = $1
union select s.workspace_id from agentd.vector_stores s where s.id = $1
order by 1`,
    },
    [storeId],
  );
  return rows.map((row) => row.workspace_id);
}

/** Asks for the deletion of sources that a store holds and that nothing knows of. Returns how many those are. */
export async function requestStrayDeletions(
  db: Queryable,
  store: Pick<ClaimedStore, 'id' | 'lease_epoch'>,
  workspaceId: string,
  sourceIds: readonly string[],
): Promise<number> {
  const rows = await db.query(
    {
      name: 'request_stray_vector_deletions',
      text: `
insert into agentd.vector_outbox (store_id, source_id, workspace_id, op, claimed_at)
select s.id, x.id, $3, 'delete', agentd.now()
  from agentd.vector_stores s, unnest($4::uuid[]) x (id)
 where s.id = $1 and s.lease_epoch = $2
   and not exists (select 1 from agentd.vector_copies c where c.store_id = s.id and c.source_id = x.id and c.workspace_id = $3)
on conflict do nothing
returning 1`,
    },
    [store.id, store.lease_epoch, workspaceId, sourceIds],
  );
  return rows.length;
}

/** Sources of a store that are looked at for one that nobody asked for. */
const SOURCES_AT_ONCE = 1_000;

/**
 * Asks for sources that a store is to hold, and that neither have a copy nor wait for one: those that were completed while the datastore
 * was pointed here are known to the transaction of neither. Looks at some, from where it was left; `last` null: at all.
 */
export async function requestForgotten(
  db: Queryable,
  store: Pick<ClaimedStore, 'id' | 'lease_epoch'>,
  after: string | null,
): Promise<{ readonly last: string | null; readonly chunks: number }> {
  const [row] = await db.query<{ last: string | null; chunks: number }>(
    {
      name: 'request_forgotten_vectors',
      text: `
with own as (
  select s.datastore_id, s.workspace_id from agentd.vector_stores s where s.id = $1 and s.lease_epoch = $2 and s.retired_at is null
),
looked_at as (
  select k.id, k.workspace_id, k.generation, k.chunk_count, k.processing_status
    from public.knowledge_sources k
   where k.datastore_id = (select own.datastore_id from own) and k.workspace_id = (select own.workspace_id from own)
     and k.id > coalesce($3::uuid, '00000000-0000-0000-0000-000000000000')
   order by k.id
   limit ${SOURCES_AT_ONCE}
),
asked as (
  insert into agentd.vector_outbox (store_id, source_id, workspace_id, op, generation)
  select $1, k.id, k.workspace_id, 'upsert', k.generation from looked_at k
   where k.processing_status <> 'archived' and k.chunk_count > 0
     and not exists (select 1 from agentd.vector_copies c
                      where (c.store_id, c.source_id, c.workspace_id) = ($1, k.id, k.workspace_id))
  on conflict do nothing
  returning source_id
)
select case when count(*) = ${SOURCES_AT_ONCE} then (array_agg(k.id order by k.id desc))[1] end as last,
       coalesce(sum(k.chunk_count) filter (where k.id in (select a.source_id from asked a)), 0)::integer as chunks
  from looked_at k`,
    },
    [store.id, store.lease_epoch, after],
  );
  return row ?? { last: null, chunks: 0 };
}

/** Notes how far a comparison has come and what it has found; at its end (`place` null) when it begins again. */
export async function noteReconciled(
  db: Queryable,
  store: Pick<ClaimedStore, 'id' | 'lease_epoch'>,
  place: object | null,
  found: { readonly missing: number; readonly extra: number },
  nextSeconds: number,
): Promise<void> {
  await db.query(
    {
      name: 'note_vectors_reconciled',
      text: `
update agentd.vector_stores s
   set reconcile_place = $3::jsonb, reconciled_at = case when $3::jsonb is null then agentd.now() else s.reconciled_at end,
       reconcile_at = agentd.now() + make_interval(secs => $6),
       missing_vectors = case when $4::bigint + $5::bigint > 0 then $4 else s.missing_vectors end,
       extra_vectors = case when $4::bigint + $5::bigint > 0 then $5 else s.extra_vectors end
 where s.id = $1 and s.lease_epoch = $2`,
    },
    [
      store.id,
      store.lease_epoch,
      place === null ? null : toJson(place),
      found.missing,
      found.extra,
      nextSeconds,
    ],
  );
}

/** A store that can be asked for what an agent may search, and of which sources it has the generation that is searched. */
export type SearchableStore = {
  readonly id: string;
  readonly datastore_id: string;
  readonly workspace_id: string;
  readonly config: unknown;
  readonly max_results: number;
  readonly sources: readonly string[];
  readonly generations: readonly number[];
};

/** A store is asked once what it was sent may be expected to be found: such stores are not consistent at once. */
export const SETTLED_SECONDS = 10;
/** Values that one filter of Pinecone's takes. */
const MOST_SOURCES = 10_000;

/** Indexes with vectors of a model that an agent may search. */
export function findSearchableStores(
  db: Queryable,
  search: {
    readonly workspaceId: string;
    readonly agentId: string;
    readonly model: string;
    readonly dimensions: number;
  },
): Promise<SearchableStore[]> {
  return db.query<SearchableStore>(
    {
      name: 'find_searchable_stores',
      text: `
select s.id, s.datastore_id, s.workspace_id, d.config, d.max_results, m.sources, m.generations
  from (
    select c.store_id, (array_agg(k.id order by k.id))[1:${MOST_SOURCES}] as sources,
           (array_agg(k.generation order by k.id))[1:${MOST_SOURCES}] as generations
      from agentd.vector_copies c
      join public.knowledge_sources k on k.id = c.source_id and k.generation = c.generation and k.workspace_id = c.workspace_id
     where c.workspace_id = $1 and c.model = $3 and c.dimensions = $4 and k.embedding_model = $3 and k.embedding_dimensions = $4
       and c.synced_at <= agentd.now() - make_interval(secs => ${SETTLED_SECONDS})
       and k.processing_status <> 'archived' and k.chunk_count > 0
       and not exists (select 1 from agentd.vector_outbox o where o.store_id = c.store_id and o.source_id = c.source_id)
       and (k.agent_id = $2
            or exists (select 1 from public.agent_datastores a
                        where a.agent_id = $2 and a.datastore_id = k.datastore_id and a.is_active)
            or exists (select 1 from public.agent_media_assignments a where a.agent_id = $2 and a.media_id = k.media_id))
     group by c.store_id) m
  join agentd.vector_stores s on s.id = m.store_id and s.kind = 'pinecone' and s.retired_at is null
  join public.datastores d on d.id = s.datastore_id
 where ${IS_RESTED}`,
    },
    [search.workspaceId, search.agentId, search.model, search.dimensions],
  );
}
