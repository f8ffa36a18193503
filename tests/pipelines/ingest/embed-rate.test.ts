/** Under a limit of tokens a minute that several daemons share: nearly all of it is used, and nothing fails. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { learnLimit, PLACES_AHEAD, type PlaceGiven, takePlaces } from '../../../src/db/rate-limits.ts';
import { RateLimiter } from '../../../src/pipelines/agent/rate-limiter.ts';
import type { EmbeddingLanes } from '../../../src/pipelines/ingest/embed.ts';
import { createLogger } from '../../../src/telemetry/logger.ts';
import { startEmbeddingServer } from '../../peers/embedding-server.ts';
import { setDatabaseClock, type TestDatabase, testDatabase } from '../../support/database.ts';
import { handClock } from '../../support/hand-clock.ts';
import { chunks, lanesOf, type Run, serverEmbedder, start } from './embed-support.ts';

const STEP_MS = 200;
let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db.dispose());

test.each([
  ['tokens', { requestsPerMinute: 1_000, tokensPerMinute: 30_000 }, 0.85],
  // twelve requests in all: one that comes a moment late is a twelfth of them
  ['tokens and few requests', { requestsPerMinute: 12, tokensPerMinute: 30_000 }, 0.75],
] as const)('most of what is allowed in %s is used', async (_, limits, least) => {
  const clock = handClock();
  const tell = (): Promise<void> => setDatabaseClock(db, new Date(clock.now()));
  await tell();
  const server = await startEmbeddingServer({ limits, now: () => clock.elapsed() });
  try {
    let first: number | null = null;
    let last = 0;
    server.respond(() => {
      last = clock.elapsed();
      first ??= last;
      return {};
    });
    /** Statements under way: time does not pass meanwhile. */
    let asking = 0;
    const busy = async <T>(work: Promise<T>): Promise<T> => {
      asking++;
      try {
        return await work;
      } finally {
        asking--;
      }
    };
    const daemon = (): EmbeddingLanes =>
      lanesOf(clock, {
        limiter: new RateLimiter({
          clock,
          log: createLogger({ level: 'silent' }),
          takePlace: (asked) =>
            busy(takePlaces(db, [asked], PLACES_AHEAD)).then(([given]) => given as PlaceGiven),
          learn: (learnt) => busy(learnLimit(db, learnt)),
        }),
      });
    const embedder = serverEmbedder(server);
    const documents: Run[] = [daemon(), daemon()].flatMap((lanes, d) =>
      [0, 1].map((n) =>
        start({ lanes, embedder }, chunks(200, 90, `daemon ${d} document ${n}`), {
          workspaceId: WORKSPACES[n] as string,
        }),
      ),
    );
    let isOver = false;
    const all = Promise.all(documents.map(({ finished }) => finished)).finally(() => {
      isOver = true;
    });
    all.catch(() => {});
    while (!isOver) {
      for (let quiet = 0; quiet < 3; ) {
        await clock.settled();
        quiet = asking === 0 && server.open === 0 ? quiet + 1 : 0;
      }
      await clock.advance(STEP_MS);
      await tell();
    }
    const summaries = await all;
    expect(summaries.every(({ embedded, refused }) => embedded === 200 && refused === 0)).toBe(true);
    // what the bucket held at first is on neither side
    const used = server.limits.admittedTokens - limits.tokensPerMinute;
    const share = used / ((limits.tokensPerMinute / 60_000) * (last - (first as unknown as number)));
    expect(used).toBeGreaterThan(limits.tokensPerMinute);
    expect(share).toBeGreaterThanOrEqual(least);
    expect(server.limits.refused).toBeLessThan(60);
    expect(server.rejected).toEqual([]);
    if (process.env.SHOW_FIGURES)
      console.log({ share, refused: server.limits.refused, requests: server.limits.admitted });
  } finally {
    await server.close();
  }
});

const WORKSPACES = ['00000000-0000-4000-8000-00000000000a', '00000000-0000-4000-8000-00000000000b'];
