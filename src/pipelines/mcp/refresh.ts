/**
 * One look at the tools of a connection: its server is asked, others of the same name where it fails, and what they list is compared
 * with what is stored.
 *
 * A look takes `LOOK_MS` at most, whatever its servers do. A failed one leaves the tools as they are; the row says why, and waits longer
 * with every failure.
 */
import type { Logger } from 'pino';
import { sleep } from '../../clock.ts';
import type { Queryable } from '../../db/database.ts';
import {
  type ClaimedRefresh,
  failRefresh,
  type ListingChanges,
  type McpServerRow,
  putBackRefresh,
  storeListing,
} from '../../db/mcp.ts';
import { McpError } from '../../providers/mcp-error.ts';
import type { McpListing } from '../../providers/mcp-listing.ts';
import type { McpSession, openMcpSession } from '../../providers/mcp-session.ts';
import { JobAborted } from '../../queue/errors.ts';
import { type McpSettingsDeps, McpSettingsError, mcpSettings } from './connection-settings.ts';
import type { HostPlaces } from './host-places.ts';

/** Milliseconds that a look may take with all its attempts. */
const LOOK_MS = 60_000;
/** Where the host is busy with others of this process, the connection comes again after about so many milliseconds. */
const CROWDED_MS = 1_000;
/** What `max_retries` and `retry_backoff_ms` are without a server, and at most. */
const RETRIES = { none: 2, most: 10 } as const;
const BACKOFF_MS = { none: 500, most: 10_000 } as const;
const HINT_MS = { least: 60_000, most: 24 * 3_600_000 } as const;
/** The first wait after a failed look, and the longest; a server may ask for more, up to a day. */
const AGAIN_MS = { first: 30_000, most: 3_600_000 } as const;

export type RefreshDeps = McpSettingsDeps & {
  readonly db: Queryable;
  readonly log: Logger;
  readonly places: HostPlaces;
  /** Milliseconds between looks where the server gives no hint. */
  readonly everyMs: number;
  /** Between 0 and 1. */
  readonly random?: () => number;
  readonly open?: typeof openMcpSession;
  /** The server has said what it has to say: nobody else is waited for but the database. */
  readonly onListed?: () => void;
};

export type RefreshOutcome =
  | { readonly kind: 'refreshed'; readonly changes: ListingChanges; readonly seconds: number }
  | { readonly kind: 'failed'; readonly code: string; readonly seconds: number }
  // crowded and held: it comes again soon; a tenant's transaction holds its row
  | { readonly kind: 'crowded' | 'held' | 'released' | 'lost' };

type Target = { readonly server: McpServerRow | null; readonly isOther: boolean; readonly url: string };
type Listed = {
  readonly session: McpSession['server'];
  readonly listing: McpListing;
  readonly target: Target;
};
type Failure = {
  readonly code: string;
  readonly message: string;
  readonly nextStep: string;
  readonly transient: boolean;
  readonly retryAfterMs: number | null;
};

/** Looks once. Never throws for what a server does; throws what the database does, and the reason of an aborted signal but a drain's. */
export async function refreshConnection(
  deps: RefreshDeps,
  claimed: ClaimedRefresh,
  jobId: string,
  signal: AbortSignal,
): Promise<RefreshOutcome> {
  const { clock, db } = deps;
  const random = deps.random ?? Math.random;
  const began = clock.elapsed();
  const late = new AbortController();
  const timer = clock.after(LOOK_MS, () => late.abort());
  let failure: Failure;
  const tried: { server: string | null; code: string }[] = [];
  try {
    const listed = await listFromAny(deps, claimed, AbortSignal.any([signal, late.signal]), tried);
    if (listed === 'crowded') {
      await putBackRefresh(db, claimed, CROWDED_MS * (0.5 + random()));
      return { kind: 'crowded' };
    }
    deps.onListed?.();
    // what only connections need is loaded with the first
    const { toolRows } = await import('./tool-rows.ts');
    const { rows, listed: count, dropped } = await toolRows(listed.listing, clock);
    const hint = listed.listing.ttlMs;
    const nextMs = hint === null ? deps.everyMs : Math.min(HINT_MS.most, Math.max(HINT_MS.least, hint));
    const seconds = (clock.elapsed() - began) / 1000;
    const changes = await storeListing(db, claimed, rows, {
      job_id: jobId,
      duration_ms: Math.round(seconds * 1000),
      next_ms: Math.round(nextMs * (0.95 + random() * 0.1)),
      server_info: {
        ...listed.session,
        ...(listed.target.isOther ? { server_id: listed.target.server?.id } : {}),
      },
      listed: count,
      dropped,
    });
    return changes === null ? { kind: 'lost' } : { kind: 'refreshed', changes, seconds };
  } catch (error) {
    if (signal.aborted) {
      if (signal.reason instanceof JobAborted && signal.reason.code !== 'drain') return { kind: 'lost' };
      await putBackRefresh(db, claimed, 0);
      return { kind: 'released' };
    }
    failure = late.signal.aborted ? deadline() : failureOf(error);
  } finally {
    timer.cancel();
  }
  const wait = Math.min(AGAIN_MS.most, AGAIN_MS.first * 2 ** Math.min(claimed.failures, 20));
  const seconds = (clock.elapsed() - began) / 1000;
  const isOwn = await failRefresh(db, claimed, {
    jobId,
    code: failure.code,
    reason: `${failure.message} ${failure.nextStep}`.trim(),
    // never earlier than the server asks, never a day later than that
    inMs: Math.max(wait * (0.5 + random() / 2), Math.min(failure.retryAfterMs ?? 0, HINT_MS.most)),
    durationMs: seconds * 1000,
    details: tried.length > 1 ? { tried } : {},
  });
  return isOwn ? { kind: 'failed', code: failure.code, seconds } : { kind: 'lost' };
}

