/** Places under rate limits, as the database gives them. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import {
  type LimitLearnt,
  learnLimit,
  PLACES_AHEAD,
  type PlaceAsked,
  type PlaceGiven,
  sweepRateLimits,
  takePlaces,
} from '../../src/db/rate-limits.ts';
import { onServer, setDatabaseClock, type TestDatabase, testDatabase } from '../support/database.ts';

let db: TestDatabase;
const key = 'k';
const workspace = randomUUID();
let now = Date.UTC(2026, 0, 1);

beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db.dispose());
beforeEach(async () => {
  await db.query('delete from agentd.rate_limits');
  await pass(0);
});

async function pass(ms: number): Promise<void> {
  now += ms;
  await setDatabaseClock(db, new Date(now));
}

/** A key of one request a second and a hundred tokens a second, with so much left. */
function learn(changes: Partial<LimitLearnt> & { left?: number; tokensLeft?: number } = {}): Promise<void> {
  const { left = 0, tokensLeft = 6_000, ...rest } = changes;
  return learnLimit(db, {
    key,
    requests: { limit: 60, left, perSecond: 1 },
    tokens: { limit: 6_000, left: tokensLeft, perSecond: 100 },
    ageMs: 0,
    unbooked: { requests: 0, tokens: 0 },
    blockedMs: null,
    ...rest,
  });
}

function call(changes: Partial<PlaceAsked> = {}): PlaceAsked {
  return {
    key,
    workspace,
    tokens: 10,
    ticket: null,
    returns: false,
    used: 0,
    requests_left: null,
    tokens_left: null,
    age_ms: 0,
    ...changes,
  };
}

/** The answers as `place 1000`. */
async function take(...asked: PlaceAsked[]): Promise<string[]> {
  return (await places(...asked)).map(said);
}

function places(...asked: PlaceAsked[]): Promise<PlaceGiven[]> {
  return takePlaces(db, asked, PLACES_AHEAD);
}

function said(given: PlaceGiven): string {
  return 'waitMs' in given ? `${given.kind} ${Math.round(given.waitMs)}` : given.kind;
}

describe('places', () => {
  test('are given in their order, as fast as the bucket fills', async () => {
    await learn();
    expect(await take(call())).toEqual(['place 1000']);
    expect(await take(call())).toEqual(['place 2000']);
    await pass(2_000);
    expect(await take(call(), call())).toEqual(['place 1000', 'place 2000']);
  });

  test('cost no wait while the bucket holds some, and no more are saved up than it holds', async () => {
    await learn({ left: 3 });
    expect(await take(call(), call(), call(), call())).toEqual([
      'place 0',
      'place 0',
      'place 0',
      'place 1000',
    ]);
    await pass(3_600_000);
    const answers = await take(...Array.from({ length: 61 }, () => call()));
    expect(answers.filter((answer) => answer === 'place 0')).toHaveLength(60);
    expect(answers.at(-1)).toBe('place 1000');
  });

  test('are of tokens as well: the tighter limit decides', async () => {
    await learn({ left: 60, tokensLeft: 100 });
    expect(await take(call({ tokens: 100 }), call({ tokens: 50 }), call({ tokens: 30 }))).toEqual([
      'place 0',
      'place 500',
      'place 800',
    ]);
  });

  test('for more tokens than the bucket ever holds are given when it is full', async () => {
    await learn({ left: 60, tokensLeft: 0 });
    expect(await take(call({ tokens: 1e9 }))).toEqual(['place 60000']);
  });

  test('what calls used more or less than was estimated is set right with the next one', async () => {
    await learn({ left: 60, tokensLeft: 0 });
    expect(await take(call({ tokens: 100 }))).toEqual(['place 1000']);
    expect(await take(call({ tokens: 10, used: -60 }))).toEqual(['place 500']);
    expect(await take(call({ tokens: 10, used: 40 }))).toEqual(['place 1000']);
  });

  test('what the provider says counts where it leaves less, and not where it leaves more', async () => {
    await learn({ left: 30 });
    expect(await take(call({ requests_left: 50 }))).toEqual(['place 0']);
    expect(await take(call({ requests_left: 1, age_ms: 500 }), call())).toEqual(['place 0', 'place 500']);
    expect(await take(call({ tokens_left: 0, tokens: 30 }))).toEqual(['place 1500']);
  });

  test('the tokens that a provider is seen to count for ours are what later calls take', async () => {
    await learn({ left: 60, tokensLeft: 2_000 });
    await take(call({ tokens: 200, tokens_left: 2_000 }));
    await pass(10_000);
    // 1,000 have come in and 800 were taken: four times what was estimated, of which half is believed at first
    await take(call({ tokens: 0, tokens_left: 2_200 }));
    const [row] = await db.query('select tokens_factor from agentd.rate_limits');
    expect(row).toEqual({ tokens_factor: 2.5 });
    await take(call({ tokens: 0, tokens_left: 0 }));
    expect(await take(call({ tokens: 100 }))).toEqual(['place 2500']);
  });

  test('calls under way that had no place are booked when the limit is learnt', async () => {
    await learn({ left: 3, unbooked: { requests: 2, tokens: 0 } });
    await learn({ left: 3, unbooked: { requests: 1, tokens: 0 } });
    expect(await take(call())).toEqual(['place 1000']);
  });

  test('of a key that nobody has written down are unknown', async () => {
    expect(await take(call({ key: 'other' }))).toEqual(['unknown']);
  });

  test('without a known limit cost no wait', async () => {
    await learn({ requests: null, tokens: null });
    expect(await take(call(), call())).toEqual(['place 0', 'place 0']);
  });
});

