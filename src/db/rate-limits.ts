/** The rate limits of model providers, as all daemons share them. */
import type { Queryable, Statement } from './database.ts';
import { toJson } from './json.ts';

/** From when a call that waits may be made (place), or may ask again before newcomers (return). */
export type Ticket = { readonly at: string; readonly kind: 'place' | 'return' };

/** A call that asks for its place, and what is new about its key. */
export type PlaceAsked = {
  readonly key: string;
  readonly workspace: string;
  /** What the call will need, estimated. */
  readonly tokens: number;
  readonly ticket: Ticket | null;
  /** It was refused just now and goes before newcomers, without a ticket. */
  readonly returns: boolean;
  /** Tokens that finished calls used less those that were estimated for them. */
  readonly used: number;
  /** What the provider said was left, `age_ms` ago; null where it said nothing. */
  readonly requests_left: number | null;
  readonly tokens_left: number | null;
  readonly age_ms: number;
};

/** See agentd.take_places. `ticket` keeps what was given for a call that waits elsewhere than in this process. */
export type PlaceGiven =
  | { readonly kind: 'place' | 'return'; readonly waitMs: number; readonly ticket: Ticket }
  | { readonly kind: 'locked' | 'unknown' };

/**
 * How far ahead places are given, in milliseconds: short, for those that wait so long do it in their slot. Those that return go
 * further than newcomers, and so before them. Calls that come back a second late find no gap: what was not used meanwhile is still
 * in the bucket.
 */
export const PLACES_AHEAD = { newcomersMs: 1_000, returningMs: 2_000 } as const;

const TAKE: Statement = {
  name: 'take_places',
  text: 'select n, kind, wait_ms, at from agentd.take_places($1::jsonb, $2, $3)',
};

/**
 * Gives each call its place, in their order. A row that another transaction holds is answered as locked and keeps nobody
 * else waiting.
 */
export async function takePlaces(
  db: Queryable,
  items: readonly PlaceAsked[],
  ahead: { readonly newcomersMs: number; readonly returningMs: number },
): Promise<PlaceGiven[]> {
  type Row = { n: number; kind: PlaceGiven['kind']; wait_ms: number; at: Date | null };
  const asked = items.map(({ ticket, workspace, ...item }, n) => ({
    ...item,
    n,
    workspace_id: workspace,
    ticket_at: ticket?.at ?? null,
    ticket_kind: ticket?.kind ?? null,
  }));
  const rows = await db.query<Row>(TAKE, [toJson(asked), ahead.newcomersMs, ahead.returningMs]);
  const given: PlaceGiven[] = items.map(() => ({ kind: 'unknown' }));
  for (const { n, kind, wait_ms, at } of rows) {
    given[n] =
      kind === 'place' || kind === 'return'
        ? { kind, waitMs: Number(wait_ms), ticket: { at: (at as Date).toISOString(), kind } }
        : { kind };
  }
  return given;
}

/** One limit of a key as a provider described it. */
export type LearntLimit = { readonly limit: number; readonly left: number; readonly perSecond: number };

/** What a daemon has learnt about a key. */
export type LimitLearnt = {
  readonly key: string;
  /** Null where nothing is known; what is known by others stays. */
  readonly requests: LearntLimit | null;
  readonly tokens: LearntLimit | null;
  /** How long ago that was, in milliseconds. */
  readonly ageMs: number;
  /** Calls under way that took no place, after what the provider said: how many, and the tokens estimated for them. */
  readonly unbooked: { readonly requests: number; readonly tokens: number };
  /** Nobody is to ask for so long; null after an answer. */
  readonly blockedMs: number | null;
};

const LEARN: Statement = {
  name: 'learn_rate_limit',
  text: `
insert into agentd.rate_limits as l (
  key, requests_limit, requests_per_second, requests_at, tokens_limit, tokens_per_second, tokens_at, blocked_until, updated_at)
values (
  $1,
  $2::double precision, $3::double precision,
  agentd.now() - make_interval(
    secs => $8::double precision / 1000 + ($4::double precision - $10::double precision) / $3::double precision),
  $5::double precision, $6::double precision,
  agentd.now() - make_interval(
    secs => $8::double precision / 1000 + ($7::double precision - $11::double precision) / $6::double precision),
  agentd.now() + $9::double precision * interval '1 millisecond', agentd.now())
on conflict (key) do update
   set requests_limit = coalesce(excluded.requests_limit, l.requests_limit),
       requests_per_second = coalesce(excluded.requests_per_second, l.requests_per_second),
       requests_at = greatest(l.requests_at + make_interval(secs => $10 / l.requests_per_second), excluded.requests_at),
       tokens_limit = coalesce(excluded.tokens_limit, l.tokens_limit),
       tokens_per_second = coalesce(excluded.tokens_per_second, l.tokens_per_second),
       tokens_at = greatest(l.tokens_at + make_interval(secs => $11 / l.tokens_per_second), excluded.tokens_at),
       blocked_until = greatest(l.blocked_until, excluded.blocked_until),
       updated_at = excluded.updated_at`,
};

/** Makes a key's row, or brings it up to date. What the provider counted can only be more than is known already. */
export async function learnLimit(db: Queryable, learnt: LimitLearnt): Promise<void> {
  const { key, requests, tokens, ageMs, unbooked, blockedMs } = learnt;
  await db.query(LEARN, [
    key,
    requests?.limit ?? null,
    requests?.perSecond ?? null,
    requests?.left ?? null,
    tokens?.limit ?? null,
    tokens?.perSecond ?? null,
    tokens?.left ?? null,
    ageMs,
    blockedMs,
    unbooked.requests,
    unbooked.tokens,
  ]);
}

/** Forgets keys that were not used for a day, and lines in which nobody stands. Returns how many keys. */
export async function sweepRateLimits(db: Queryable): Promise<number> {
  const [row] = await db.query<{ swept: number }>({
    name: 'sweep_rate_limits',
    text: `
with line as (
  delete from agentd.rate_limit_lines l
   where (l.key, l.workspace_id) in (
     select o.key, o.workspace_id from agentd.rate_limit_lines o
      where o.last_at < agentd.now() - interval '1 hour'
        for update skip locked)
),
swept as (
  delete from agentd.rate_limits l
   where l.key in (
     select o.key from agentd.rate_limits o
      where o.updated_at < agentd.now() - interval '1 day'
        and coalesce(o.blocked_until, '-infinity') < agentd.now()
        for update skip locked)
  returning 1
)
select count(*)::integer as swept from swept`,
  });
  return row?.swept ?? 0;
}
