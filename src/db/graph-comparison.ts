/** The comparison of a graph with what is known of it. */
import type { Queryable } from './database.ts';
import type { EpisodePlace } from './remote-graphs.ts';
import type { ClaimedStore } from './remote-vectors.ts';

type Claim = Pick<ClaimedStore, 'id' | 'lease_epoch'>;

const OWN =
  'own as (select s.id from agentd.vector_stores s where s.id = $1 and s.lease_epoch = $2 for key share)';

/** The next episodes that a graph has to have: those that it had time to show, in the order of their ids. */
export async function knownEpisodesAfter(
  db: Queryable,
  storeId: string,
  workspaceId: string,
  after: string | null,
  limit: number,
  settledSeconds: number,
): Promise<string[]> {
  const rows = await db.query<{ episode_id: string }>(
    {
      name: 'known_graph_episodes_after',
      text: `
select e.episode_id
  from agentd.graph_episodes e
 where e.store_id = $1 and e.workspace_id = $2 and e.episode_id is not null and ($3::uuid is null or e.episode_id > $3)
   and e.asked_at <= agentd.now() - make_interval(secs => $5)
 order by e.episode_id
 limit $4`,
    },
    [storeId, workspaceId, after, limit, settledSeconds],
  );
  return rows.map((row) => row.episode_id);
}

/** Episodes are gone without us: their sources are to be sent again, as far as they are missing. */
export async function noteMissingEpisodes(
  db: Queryable,
  store: Claim,
  workspaceId: string,
  ids: readonly string[],
): Promise<void> {
  await db.query(
    {
      name: 'note_missing_graph_episodes',
      text: `
with ${OWN},
gone as (
  delete from agentd.graph_episodes e using own
   where e.store_id = own.id and e.workspace_id = $3 and e.episode_id = any ($4::uuid[])
  returning e.source_id
)
insert into agentd.vector_outbox as o (store_id, source_id, workspace_id, op, claimed_at)
select distinct own.id, g.source_id, $3::uuid, 'upsert', agentd.now() from gone g cross join own
on conflict (store_id, source_id, workspace_id) do update set request = o.request + 1`,
    },
    [store.id, store.lease_epoch, workspaceId, ids],
  );
}

/** Which of the episodes that a graph lists nothing knows of, and nothing waits for. Empty where the claim is lost. */
export async function strayEpisodes(
  db: Queryable,
  store: Claim,
  workspaceId: string,
  listed: readonly { readonly id: string; readonly place: EpisodePlace | null }[],
): Promise<string[]> {
  const rows = await db.query<{ id: string }>(
    {
      name: 'stray_graph_episodes',
      text: `
with ${OWN}
select l.id
  from own, unnest($4::uuid[], $5::uuid[], $6::integer[], $7::integer[], $8::integer[]) l (id, source, generation, index, part)
 where not exists (select 1 from agentd.graph_episodes e where e.store_id = own.id and e.episode_id = l.id)
   and not exists (
     select 1 from agentd.graph_episodes e
      where e.store_id = own.id and e.workspace_id = $3 and e.source_id = l.source and e.generation = l.generation
        and e.chunk_index = l.index and e.part = l.part and e.episode_id is null and not e.is_refused)`,
    },
    [
      store.id,
      store.lease_epoch,
      workspaceId,
      listed.map(({ id }) => id),
      listed.map(({ place }) => place?.sourceId ?? null),
      listed.map(({ place }) => place?.generation ?? null),
      listed.map(({ place }) => place?.index ?? null),
      listed.map(({ place }) => place?.part ?? null),
    ],
  );
  return rows.map((row) => row.id);
}
