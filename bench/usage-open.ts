/**
 * The roll-up beside a transaction that somebody has forgotten: passes of a second's events each, while it is open and after its end. Nothing that passes
 * write and replace in that time can be cleaned away.
 */
import { setTimeout as wait } from 'node:timers/promises';
import { openDatabase } from '../src/db/database.ts';
import { usageDrift } from '../src/db/usage.ts';
import { withDatabase } from './support/database.ts';
import type { Line, Result } from './support/result.ts';
import { median, ms } from './support/stats.ts';
import { makeWorkspaces, pass, timed } from './usage.ts';

const MINUTES = Number(process.env.BENCH_OPEN_MINUTES ?? 10);
/** Events a second. */
const RATE = 2_000;
const BATCH = 50;
const WORKSPACES = 1_000;

export async function bench(): Promise<Result> {
  return withDatabase('usage_open', { migrated: true }, async ({ url, pool }) => {
    const db = openDatabase({ url, embedded: false, max: 4 });
    const open = await pool.connect();
    try {
      const ids = await makeWorkspaces(pool, WORKSPACES);
      const event = `insert into public.usage_events (workspace_id, metric, quantity) select i, 'tokens', 10 from unnest($1::uuid[]) i`;
      const seconds = async (count: number): Promise<number[]> => {
        const took: number[] = [];
        const from = performance.now();
        for (let second = 0; second < count; second++) {
          await Promise.all(
            Array.from({ length: 4 }, async () => {
              for (let n = 0; n < RATE / BATCH / 4; n++)
                await pool.query(event, [
                  Array.from({ length: BATCH }, () => ids[Math.floor(Math.random() * ids.length)]),
                ]);
            }),
          );
          took.push(await timed(() => pass(db)));
          await wait(Math.max(0, from + (second + 1) * 1000 - performance.now()));
        }
        return took;
      };
      const compared = Math.min(60, MINUTES * 30);
      await open.query('begin');
      await open.query(event, [[ids[0]]]);
      const during = (await seconds(MINUTES * 60)).slice(-compared);
      await open.query('commit');
      const after = (await seconds(compared + 10)).slice(-compared);
      const drift = await usageDrift(db, null);
      if (drift.length > 0) throw new Error(`${drift.length} sums differ from the events.`);
      const ratio = median(during) / median(after);
      const line: Line = {
        measured: `a pass over ${RATE.toLocaleString('en-US')} events while another transaction is open for ${MINUTES} minutes`,
        agentd: ms(median(during)),
        beside: `after its end: ${ms(median(after))}`,
        goal: '≤ 1.5 ×',
        met: ratio <= 1.5,
        note: `${ratio.toFixed(2)} ×; it has written an event; medians of its last ${compared} seconds and of as many after it; ${(RATE * MINUTES * 60).toLocaleString('en-US')} events since it began`,
      };
      return { bench: 'usage-open', lines: [line] };
    } finally {
      open.release();
      await db.close();
    }
  });
}