describe('a key that a provider has blocked', () => {
  test('gives no place before, and then as fast as the bucket fills', async () => {
    await learn({ blockedMs: 900 });
    expect(await take(call(), call())).toEqual(['place 1000', 'place 2000']);
    await learn({ blockedMs: 300 });
    expect(await take(call({ returns: true }))).toEqual(['place 3000']);
  });

  test('calls nobody back before', async () => {
    await learn({ left: 60, blockedMs: 30_000 });
    const [answer] = await places(call());
    expect(answer).toMatchObject({ kind: 'return' });
    expect((answer as { waitMs: number }).waitMs).toBeGreaterThanOrEqual(30_000);
    await pass(30_000);
    expect(await take(call())).toEqual(['place 0']);
  });

  test('holds back also those that have their place', async () => {
    await learn();
    const [answer] = await places(call());
    await learn({ blockedMs: 5_000 });
    expect(await take(call({ ticket: (answer as { ticket: PlaceAsked['ticket'] }).ticket }))).toEqual([
      'place 5000',
    ]);
  });
});

describe('a call that finds the places of the next seconds taken', () => {
  async function crowd(): Promise<void> {
    await learn();
    while (!(await take(call({ workspace: randomUUID() })))[0]?.startsWith('return'));
  }

  test('is to come back, and then goes before newcomers', async () => {
    await crowd();
    const [answer] = await places(call());
    expect(answer).toMatchObject({ kind: 'return', ticket: { kind: 'return' } });
    const { ticket } = answer as { ticket: PlaceAsked['ticket'] };
    expect((await take(call()))[0]).toMatch(/^return/);
    expect((await take(call({ ticket })))[0]).toMatch(/^place/);
  });

  test('is called back the later, the more of its workspace wait; other workspaces wait no longer for it', async () => {
    await crowd();
    const waits: number[] = [];
    for (let i = 0; i < 50; i++) waits.push(((await places(call()))[0] as { waitMs: number }).waitMs);
    expect([...waits].sort((a, b) => a - b)).toEqual(waits);
    expect(waits.at(-1)).toBeGreaterThan(40_000);
    const [quiet] = await places(call({ workspace: randomUUID() }));
    // the first of each line are served before the second of any
    expect((quiet as { waitMs: number }).waitMs).toBeLessThan(6_000);
  });

  test('leaves no gap behind when it does not come back', async () => {
    await crowd();
    for (let i = 0; i < 50; i++) await take(call());
    await pass(5_000);
    expect((await take(call()))[0]).toMatch(/^place/);
  });

  test('has a ticket that is worthless a minute after its time', async () => {
    await crowd();
    const ticket = { kind: 'place', at: new Date(now).toISOString() } as const;
    await pass(59_000);
    expect(await take(call({ ticket }))).toEqual(['place 0']);
    await pass(2_000);
    await learn({ left: 0 });
    expect(await take(call({ ticket }))).toEqual(['place 1000']);
  });

  test('keeps the place that it has: nothing is taken twice', async () => {
    await learn();
    const [answer] = await places(call());
    const { ticket } = answer as { ticket: PlaceAsked['ticket'] };
    expect(await take(call({ ticket }), call({ ticket }))).toEqual(['place 1000', 'place 1000']);
    expect(await take(call())).toEqual(['place 2000']);
  });
});

