/** The sums of usage are the committed events, exactly: beside writers that roll back, one that takes long, and daemons that are killed. */
import { randomUUID } from 'node:crypto';
import pg from 'pg';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { usageDrift } from '../../src/db/usage.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { type DaemonProcess, startDaemonProcess } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform } from '../support/platform.ts';
import { until } from '../support/runs.ts';

const WRITERS = 16;
/** Transactions of each writer. */
const EACH = 60;
const ZONES = ['Asia/Kolkata', 'America/St_Johns', 'Pacific/Apia', 'UTC'] as const;
const METRICS = ['message', 'tokens', 'task_run', 'tool_call'] as const;
const DAY = 86_400_000;

let db: TestDatabase;
let model: ModelServer;
beforeEach(async () => {
  db = await testDatabase();
  model = await startModelServer();
});
afterEach(async () => {
  await model.close();
  await db.dispose();
});

/** A committed event, as the writer knows it. */
type Fact = {
  readonly workspace: string;
  readonly metric: string;
  readonly quantity: number;
  readonly cost: number;
  readonly at: Date;
};

describe.skipIf(!onServer)(
  'server-only: sixteen writers, one long transaction, three daemons that are killed',
  () => {
    test('the sums equal the committed events and the recomputation', async () => {
      const workspaces: string[] = [];
      const zones = new Map<string, string>();
      for (const zone of ZONES) {
        const { workspaceId } = await makePlatform(db, { shared: true });
        await db.query('update public.workspaces set timezone = $2 where id = $1', [workspaceId, zone]);
        workspaces.push(workspaceId);
        zones.set(workspaceId, zone);
      }
      const facts: Fact[] = [];
      const keys: { readonly workspace: string; readonly key: string }[] = [];
      let refused = 0;

      const pool = new pg.Pool({ connectionString: db.url, max: WRITERS + 1 });
      /** One transaction of 1 to 12 events, a fifth of them with a key that was used before. Facts count once it has committed. */
      const write = async (
        client: pg.PoolClient,
        end: () => Promise<'commit' | 'rollback'>,
      ): Promise<void> => {
        const mine: Fact[] = [];
        const mineKeys: typeof keys = [];
        await client.query('begin');
        for (let i = Math.ceil(Math.random() * 12); i > 0; i--) {
          const used = Math.random() < 0.2 ? pick(keys) : undefined;
          const fact: Fact = {
            workspace: used?.workspace ?? (pick(workspaces) as string),
            metric: pick(METRICS) as string,
            quantity: 1 + Math.floor(Math.random() * 100),
            cost: Math.floor(Math.random() * 50),
            at: new Date(Date.now() - (Math.random() < 0.2 ? Math.random() * 35 * DAY : 0)),
          };
          const key = used?.key ?? randomUUID();
          const result = await client.query('select agentd.record_usage($1, $2, $3, $4, $5, $6) as fresh', [
            fact.workspace,
            fact.metric,
            fact.quantity,
            key,
            fact.cost,
            fact.at,
          ]);
          if (result.rows[0].fresh) {
            mine.push(fact);
            mineKeys.push({ workspace: fact.workspace, key });
          } else refused++;
        }
        const how = await end();
        await client.query(how);
        if (how === 'commit') {
          facts.push(...mine);
          keys.push(...mineKeys);
        }
      };

      const daemons: DaemonProcess[] = [];
      const start = async () => daemons.push(await startDaemonProcess(db, model));
      try {
        const release = Promise.withResolvers<void>();
        const long = await pool.connect();
        const written = Promise.withResolvers<void>();
        const longest = write(long, () => {
          written.resolve();
          return release.promise.then(() => 'commit');
        });
        await written.promise;
        await Promise.all([start(), start(), start()]);

        let done = 0;
        const writers = Array.from({ length: WRITERS }, async () => {
          for (let i = 0; i < EACH; i++) {
            const client = await pool.connect();
            try {
              await write(client, async () => (Math.random() < 0.3 ? 'rollback' : 'commit'));
            } finally {
              client.release();
            }
            done++;
          }
        });
        // Each time a fifth of the writing is done, one is killed, wherever it is, and another comes.
        const killer = (async () => {
          for (let fifth = 1; fifth < 5; fifth++) {
            await until(`${fifth} fifths are written`, () => done >= (WRITERS * EACH * fifth) / 5, 60_000);
            await daemons.shift()?.kill();
            await start();
          }
        })();
        await Promise.all([...writers, killer]);
        expect(refused).toBeGreaterThan(50);

        const summedUp = async () => {
          const [row] = await db.query<{ sum: number }>(
            'select coalesce(sum(quantity), 0) as sum from public.usage_quarter_hours',
          );
          return Number(row?.sum);
        };
        // everything but what is still open
        const before = facts.reduce((sum, fact) => sum + fact.quantity, 0);
        await until('all that is committed is summed up', async () => (await summedUp()) === before);
        release.resolve();
        await longest;
        long.release();
        const all = facts.reduce((sum, fact) => sum + fact.quantity, 0);
        expect(all).toBeGreaterThan(before);
        await until('what took long is summed up', async () => (await summedUp()) === all);
        await until(
          'nothing is on its way',
          async () => (await db.query('select 1 from agentd.usage_deltas limit 1')).length === 0,
        );
      } finally {
        await pool.end();
        await Promise.all(daemons.map((daemon) => daemon.kill()));
      }

      expect(await usageDrift(db, null)).toEqual([]);
      const found = await db.query<{ key: string; quantity: number; cost: number }>(
        `select workspace_id || ' ' || metric || ' ' || to_char(bucket at time zone 'UTC', 'YYYY-MM-DD HH24:MI') as key, quantity, cost_micros as cost
         from public.usage_quarter_hours`,
      );
      expect(new Map(found.map((row) => [row.key, [row.quantity, row.cost]]))).toEqual(byQuarter(facts));

      // By month of each zone, without what came after its month was closed and is a correction elsewhere.
      const months = await db.query<{
        key: string;
        messages: number;
        tokens: number;
        runs: number;
        calls: number;
        cost: number;
      }>(
        `select u.workspace_id || ' ' || to_char(u.month, 'YYYY-MM') as key, ${(
          [
            ['messages', 'message'],
            ['tokens_used', 'tokens'],
            ['task_runs', 'task_run'],
            ['tool_calls', 'tool_call'],
          ] as const
        )
          .map(
            ([column, metric]) =>
              `(u.${column} + ${corrected('quantity', metric)})::float8 as ${NAMES[metric]}`,
          )
          .join(', ')}, (u.cost_micros + ${corrected('cost_micros', null)})::float8 as cost
         from public.workspace_usage u where exists (select 1 from public.usage_events e where e.workspace_id = u.workspace_id)`,
      );
      expect(new Map(months.map(({ key, ...sums }) => [key, sums]))).toEqual(byMonth(facts, zones));
    });
  },
);

