/**
 * Embeds documents as a daemon does, under the limits that all daemons share. Its argument is JSON: the database, the server, and how many
 * documents of how many passages. Prints how they ended.
 */
import { systemClock } from '../../src/clock.ts';
import { openDatabase } from '../../src/db/database.ts';
import { learnLimit, PLACES_AHEAD, type PlaceGiven, takePlaces } from '../../src/db/rate-limits.ts';
import { RateLimiter } from '../../src/pipelines/agent/rate-limiter.ts';
import type { DocumentChunk } from '../../src/pipelines/ingest/document.ts';
import { EmbeddingLanes, embedChunks } from '../../src/pipelines/ingest/embed.ts';
import { loadEmbeddingCatalog } from '../../src/providers/embedding-models.ts';
import { openAiEmbedder } from '../../src/providers/embeddings.ts';
import { createLogger } from '../../src/telemetry/logger.ts';

export type DocumentsAsked = {
  readonly databaseUrl: string;
  readonly serverUrl: string;
  readonly name: string;
  readonly documents: number;
  readonly passages: number;
};
export type DocumentsEnded = {
  readonly completed: number;
  readonly failed: number;
  readonly passages: number;
};

const asked = JSON.parse(process.argv[2] ?? '{}') as DocumentsAsked;
const db = openDatabase({ url: asked.databaseUrl, embedded: false, max: 4 });
const model = 'text-embedding-3-small';
const embedder = openAiEmbedder({
  model,
  dimensions: 256,
  known: loadEmbeddingCatalog().model(model),
  apiKey: 'bench-key',
  baseUrl: asked.serverUrl,
});
const lanes = new EmbeddingLanes({
  clock: systemClock,
  limiter: new RateLimiter({
    clock: systemClock,
    log: createLogger({ level: 'warn' }),
    takePlace: async (one) => (await takePlaces(db, [one], PLACES_AHEAD))[0] as PlaceGiven,
    learn: (learnt) => learnLimit(db, learnt),
  }),
});

function passages(document: string): DocumentChunk[] {
  return Array.from({ length: asked.passages }, (_, index) => {
    const text = `${document} passage ${index}${' word'.repeat(190)}`;
    return {
      index,
      start: 0,
      end: text.length,
      content: text,
      page: null,
      headingPath: [],
      embedText: text,
      tokens: 200,
    };
  });
}

const signal = new AbortController().signal;
const workspace = (n: number): string => `00000000-0000-4000-8000-${String(n % 5).padStart(12, '0')}`;
// what a daemon's pool would do, a statement of its own a batch
const stored = async (): Promise<void> => void (await db.query('select 1'));
// timers of the clock do not keep the process alive
const alive = setInterval(() => {}, 1_000);
const ends = await Promise.allSettled(
  Array.from({ length: asked.documents }, (_, n) =>
    embedChunks({ lanes, embedder }, passages(`${asked.name} ${n}`), {
      workspaceId: workspace(n),
      signal,
      onEmbedded: stored,
    }),
  ),
);
clearInterval(alive);
const done = ends.filter((end) => end.status === 'fulfilled');
console.log(
  JSON.stringify({
    completed: done.length,
    failed: ends.length - done.length,
    passages: done.reduce((sum, end) => sum + end.value.embedded, 0),
  } satisfies DocumentsEnded),
);
await db.close();
