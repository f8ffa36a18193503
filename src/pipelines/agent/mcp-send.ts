/** Sends a call to a server: under its limits, again only where it is sure that it has had no effect. */
import { createHash } from 'node:crypto';
import type { Logger } from 'pino';
import { type Clock, sleep } from '../../clock.ts';
import type { Queryable } from '../../db/database.ts';
import { type McpServerRow, requestRefresh } from '../../db/mcp.ts';
import type { CallableTool } from '../../db/mcp-tools.ts';
import { McpError, type McpErrorCode } from '../../providers/mcp-error.ts';
import type { McpOutcome } from '../../providers/mcp-outcome.ts';
import type { McpSettings } from '../../providers/mcp-session.ts';
import type { SettingsWanted } from '../mcp/connection-settings.ts';
import type { McpSessions } from './mcp-sessions.ts';
import { isTrusted } from './mcp-trust.ts';
import type { Place, RateLimiter } from './rate-limiter.ts';
import { type Tool, type ToolContext, ToolError } from './tools.ts';

/** A server's limit is waited for so long with the run's slot; the model is told of a longer one. */
const PATIENCE_MS = 5_000;
/** The wait after a 429 that says nothing of one. */
const USUAL_WAIT_MS = 1_000;
/** Times that a call is made at most where it had no effect, whatever its server's row allows. */
const TRIES = 3;
/** Progress is logged at most so often. */
const PROGRESS_MS = 1_000;

export type McpCallDeps = {
  readonly db: Queryable;
  /** For what is written: a look at a connection's tools that is asked for. */
  readonly writes: Queryable;
  readonly clock: Clock;
  readonly log: Logger;
  readonly sessions: McpSessions;
  readonly limiter: RateLimiter;
  /** Origins, or `stdio:NAME`, whose servers are believed what they say of their tools' effects. */
  readonly trusted: readonly string[];
  /** Throws McpSettingsError. */
  readonly settings: (
    connection: CallableTool,
    signal: AbortSignal,
    wanted: SettingsWanted,
  ) => Promise<McpSettings & { readonly token: string | null }>;
};

/** A call as it is sent. */
export type OutgoingCall = {
  /** The server's name of the tool. */
  readonly name: string;
  /** What the server must list it as. */
  readonly pinnedHash: string;
  readonly effect: Tool['effect'];
  readonly arguments: Record<string, unknown>;
};

/** What is known of a call's effect: once it has begun, nobody knows. */
export type Sending = { hasBegun: boolean };

/** After these the server has not run the tool. All others leave it open whether it has. */
const WITHOUT_EFFECT: ReadonlySet<McpErrorCode> = new Set([
  'blocked_address',
  'other_origin',
  'auth_required',
  'forbidden',
  'not_found',
  'rate_limited',
  'session_lost',
  'invalid_params',
  'input_required',
  'not_listed',
  'process_failed',
]);

/**
 * The outcome of the call, from the connection's server or, where that can't be reached, from another one of its name and configuration,
 * in the order of their priority. One that is trusted less is not asked for what only trust makes repeatable.
 *
 * Throws McpError, McpSettingsError, ToolError, and the signal's reason.
 */
export async function sendCall(
  deps: McpCallDeps,
  connection: CallableTool,
  call: OutgoingCall,
  context: ToolContext,
  sending: Sending,
): Promise<McpOutcome> {
  const others = connection.others.filter(
    ({ endpoint_url }) => call.effect === 'write' || isTrusted(endpoint_url, deps.trusted),
  );
  const targets: (McpServerRow | null)[] =
    connection.server?.is_active === false ? others : [null, ...others];
  let first: unknown = null;
  for (const instead of targets) {
    try {
      return await sendTo(deps, connection, instead, call, context, sending);
    } catch (error) {
      first ??= error;
      const isAway = error instanceof McpError && error.transient && error.code !== 'rate_limited';
      if (context.signal.aborted || sending.hasBegun || !isAway) throw error;
    }
  }
  throw first ?? new ToolError('connection_off', 'The server of this tool was turned off.');
}