const NAMES = { message: 'messages', tokens: 'tokens', task_run: 'runs', tool_call: 'calls' } as const;

/** What a period would have without corrections: back what it gave away, without what it was given. */
function corrected(column: string, metric: string | null): string {
  const sum = (time: string): string =>
    `coalesce((select sum(c.${column}) from agentd.usage_corrections c where c.workspace_id = u.workspace_id
       and c.${time} >= u.period_start and c.${time} < u.period_end ${metric ? `and c.metric = '${metric}'` : ''}), 0)`;
  return `${sum('occurred_at')} - ${sum('booked_at')}`;
}

function byQuarter(facts: readonly Fact[]): Map<string, number[]> {
  const sums = new Map<string, number[]>();
  for (const fact of facts) {
    const quarter = new Date(Math.floor(fact.at.getTime() / 900_000) * 900_000)
      .toISOString()
      .slice(0, 16)
      .replace('T', ' ');
    const key = `${fact.workspace} ${fact.metric} ${quarter}`;
    const [quantity = 0, cost = 0] = sums.get(key) ?? [];
    sums.set(key, [quantity + fact.quantity, cost + fact.cost]);
  }
  return sums;
}

function byMonth(
  facts: readonly Fact[],
  zones: ReadonlyMap<string, string>,
): Map<string, Record<string, number>> {
  const sums = new Map<string, Record<string, number>>();
  for (const fact of facts) {
    const month = new Intl.DateTimeFormat('en-CA', {
      timeZone: zones.get(fact.workspace) as string,
      year: 'numeric',
      month: '2-digit',
    })
      .format(fact.at)
      .slice(0, 7);
    const key = `${fact.workspace} ${month}`;
    const row = sums.get(key) ?? { messages: 0, tokens: 0, runs: 0, calls: 0, cost: 0 };
    const name = NAMES[fact.metric as keyof typeof NAMES];
    row[name] = (row[name] ?? 0) + fact.quantity;
    row.cost = (row.cost ?? 0) + fact.cost;
    sums.set(key, row);
  }
  return sums;
}

function pick<T>(of: readonly T[]): T | undefined {
  return of[Math.floor(Math.random() * of.length)];
}
