/** Workers that are killed in the middle of embedding; `npm run chaos -- --documents 20` is the same with more kills. */
import { describe, expect, test } from 'vitest';
import { brokenByKills } from '../chaos/document-report.ts';
import { killWhileEmbedding } from '../chaos/documents.ts';
import { onServer, testDatabase } from '../support/database.ts';

/** More than a document may lose its worker without getting on. */
const KILLS = 6;
describe.skipIf(!onServer)('server-only: workers that are killed in the middle of embedding', () => {
  test('the old edition answers throughout, what is paid again was in flight, the end is that of an undisturbed run', {
    timeout: 600_000,
  }, async () => {
    const db = await testDatabase();
    try {
      const report = await killWhileEmbedding(db, { kills: KILLS, say: () => {} });
      expect(brokenByKills(report)).toEqual([]);
      expect(report.kills).toHaveLength(KILLS);
      for (const kill of report.kills) expect(kill.stored, 'in the middle').toBeLessThan(report.chunks);
      expect(report.searched.first).toBeGreaterThan(KILLS);
    } finally {
      await db.dispose();
    }
  });
});
