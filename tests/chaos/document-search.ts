/** A client that searches one sentence again and again while the document behind it is replaced. */
import { setTimeout as pause } from 'node:timers/promises';
import type { Database } from '../../src/db/database.ts';
import { searchChunks } from '../../src/db/knowledge.ts';
import { vectorOf } from '../peers/embedding-server.ts';
import type { Platform } from '../support/platform.ts';
import { MODEL } from './documents.ts';

export type Searched = {
  /** Searches that found the sentence of the first edition, of the second, and of neither or both. */
  readonly first: number;
  readonly second: number;
  readonly wrong: number;
  /** Searches that found the first edition after the second one. */
  readonly back: number;
  /** From the end of one search to the end of the next, in milliseconds. */
  readonly longestMs: number;
};

/** Between two searches, in milliseconds: others want the database, too. */
const REST_MS = 50;

/** @param passage the text of the first edition's passage, as it was embedded: what its query's vector is made of */
export function searchAllTheWhile(
  db: Database,
  platform: Platform,
  passage: string,
): { stop(): Promise<Searched> } {
  const searched = { first: 0, second: 0, wrong: 0, back: 0, longestMs: 0 };
  const vectors = [{ ...MODEL, vector: vectorOf(passage, MODEL.dimensions) }];
  let isOver = false;
  const loop = (async (): Promise<void> => {
    let last = performance.now();
    // one more after the end, which sees how it has ended
    for (let left = 1; left >= 0; left -= isOver ? 1 : 0) {
      const found = await searchChunks(db, {
        workspaceId: platform.workspaceId,
        agentId: platform.agentId,
        query: 'price of a zebrafinch in euros',
        limit: 3,
        vectors,
      });
      const now = performance.now();
      searched.longestMs = Math.max(searched.longestMs, now - last);
      last = now;
      const holds = (sentence: string): boolean => found.some(({ content }) => content.includes(sentence));
      const [isFirst, isSecond] = [holds('zebrafinch is 10 euros'), holds('zebrafinch is 20 euros')];
      if (isFirst === isSecond) searched.wrong++;
      else if (isSecond) searched.second++;
      else {
        searched.first++;
        if (searched.second > 0) searched.back++;
      }
      await pause(REST_MS);
    }
  })();
  // it is awaited at the end; until then a failure must not be anybody else's
  loop.catch(() => {});
  return {
    async stop() {
      isOver = true;
      await loop;
      return searched;
    },
  };
}
