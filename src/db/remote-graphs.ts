/**
 * Passages in graphs of others, which name them by ids of their own: what was asked for, what has which id, and what is to go.
 *
 * Every write carries the store's claim. One of an older claim changes nothing.
 */
import type { Queryable } from './database.ts';
import type { ClaimedStore, OutboxRow } from './remote-vectors.ts';

type Claim = Pick<ClaimedStore, 'id' | 'lease_epoch'>;
type Source = Pick<OutboxRow, 'source_id' | 'workspace_id'>;

/** The store, if the claim still holds. */
const OWN =
  'own as (select s.id from agentd.vector_stores s where s.id = $1 and s.lease_epoch = $2 for key share)';

/** Characters of an episode: Zep takes 10,000, of which the heading may have some. */
const PART_CHARACTERS = 9_000;
/** Parts of one passage that are sent: the rest of one with a million characters is found by the ledger alone. */
const MOST_PARTS = 100;

const PARTS = `generate_series(0, least((char_length(c.content) - 1) / ${PART_CHARACTERS}, ${MOST_PARTS - 1})) p (part)`;
const PART_TEXT = `substr(c.content, p.part * ${PART_CHARACTERS} + 1, ${PART_CHARACTERS})`;
/** What is empty is no episode. */
const HAS_TEXT = `${PART_TEXT} ~ '\\S'`;

/** A graph is made, or about to be. False: the claim is lost. */
export async function noteGraph(db: Queryable, store: Claim, workspaceId: string): Promise<boolean> {
  const rows = await db.query(
    {
      name: 'note_zep_graph',
      text: `
with ${OWN},
noted as (insert into agentd.zep_graphs (store_id, workspace_id) select own.id, $3 from own on conflict do nothing)
select 1 from own`,
    },
    [store.id, store.lease_epoch, workspaceId],
  );
  return rows.length > 0;
}

/** Workspaces that have a graph in a store. */
export async function graphsOf(db: Queryable, storeId: string): Promise<string[]> {
  const rows = await db.query<{ workspace_id: string }>(
    {
      name: 'zep_graphs_of_store',
      text: 'select g.workspace_id from agentd.zep_graphs g where g.store_id = $1 order by 1',
    },
    [storeId],
  );
  return rows.map((row) => row.workspace_id);
}

/** A graph was found to be empty or new: what was in it is to be sent again. Returns how many episodes it had. */
export async function forgetEpisodesOfGraph(
  db: Queryable,
  store: Claim,
  workspaceId: string,
): Promise<number> {
  const [row] = await db.query<{ episodes: number }>(
    {
      name: 'forget_episodes_of_graph',
      text: `
with ${OWN},
gone as (
  delete from agentd.graph_episodes e using own where e.store_id = own.id and e.workspace_id = $3 returning e.source_id, e.episode_id
),
asked as (
  insert into agentd.vector_outbox as o (store_id, source_id, workspace_id, op, claimed_at)
  select distinct own.id, g.source_id, $3::uuid, 'upsert', agentd.now() from gone g cross join own
  on conflict (store_id, source_id, workspace_id) do update set request = o.request + 1
)
select count(*)::integer as episodes from gone g where g.episode_id is not null`,
    },
    [store.id, store.lease_epoch, workspaceId],
  );
  return row?.episodes ?? 0;
}

/** A graph is deleted, and all that was in it. */
export async function settleGraphDeleted(db: Queryable, store: Claim, workspaceId: string): Promise<void> {
  await db.query(
    {
      name: 'settle_zep_graph_deleted',
      text: `
with ${OWN},
episodes as (delete from agentd.graph_episodes e using own where e.store_id = own.id and e.workspace_id = $3),
copies as (delete from agentd.vector_copies c using own where c.store_id = own.id and c.workspace_id = $3),
graph as (delete from agentd.zep_graphs g using own where g.store_id = own.id and g.workspace_id = $3)
delete from agentd.vector_outbox o using own where o.store_id = own.id and o.workspace_id = $3`,
    },
    [store.id, store.lease_epoch, workspaceId],
  );
}

/** A passage, or a part of one, as a graph gets it. */
export type PartRow = {
  readonly chunk_index: number;
  readonly part: number;
  readonly content: string;
  readonly page: number | null;
  readonly heading: string;
  readonly title: string;
};

