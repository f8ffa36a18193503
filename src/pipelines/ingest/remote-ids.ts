/**
 * How a chunk is called in a store.
 *
 * Store, source, generation and place. The store comes first, so that two datastores which name one index never touch each other's vectors,
 * and then the source, whose vectors a listing finds by their prefix. With the generation in it, the vectors of a new generation stand
 * beside the old ones and replace none: what is asked for is one generation (`version`), and it is asked for only when it is
 * complete. By the hash of the content a passage that stays would keep its id, and be of both.
 */
import type { VectorRow } from '../../db/remote-vectors.ts';
import type { StoredVector } from '../../providers/pinecone.ts';

export type VectorPlace = { readonly sourceId: string; readonly generation: number; readonly index: number };

const ID = /^([0-9a-f-]{36})#([0-9a-f-]{36})#(\d{1,10})#(\d{1,10})$/;
/** PostgreSQL's integer. */
const LARGEST = 2 ** 31 - 1;

export function vectorId(storeId: string, { sourceId, generation, index }: VectorPlace): string {
  return `${storeId}#${sourceId}#${generation}#${index}`;
}

/** Of all vectors of a store, or of one source in it. */
export function idPrefix(storeId: string, sourceId?: string): string {
  return sourceId === undefined ? `${storeId}#` : `${storeId}#${sourceId}#`;
}

/** Null: not one of this store's, or not written by us. */
export function placeOf(storeId: string, id: string): VectorPlace | null {
  const [, store, sourceId = '', generation, index] = ID.exec(id) ?? [];
  if (store !== storeId || !isUuid(sourceId)) return null;
  const place = { sourceId, generation: Number(generation), index: Number(index) };
  return place.generation <= LARGEST && place.index <= LARGEST ? place : null;
}

/** The source that an id names, however it goes on. */
export function sourceOf(storeId: string, id: string): string | null {
  if (!id.startsWith(idPrefix(storeId))) return null;
  const source = id.slice(storeId.length + 1).split('#')[0] ?? '';
  return isUuid(source) ? source : null;
}

function isUuid(text: string): boolean {
  return /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(text);
}

/** What a search filters by. */
export function versionOf(sourceId: string, generation: number): string {
  return `${sourceId}/${generation}`;
}

/** A chunk as it is sent. */
export function storedVector(
  storeId: string,
  of: { readonly source_id: string; readonly workspace_id: string; readonly generation: number },
  row: VectorRow,
): StoredVector {
  const place = { sourceId: of.source_id, generation: of.generation, index: row.chunk_index };
  return {
    id: vectorId(storeId, place),
    values: JSON.parse(row.embedding) as number[],
    metadata: {
      workspace: of.workspace_id,
      source: of.source_id,
      document: row.title,
      chunk: row.chunk_index,
      generation: of.generation,
      version: versionOf(of.source_id, of.generation),
      ...(row.page === null ? {} : { page: row.page }),
      ...(row.heading === '' ? {} : { heading: row.heading }),
    },
  };
}

/** Where an episode of a graph belongs: `part` counts those of one passage. */
export type EpisodePlace = VectorPlace & { readonly part: number };

const EPISODE = /^agentd#(.+)#(\d{1,6})$/;

/** What an episode says of itself, since a graph gives it an id of its own. */
export function episodeLabel(storeId: string, place: EpisodePlace): string {
  return `agentd#${vectorId(storeId, place)}#${place.part}`;
}

/** Null: not one of this store's, or not written by us. */
export function episodePlaceOf(storeId: string, label: string): EpisodePlace | null {
  const [, id = '', part] = EPISODE.exec(label) ?? [];
  const place = placeOf(storeId, id);
  return place === null ? null : { ...place, part: Number(part) };
}

/** Whether an episode says that it is of this store's, wherever it belongs. */
export function isLabelOf(storeId: string, label: string): boolean {
  return label.startsWith(`agentd#${idPrefix(storeId)}`);
}