async function sendTo(
  deps: McpCallDeps,
  connection: CallableTool,
  instead: McpServerRow | null,
  call: OutgoingCall,
  context: ToolContext,
  sending: Sending,
): Promise<McpOutcome> {
  const { signal } = context;
  const server = instead ?? connection.server;
  const retries = Math.min(TRIES - 1, Math.max(0, server?.max_retries ?? 0));
  let wanted: SettingsWanted = instead ? { instead } : {};
  let returns = false;
  let renewed = false;
  for (let tries = 1; ; tries++) {
    const settings = await deps.settings(connection, signal, wanted);
    const key = limitKey(settings, context.workspaceId);
    const place = await takePlace(deps, key, context, returns);
    const sent = deps.limiter.sent(key, place, () => 0);
    try {
      const outcome = await inSession(deps, connection.id, settings, call, context, sending);
      sent.failed();
      return outcome;
    } catch (error) {
      if (!(error instanceof McpError)) {
        sent.failed();
        throw error;
      }
      if (WITHOUT_EFFECT.has(error.code)) sending.hasBegun = false;
      const isLimited = error.code === 'rate_limited' && error.httpStatus !== null;
      if (isLimited) await sent.refused(null, error.retryAfterMs ?? USUAL_WAIT_MS);
      else sent.failed();
      if (tries >= TRIES || sending.hasBegun) throw error;
      if (error.code === 'auth_required' && settings.token !== null && wanted.refused === undefined) {
        // the token may have been revoked before its time: once more with another
        wanted = { ...wanted, refused: settings.token };
        continue;
      }
      if ((error.code === 'session_lost' || error.code === 'connection_lost') && !renewed) {
        // the pool had a session that its server forgot
        renewed = true;
        continue;
      }
      const usual = isLimited ? USUAL_WAIT_MS : Math.max(0, server?.retry_backoff_ms ?? 0) * 2 ** (tries - 1);
      const waitMs = error.retryAfterMs ?? usual;
      // one that hangs would hang again
      const isWorthIt = isLimited || (error.transient && error.code !== 'timeout' && tries <= retries);
      if (waitMs > PATIENCE_MS || !isWorthIt) throw error;
      returns = isLimited;
      await sleep(deps.clock, waitMs, signal);
    }
  }
}

/** Throws ToolError where the server does not list the tool as it was looked at. */
function inSession(
  deps: McpCallDeps,
  connectionId: string,
  settings: McpSettings,
  call: OutgoingCall,
  context: ToolContext,
  sending: Sending,
): Promise<McpOutcome> {
  const { signal } = context;
  return deps.sessions.use(connectionId, settings, signal, async ({ session, liveHash }) => {
    const hash = await liveHash(call.name, signal);
    if (hash !== call.pinnedHash) {
      await wantRefresh(deps, connectionId, 'tool_call');
      if (hash === null) throw new ToolError('tool_gone', 'The server does not have this tool any more.');
      throw new ToolError(
        'tool_changed',
        'The server has changed this tool since it was looked at. It can be called once that was done again.',
      );
    }
    signal.throwIfAborted();
    sending.hasBegun = true;
    return session.callTool({
      name: call.name,
      arguments: call.arguments,
      idempotencyKey: context.idempotencyKey,
      signal,
      timeoutMs: settings.requestTimeoutMs,
      onProgress: progress(deps, connectionId, context),
    });
  });
}

/**
 * All calls of a workspace to one host with one credential share a limit, whoever's daemon makes them. Not those of others: many servers
 * of one host may be as many tenants', and what one of them answers blocks nobody else's calls.
 */
function limitKey(settings: McpSettings, workspaceId: string): string {
  const headers = Object.entries(settings.headers).toSorted(([a], [b]) => (a < b ? -1 : 1));
  const where = URL.canParse(settings.url) ? new URL(settings.url).host : settings.url;
  return `mcp:${createHash('sha256')
    .update(JSON.stringify([workspaceId, where, headers]))
    .digest('hex')}`;
}

async function takePlace(
  deps: McpCallDeps,
  key: string,
  { workspaceId, signal }: ToolContext,
  returns: boolean,
): Promise<Place | null> {
  let ticket: Place['ticket'] | null = null;
  let waited = 0;
  for (;;) {
    const place: Place | null = await deps.limiter.place({
      key,
      workspaceId,
      requestLength: () => 0,
      maxTokens: 0,
      ticket,
      returns: returns && ticket === null,
    });
    if (!place || (place.kind === 'place' && place.waitMs <= 0)) return place;
    waited += place.waitMs;
    if (waited > PATIENCE_MS) {
      throw new McpError('rate_limited', 'The server’s limit is used up.', {
        transient: true,
        retryAfterMs: place.waitMs,
      });
    }
    await sleep(deps.clock, place.waitMs, signal);
    if (place.kind === 'place') return place;
    ticket = place.ticket;
  }
}

function progress(deps: McpCallDeps, connectionId: string, context: ToolContext): (text: string) => void {
  let last = Number.NEGATIVE_INFINITY;
  return (text) => {
    const now = deps.clock.elapsed();
    if (now - last < PROGRESS_MS) return;
    last = now;
    deps.log.debug(
      {
        event: 'mcp_progress',
        run_id: context.runId,
        workspace_id: context.workspaceId,
        connection_id: connectionId,
        progress: text,
      },
      'a tool says how far it is',
    );
  };
}

/** Asks for a look at the connection's tools. Never fails a call. */
export async function wantRefresh(
  deps: Pick<McpCallDeps, 'writes' | 'log'>,
  connectionId: string,
  why: 'tool_call' | 'list_changed',
): Promise<void> {
  await requestRefresh(deps.writes, connectionId, why).catch((error: unknown) => {
    deps.log.debug(
      { event: 'mcp_refresh_not_requested', connection_id: connectionId, err: error },
      'a look at a connection’s tools could not be asked for',
    );
  });
}