/** The next parts of a generation that are not there, written down as asked for, in their order; empty: all are, or the claim is lost. */
export function askForParts(
  db: Queryable,
  store: Claim,
  of: Source & { readonly generation: number },
  batch: string,
  from: number,
  limit: number,
): Promise<PartRow[]> {
  return db.query<PartRow>(
    {
      name: 'ask_for_parts',
      text: `
with ${OWN},
parts as (
  select c.chunk_index, p.part, ${PART_TEXT} as content, c.page, left(array_to_string(c.heading_path, ' › '), 500) as heading,
         left(k.name, 200) as title
    from own
    join public.knowledge_chunks c on c.source_id = $3 and c.generation = $5 and c.chunk_index >= $7 and c.workspace_id = $4
    join public.knowledge_sources k on k.id = c.source_id
   cross join lateral ${PARTS}
   where ${HAS_TEXT}
     and not exists (
       select 1 from agentd.graph_episodes e
        where e.store_id = own.id and e.source_id = $3 and e.workspace_id = $4 and e.generation = $5 and e.chunk_index = c.chunk_index
          and e.part = p.part)
   order by c.chunk_index, p.part
   limit $8
),
noted as (
  insert into agentd.graph_episodes (store_id, source_id, workspace_id, generation, chunk_index, part, batch)
  select own.id, $3, $4, $5, p.chunk_index, p.part, $6 from parts p cross join own
)
select * from parts p order by p.chunk_index, p.part`,
    },
    [store.id, store.lease_epoch, of.source_id, of.workspace_id, of.generation, batch, from, limit],
  );
}

/** Where an episode belongs. */
export type EpisodePlace = {
  readonly sourceId: string;
  readonly generation: number;
  readonly index: number;
  readonly part: number;
};

/** Writes down which ids parts have got. Returns the ids that were taken: another that says the same place is one too many. */
export async function noteEpisodes(
  db: Queryable,
  store: Claim,
  workspaceId: string,
  found: readonly { readonly place: EpisodePlace; readonly id: string }[],
): Promise<Set<string>> {
  const rows = await db.query<{ episode_id: string }>(
    {
      name: 'note_graph_episodes',
      text: `
with ${OWN}
update agentd.graph_episodes e set episode_id = f.id, is_refused = false, asked_at = agentd.now()
  from own, (
    select distinct on (u.source, u.generation, u.index, u.part) u.*
      from unnest($4::uuid[], $5::integer[], $6::integer[], $7::integer[], $8::uuid[]) u (source, generation, index, part, id)) f
 where e.store_id = own.id and e.workspace_id = $3 and e.source_id = f.source and e.generation = f.generation
   and e.chunk_index = f.index and e.part = f.part and e.episode_id is null
returning e.episode_id`,
    },
    [
      store.id,
      store.lease_epoch,
      workspaceId,
      found.map(({ place }) => place.sourceId),
      found.map(({ place }) => place.generation),
      found.map(({ place }) => place.index),
      found.map(({ place }) => place.part),
      found.map(({ id }) => id),
    ],
  );
  return new Set(rows.map((row) => row.episode_id));
}

/** Parts that the store does not take. */
export async function noteRefused(
  db: Queryable,
  store: Claim,
  of: Source,
  batch: string,
  part: Pick<PartRow, 'chunk_index' | 'part'>,
): Promise<void> {
  await db.query(
    {
      name: 'note_refused_part',
      text: `
with ${OWN}
update agentd.graph_episodes e set is_refused = true
  from own
 where e.store_id = own.id and e.source_id = $3 and e.workspace_id = $4 and e.batch = $5 and e.chunk_index = $6 and e.part = $7
   and e.episode_id is null`,
    },
    [store.id, store.lease_epoch, of.source_id, of.workspace_id, batch, part.chunk_index, part.part],
  );
}

/** Parts of a source that were refused are asked for again. */
export async function forgetRefused(db: Queryable, store: Claim, of: Source): Promise<void> {
  await db.query(
    {
      name: 'forget_refused_parts',
      text: `
with ${OWN}
delete from agentd.graph_episodes e using own
 where e.store_id = own.id and e.source_id = $3 and e.workspace_id = $4 and e.is_refused and e.episode_id is null`,
    },
    [store.id, store.lease_epoch, of.source_id, of.workspace_id],
  );
}

