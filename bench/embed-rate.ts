/**
 * Embeddings under a rate limit: how much of the tokens a minute that a model allows do three processes use that embed documents?
 *
 * The server refills its buckets continuously and answers 429 with headers, as OpenAI does. The bucket is full at first; what it held
 * then is subtracted from both sides. No document may fail.
 */
import type { RateLimits } from '../tests/peers/rate-limits.ts';
import { benchPath, Child } from './support/child.ts';
import { withDatabase } from './support/database.ts';
import type { DocumentsAsked, DocumentsEnded } from './support/embedding-documents-child.ts';
import type { LimitedModel, LimitedStats } from './support/limited-model-child.ts';
import type { Line, Result } from './support/result.ts';

const PROCESSES = 3;
const DOCUMENTS = 10;
const PASSAGES = Number(process.env.BENCH_PASSAGES ?? 150);
const ANSWER_MS = 300;
const GOAL = 0.85;
const LIMITS: RateLimits = { requestsPerMinute: 500, tokensPerMinute: 400_000 };

export async function bench(): Promise<Result> {
  return { bench: 'embed-rate', lines: [await measure()] };
}

async function measure(): Promise<Line> {
  return withDatabase('embed_rate', { migrated: true }, async ({ url }) => {
    const server = new Child(
      [benchPath('support/limited-embeddings-child.ts'), JSON.stringify({ ...LIMITS, delayMs: ANSWER_MS })],
      {},
    );
    const children: Child[] = [];
    try {
      const { url: serverUrl } = await server.json<LimitedModel>();
      for (let n = 0; n < PROCESSES; n++) {
        const asked: DocumentsAsked = {
          databaseUrl: url,
          serverUrl,
          name: `process ${n}`,
          documents: DOCUMENTS,
          passages: PASSAGES,
        };
        children.push(
          new Child([benchPath('support/embedding-documents-child.ts'), JSON.stringify(asked)], {}),
        );
      }
      const ends = await Promise.all(children.map((child) => child.json<DocumentsEnded>()));
      server.send('stats');
      const stats = await server.json<LimitedStats>();
      const perMinute = LIMITS.tokensPerMinute as number;
      const share = (stats.admittedTokens - perMinute) / ((perMinute / 60_000) * stats.ms);
      const failed = ends.reduce((sum, end) => sum + end.failed, 0);
      const passages = ends.reduce((sum, end) => sum + end.passages, 0);
      return {
        measured: `tokens allowed that were used: ${perMinute.toLocaleString('en-US')} a minute`,
        agentd: `${share.toFixed(3)}; ${stats.refused} × 429; ${failed} documents failed`,
        beside: null,
        goal: `≥ ${GOAL}, no document fails`,
        met: share >= GOAL && failed === 0,
        note: `${passages} passages of 200 tokens in ${stats.admitted} requests and ${(stats.ms / 1000).toFixed(0)} s, the first bucket left out; ${PROCESSES} processes, each ${DOCUMENTS} documents of five workspaces, one key`,
      };
    } finally {
      await Promise.all([server, ...children].map((child) => child.stop()));
    }
  });
}