/** Asks the connection's own server, then the others of its name in the order of their priority. Throws what the first of them threw. */
async function listFromAny(
  deps: RefreshDeps,
  claimed: ClaimedRefresh,
  signal: AbortSignal,
  tried: { server: string | null; code: string }[],
): Promise<Listed | 'crowded'> {
  const own: Target = { server: claimed.server, isOther: false, url: claimed.server_url };
  const targets: Target[] = [
    ...(claimed.server?.is_active === false ? [] : [own]),
    ...claimed.others.map((server) => ({ server, isOther: true, url: server.endpoint_url })),
  ];
  let first: unknown = null;
  for (const [at, target] of targets.entries()) {
    try {
      return await listPatiently(deps, claimed, target, signal, at < targets.length - 1);
    } catch (error) {
      if (signal.aborted) throw error;
      tried.push({ server: target.server?.id ?? null, code: failureOf(error).code });
      first ??= error;
    }
  }
  throw (
    first ??
    new McpSettingsError(
      'no_active_server',
      'The server of the connection is switched off.',
      'Set is_active of its row in mcp_servers.',
    )
  );
}

async function listPatiently(
  deps: RefreshDeps,
  claimed: ClaimedRefresh,
  target: Target,
  signal: AbortSignal,
  hasOthers: boolean,
): Promise<Listed | 'crowded'> {
  const retries = Math.min(RETRIES.most, Math.max(0, target.server?.max_retries ?? RETRIES.none));
  const backoff = Math.min(BACKOFF_MS.most, Math.max(0, target.server?.retry_backoff_ms ?? BACKOFF_MS.none));
  let refused: string | undefined;
  for (let attempt = 0; ; attempt++) {
    const leave = deps.places.take(target.url);
    if (leave === null) return 'crowded';
    let token: string | null = null;
    try {
      const settings = await mcpSettings(deps, claimed, signal, {
        ...(target.isOther && target.server ? { instead: target.server } : {}),
        ...(refused === undefined ? {} : { refused }),
      });
      ({ token } = settings);
      const { token: _, ...session } = settings;
      return { ...(await listOnce(deps, session, signal)), target };
    } catch (error) {
      if (signal.aborted) throw error;
      // the token may have been revoked before its time: once more with another
      if (
        error instanceof McpError &&
        error.code === 'auth_required' &&
        token !== null &&
        refused === undefined
      ) {
        refused = token;
        continue;
      }
      const { transient, code, retryAfterMs } = failureOf(error);
      const wait =
        Math.min(BACKOFF_MS.most, backoff * 2 ** attempt) * (0.5 + (deps.random ?? Math.random)() / 2);
      // one that hangs is not asked again while there are others to turn to; one that wants to be left alone is left alone
      const isHopeless = !transient || (code === 'timeout' && hasOthers) || (retryAfterMs ?? 0) > wait;
      if (isHopeless || attempt >= retries) throw error;
      leave();
      await sleep(deps.clock, wait, signal);
    } finally {
      leave();
    }
  }
}

async function listOnce(
  deps: RefreshDeps,
  settings: Parameters<typeof openMcpSession>[0],
  signal: AbortSignal,
): Promise<Pick<Listed, 'session' | 'listing'>> {
  const open = deps.open ?? (await import('../../providers/mcp-session.ts')).openMcpSession;
  const session = await open({ ...settings, listens: false }, signal);
  try {
    return { session: session.server, listing: await session.listTools(signal) };
  } finally {
    // what a server does at the end is no part of the look
    void session.close();
  }
}

function deadline(): Failure {
  return {
    code: 'deadline',
    message: `The look at the server’s tools took more than ${LOOK_MS / 1000} seconds.`,
    nextStep: 'It is tried again. If it stays so, lower timeout_ms or max_retries of the server.',
    transient: true,
    retryAfterMs: null,
  };
}

/** Throws what neither the server nor the connection's settings are to blame for. */
function failureOf(error: unknown): Failure {
  if (error instanceof McpError || error instanceof McpSettingsError) {
    const { code, message, nextStep, transient, retryAfterMs } = error;
    return { code, message, nextStep, transient, retryAfterMs };
  }
  throw error;
}
