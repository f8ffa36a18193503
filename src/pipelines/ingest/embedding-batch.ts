/** Passages that go in one request. */
import type { DocumentChunk } from './document.ts';

/** What a request may hold. */
export type BatchLimits = { readonly maxItems: number; readonly maxTokens: number };

export type Batch = {
  readonly chunks: readonly DocumentChunk[];
  /** Each different text once: a document that says the same on every page pays for it once a request. */
  readonly texts: readonly string[];
  /** For each chunk, its text's place among `texts`. */
  readonly places: readonly number[];
  /** Of the texts, as we count them. */
  readonly tokens: number;
  /** Tries that the provider failed. */
  failures: number;
  /** The provider has refused it for its limit, and it goes before newcomers. */
  returns: boolean;
  /** When the first try of it, or of the larger one it was cut from, failed; null: none has. Milliseconds of elapsed(). */
  failedAt: number | null;
  /** It is cut from one that failed: to find the text that is the reason, not to be tried many times. */
  isolates: boolean;
  /** The pieces that it was cut with from one that failed; null: it was not. */
  group: Group | null;
};

/** Pieces of one batch that failed. When all of them pass, no text of it was the reason but how much it was. */
export type Group = {
  /** Pieces that have not passed yet. */
  left: number;
  /** Of the largest piece. */
  items: number;
  tokens: number;
  /** Whether the provider spoke of tokens. */
  readonly isTooLong: boolean;
};

type History = Partial<Pick<Batch, 'failures' | 'failedAt' | 'isolates' | 'returns' | 'group'>>;

export function makeBatch(chunks: readonly DocumentChunk[], history: History = {}): Batch {
  const seen = new Map<string, number>();
  const places: number[] = [];
  let tokens = 0;
  for (const chunk of chunks) {
    let place = seen.get(chunk.embedText);
    if (place === undefined) {
      place = seen.size;
      seen.set(chunk.embedText, place);
      tokens += chunk.tokens;
    }
    places.push(place);
  }
  return {
    chunks,
    texts: [...seen.keys()],
    places,
    tokens,
    failures: 0,
    returns: false,
    failedAt: null,
    isolates: false,
    group: null,
    ...history,
  };
}

/** How many of the first chunks one request may hold; at least one, also if that is too many tokens. */
export function fitting(chunks: readonly DocumentChunk[], limits: BatchLimits): number {
  let tokens = 0;
  let count = 0;
  for (const chunk of chunks) {
    tokens += chunk.tokens;
    if (count > 0 && (count >= limits.maxItems || tokens > limits.maxTokens)) break;
    count++;
  }
  return count;
}

/** Of a batch that is to be sent again, what one request may hold, and the rest. */
export function splitToFit(batch: Batch, limits: BatchLimits): readonly [Batch, Batch | null] {
  const count = fitting(batch.chunks, limits);
  if (count >= batch.chunks.length || batch.texts.length === 1) return [batch, null];
  if (batch.group) batch.group.left++;
  return [
    makeBatch(batch.chunks.slice(0, count), historyOf(batch)),
    makeBatch(batch.chunks.slice(count), historyOf(batch)),
  ];
}

/** The halves of a failed batch, by its different texts. @param isTooLong whether the provider spoke of too many tokens */
export function bisect(batch: Batch, isTooLong: boolean): readonly Batch[] {
  const middle = Math.ceil(batch.texts.length / 2);
  const halves = [ofPlaces(batch, (place) => place < middle), ofPlaces(batch, (place) => place >= middle)];
  const group: Group = {
    left: halves.length,
    items: middle,
    tokens: Math.max(...halves.map(({ tokens }) => tokens)),
    isTooLong,
  };
  for (const half of halves) half.group = group;
  return halves;
}

/**
 * A few single texts from all over a failed batch, and then the rest: whether it is a text or everything that is refused shows
 * before the batch is taken apart.
 */
export function probe(batch: Batch, count: number): readonly Batch[] {
  if (batch.texts.length <= count) return batch.texts.map((_, i) => ofPlaces(batch, (place) => place === i));
  const probes = Array.from({ length: count }, (_, i) => Math.floor((i * batch.texts.length) / count));
  const probed = new Set(probes);
  return [
    ...probes.map((i) => ofPlaces(batch, (place) => place === i)),
    ofPlaces(batch, (place) => !probed.has(place)),
  ];
}

function ofPlaces(batch: Batch, wanted: (place: number) => boolean): Batch {
  return makeBatch(
    batch.chunks.filter((_, i) => wanted(batch.places[i] as number)),
    { ...historyOf(batch), failures: 0, isolates: true, group: null },
  );
}

function historyOf({ failures, failedAt, isolates, returns, group }: Batch): History {
  return { failures, failedAt, isolates, returns, group };
}