/** Requests for a source whose answer did not come. */
export async function unansweredBatches(db: Queryable, storeId: string, of: Source): Promise<string[]> {
  const rows = await db.query<{ batch: string }>(
    {
      name: 'unanswered_graph_batches',
      text: `
select distinct e.batch from agentd.graph_episodes e
 where e.store_id = $1 and e.source_id = $2 and e.workspace_id = $3 and e.episode_id is null and not e.is_refused`,
    },
    [storeId, of.source_id, of.workspace_id],
  );
  return rows.map((row) => row.batch);
}

/**
 * Takes back what was asked for and is not there. The request may arrive yet: the next comparison, which finds what is there twice, comes
 * after `compareSeconds` then. Whether there was any.
 */
export async function forgetUnanswered(
  db: Queryable,
  store: Claim,
  of: Source,
  batch: string,
  compareSeconds: number,
): Promise<boolean> {
  const rows = await db.query(
    {
      name: 'forget_unanswered_parts',
      text: `
with own as (
  update agentd.vector_stores s set reconcile_at = least(s.reconcile_at, agentd.now() + make_interval(secs => $6))
   where s.id = $1 and s.lease_epoch = $2
  returning s.id
)
delete from agentd.graph_episodes e using own
 where e.store_id = own.id and e.source_id = $3 and e.workspace_id = $4 and e.batch = $5 and e.episode_id is null and not e.is_refused
returning 1`,
    },
    [store.id, store.lease_epoch, of.source_id, of.workspace_id, batch, compareSeconds],
  );
  return rows.length > 0;
}

/** The next episodes of a source that are not, or no longer, of a passage of the generation; null: all that it has. */
export async function staleEpisodes(
  db: Queryable,
  storeId: string,
  of: Source,
  generation: number | null,
  limit: number,
): Promise<string[]> {
  const rows = await db.query<{ episode_id: string }>(
    {
      name: 'stale_graph_episodes',
      text: `
select e.episode_id
  from agentd.graph_episodes e
 where e.store_id = $1 and e.source_id = $2 and e.workspace_id = $3 and e.episode_id is not null
   and not exists (
     select 1 from public.knowledge_chunks c
      where e.generation = $4 and c.source_id = e.source_id and c.generation = e.generation and c.chunk_index = e.chunk_index)
 limit $5`,
    },
    [storeId, of.source_id, of.workspace_id, generation, limit],
  );
  return rows.map((row) => row.episode_id);
}

/** Episodes were deleted. */
export async function forgetEpisodes(db: Queryable, store: Claim, ids: readonly string[]): Promise<void> {
  await db.query(
    {
      name: 'forget_graph_episodes',
      text: `
with ${OWN}
delete from agentd.graph_episodes e using own where e.store_id = own.id and e.episode_id = any ($3::uuid[])`,
    },
    [store.id, store.lease_epoch, ids],
  );
}

/** What of a source is there, once all is that can be. */
export async function countEpisodes(
  db: Queryable,
  storeId: string,
  of: Source & { readonly generation: number },
): Promise<{ readonly chunks: number; readonly refused: number }> {
  const [row] = await db.query<{ chunks: number; refused: number }>(
    {
      name: 'count_graph_episodes',
      text: `
select coalesce(max(e.chunk_index) + 1, 0) as chunks, (count(*) filter (where e.is_refused))::integer as refused
  from agentd.graph_episodes e
 where e.store_id = $1 and e.source_id = $2 and e.workspace_id = $3 and e.generation = $4`,
    },
    [storeId, of.source_id, of.workspace_id, of.generation],
  );
  return row ?? { chunks: 0, refused: 0 };
}

/** Drops what is left of a source that nothing is to be of: rows without an id. */
export async function forgetSource(db: Queryable, store: Claim, of: Source): Promise<void> {
  await db.query(
    {
      name: 'forget_graph_source',
      text: `
with ${OWN}
delete from agentd.graph_episodes e using own
 where e.store_id = own.id and e.source_id = $3 and e.workspace_id = $4 and e.episode_id is null`,
    },
    [store.id, store.lease_epoch, of.source_id, of.workspace_id],
  );
}