describe('keys', () => {
  test('do not meet: each has its own limit, whoever asks in the same statement', async () => {
    await learn();
    await learn({ key: 'other', left: 60 });
    expect(await take(call(), call({ key: 'other' }), call(), call({ key: 'nobody' }))).toEqual([
      'place 1000',
      'place 0',
      'place 2000',
      'unknown',
    ]);
  });

  test('that were not used for a day are forgotten, with their lines', async () => {
    await learn();
    await learn({ key: 'used' });
    await learn({ key: 'blocked', blockedMs: 2 * 86_400_000 });
    for (let i = 0; i < 9; i++) await take(call());
    await pass(23 * 3_600_000);
    await take(call({ key: 'used' }));
    await pass(2 * 3_600_000);
    expect(await sweepRateLimits(db)).toBe(1);
    expect(await db.query('select key from agentd.rate_limits order by key')).toEqual([
      { key: 'blocked' },
      { key: 'used' },
    ]);
    expect(await db.query('select * from agentd.rate_limit_lines')).toEqual([]);
  });
});

describe.runIf(onServer)('several sessions', () => {
  test('two daemons at once never give the same place twice', async () => {
    const emptyAt = async (): Promise<number> => {
      const [row] = await db.query<{ at: string }>(
        'select extract(epoch from requests_at) * 1000 as at from agentd.rate_limits where key = $1',
        [key],
      );
      return Number(row?.at);
    };
    await setDatabaseClock(db, null);
    await learn({ tokens: null, requests: { limit: 6_000, left: 0, perSecond: 100 } });
    const before = await emptyAt();
    const daemon = async (): Promise<number> => {
      let given = 0;
      while (given < 40) {
        given += (await places(call(), call(), call())).filter((answer) => answer.kind === 'place').length;
      }
      return given;
    };
    const [one, two] = await Promise.all([daemon(), daemon()]);
    expect((await emptyAt()) - before).toBeCloseTo((one + two) * 10, 0);
  });

  test('a row that somebody holds keeps no other key waiting', async () => {
    await learn();
    await learn({ key: 'other', left: 60 });
    const client = await db.pool.connect();
    try {
      await client.query('begin');
      await client.query(`select 1 from agentd.rate_limits where key = '${key}' for update`);
      expect(await take(call(), call({ key: 'other' }))).toEqual(['locked', 'place 0']);
    } finally {
      await client.query('rollback');
      client.release();
    }
  });
});

test('neither key nor limits are anything that a tenant can read', async () => {
  const grants = await db.query<{ grantee: string }>(
    `select distinct grantee from information_schema.role_table_grants
      where table_schema = 'agentd' and table_name like 'rate_limit%' and grantee in ('anon', 'authenticated', 'PUBLIC')`,
  );
  expect(grants).toEqual([]);
});
