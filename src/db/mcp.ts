/**
 * Connections to MCP servers: claimed for a look at their tools, stored, put off.
 *
 * Every write carries the claim's epoch; one of an older claim changes nothing and says so. What the worker itself needs is in
 * agentd.mcp_refreshes, which no tenant's transaction holds; the connection's own row is written at the end alone.
 */
import type { Queryable, Statement } from './database.ts';
import { toJson } from './json.ts';
import { type HeldRow, type NotRenewed, renew, renewStatement } from './leases.ts';

/** A server of the connection's configuration. */
export type McpServerRow = {
  readonly id: string;
  readonly name: string;
  readonly endpoint_url: string;
  /** A secret of the Vault; sent as a bearer token where the connection has nothing of its own. */
  readonly vault_api_key_id: string | null;
  /** Milliseconds that a request may take. */
  readonly timeout_ms: number;
  /** Attempts after the first, within one look. */
  readonly max_retries: number;
  readonly retry_backoff_ms: number;
  readonly priority: number;
  readonly is_active: boolean;
};

/** Where a connection leads and what is sent along. */
export type McpConnection = {
  readonly id: string;
  readonly workspace_id: string;
  readonly agent_id: string;
  readonly name: string;
  readonly server_url: string;
  readonly auth_type: 'none' | 'bearer' | 'header' | 'oauth';
  readonly auth_header: string | null;
  readonly auth_secret: string | null;
  readonly credential_id: string | null;
  /** Null: defaults. */
  readonly server: McpServerRow | null;
};

/** A connection for a look at its tools. */
export type ClaimedRefresh = McpConnection & {
  readonly lease_epoch: number;
  readonly why: string;
  /** Looks in a row that failed before this one. */
  readonly failures: number;
  /** Other active servers of the configuration under the same name, the highest priority first. */
  readonly others: readonly McpServerRow[];
};

export type RefreshClaim = { readonly id: string; readonly lease_epoch: number };

const server = (row: string): string => `jsonb_build_object(
  'id', ${row}.id, 'name', ${row}.name, 'endpoint_url', ${row}.endpoint_url, 'vault_api_key_id', ${row}.vault_api_key_id,
  'timeout_ms', ${row}.timeout_ms, 'max_retries', ${row}.max_retries, 'retry_backoff_ms', ${row}.retry_backoff_ms,
  'priority', ${row}.priority, 'is_active', ${row}.is_active)`;

const connection = (
  row: string,
): string => `${row}.id, a.workspace_id, ${row}.agent_id, ${row}.connection_name as name, ${row}.server_url,
       ${row}.auth_type, ${row}.auth_header, ${row}.auth_secret, ${row}.credential_id,
       case when s.id is not null then ${server('s')} end as server`;

const CLAIM: Statement = {
  name: 'claim_mcp_refreshes',
  text: `
with claimed as (
  update agentd.mcp_refreshes r
     set lease_epoch = r.lease_epoch + 1, worker_id = $3, lease_expires_at = agentd.now() + make_interval(secs => $4),
         wanted_at = null, started_at = agentd.now()
    from unnest($1::uuid[], $2::integer[]) as admitted (id, epoch)
   where r.id = admitted.id and r.lease_epoch = admitted.epoch and r.job_id is not null and r.lease_expires_at is null
  returning r.id, r.lease_epoch, r.why, r.failures
)
select ${connection('c')}, x.lease_epoch, x.why, x.failures,
       coalesce((
         select jsonb_agg(o.server order by o.priority desc, o.id)
           from (select ${server('b')} as server, b.priority, b.id
                   from public.mcp_servers b
                  where b.config_id = s.config_id and b.name = s.name and b.id <> s.id and b.is_active
                  order by b.priority desc, b.id limit 4) o), '[]') as others
  from claimed x
  join public.agent_mcp_connections c on c.id = x.id
  join public.agents a on a.id = c.agent_id
  left join public.mcp_servers s on s.id = c.mcp_server_id`,
};

/** A connection that was let in under that epoch. */
export type AdmittedRefresh = { readonly connectionId: string; readonly epoch: number };

/** Claims connections, in their order; null where somebody else has one, or nobody wants it any more. */
export async function claimRefreshes(
  db: Queryable,
  admitted: readonly AdmittedRefresh[],
  workerId: string,
  leaseSeconds: number,
): Promise<(ClaimedRefresh | null)[]> {
  const rows = await db.query<ClaimedRefresh>(CLAIM, [
    admitted.map(({ connectionId }) => connectionId),
    admitted.map(({ epoch }) => epoch),
    workerId,
    leaseSeconds,
  ]);
  const byId = new Map(rows.map((row) => [row.id, row]));
  return admitted.map(({ connectionId }) => {
    const row = byId.get(connectionId) ?? null;
    // one that was asked twice is claimed once
    byId.delete(connectionId);
    return row;
  });
}

const RENEW = renewStatement('renew_mcp_leases', 'agentd.mcp_refreshes', 'r.lease_expires_at is not null');

/** Renews the leases of a worker's connections. */
export function renewRefreshLeases(
  db: Queryable,
  held: readonly HeldRow[],
  leaseSeconds: number,
): Promise<NotRenewed> {
  return renew(db, RENEW, held, leaseSeconds);
}

/** A tool as its row is to be. */
export type ToolRow = {
  /** The server's name of it. */
  readonly tool_name: string;
  /** What a model calls; null where it can't be offered. */
  readonly function_name: string | null;
  readonly tool_schema: unknown;
  /** {type: 'function', function: {…}} */
  readonly openai_schema: unknown;
  readonly schema_hash: string;
  readonly row_hash: string;
  /** Why it can't be offered; null: it can. */
  readonly code: string | null;
  readonly reason: string | null;
};

export type ListingFacts = {
  readonly job_id: string;
  readonly duration_ms: number;
  /** Milliseconds until the next look. */
  readonly next_ms: number;
  readonly server_info: Readonly<Record<string, unknown>>;
  readonly listed: number;
  /** Tools beyond the most that a connection may have. */
  readonly dropped: number;
};

/** What a listing has changed. */
export type ListingChanges = {
  readonly added: number;
  readonly changed: number;
  readonly removed: number;
  readonly usable: number;
  readonly quarantined: number;
};

/** Compares a listing with what is stored and changes that, in one transaction. Null: no longer the worker's, and nothing was changed. */
export async function storeListing(
  db: Queryable,
  claim: RefreshClaim,
  tools: readonly ToolRow[],
  facts: ListingFacts,
): Promise<ListingChanges | null> {
  const [row] = await db.query<{ changes: ListingChanges | null }>(
    {
      name: 'store_mcp_listing',
      text: 'select agentd.store_mcp_listing($1, $2, $3::jsonb, $4::jsonb) as changes',
    },
    [claim.id, claim.lease_epoch, toJson(tools), toJson(facts)],
  );
  return row?.changes ?? null;
}

/** A look failed: the tools stay as they are, the row says why, and when it is looked again. False: no longer the worker's. */
export async function failRefresh(
  db: Queryable,
  claim: RefreshClaim,
  failure: {
    readonly jobId: string;
    readonly code: string;
    readonly reason: string;
    readonly inMs: number;
    readonly durationMs: number;
    readonly details: Readonly<Record<string, unknown>>;
  },
): Promise<boolean> {
  const rows = await db.query(
    {
      name: 'fail_mcp_refresh',
      text: `
with own as (
  update agentd.mcp_refreshes r
     set job_id = null, lease_expires_at = null, lost_claims = 0, failures = least(r.failures, 1000000) + 1,
         due_at = agentd.now() + $6::double precision * interval '1 millisecond'
   where r.id = $1 and r.lease_epoch = $2 and r.lease_expires_at is not null
  returning r.id, r.failures, coalesce(r.wanted_at, r.due_at) as next
),
logged as (
  insert into public.mcp_refresh_log (connection_id, job_id, status, details, duration_ms, error_message, created_at)
  select own.id, $3, case when $4 in ('timeout', 'deadline') then 'timeout' else 'error' end,
         $8::jsonb || jsonb_build_object('code', $4::text), $7, $5, agentd.now()
    from own
)
update public.agent_mcp_connections c
   set reason_code = $4, reason = $5, refresh_failures = own.failures, next_refresh_at = own.next
  from own where c.id = own.id
returning c.id`,
    },
    [
      claim.id,
      claim.lease_epoch,
      failure.jobId,
      failure.code,
      failure.reason.slice(0, 2000),
      failure.inMs,
      Math.round(failure.durationMs),
      toJson(failure.details),
    ],
  );
  return rows.length > 0;
}

/** Puts a connection back, as a drained or crowded-out worker does: it waits for so long, and nothing has failed. Touches no row of a tenant. */
export async function putBackRefresh(db: Queryable, claim: RefreshClaim, inMs: number): Promise<void> {
  await db.query(
    {
      name: 'put_back_mcp_refresh',
      text: `
update agentd.mcp_refreshes r
   set job_id = null, lease_expires_at = null,
       wanted_at = least(coalesce(r.wanted_at, 'infinity'), agentd.now() + $3::double precision * interval '1 millisecond')
 where r.id = $1 and r.lease_epoch = $2 and r.lease_expires_at is not null`,
    },
    [claim.id, claim.lease_epoch, inMs],
  );
}

/** Looks whose time has come are wanted, then those that are wanted are let in, at most so many. Returns how many have a job now. */
export async function admitRefreshes(db: Queryable, limit: number): Promise<number> {
  await db.query({
    name: 'want_due_mcp_refreshes',
    text: `
with due as (
  select r.id from agentd.mcp_refreshes r
   where r.wanted_at is null and r.job_id is null and r.due_at <= agentd.now()
   order by r.due_at limit 2000 for no key update skip locked
)
update agentd.mcp_refreshes r set wanted_at = r.due_at, why = 'due' from due where r.id = due.id`,
  });
  const [row] = await db.query<{ admitted: number }>(
    { name: 'admit_mcp_refreshes', text: 'select agentd.admit_mcp_refreshes($1) as admitted' },
    [limit],
  );
  return row?.admitted ?? 0;
}

/** Wants a look at a connection's tools: a call found that they have changed, the server said so, or an operator asks. */
export async function requestRefresh(
  db: Queryable,
  connectionId: string,
  why: 'tool_call' | 'list_changed' | 'asked',
): Promise<boolean> {
  const [row] = await db.query<{ is_wanted: boolean }>(
    { name: 'request_mcp_refresh', text: 'select agentd.request_mcp_refresh($1, $2) as is_wanted' },
    [connectionId, why],
  );
  return row?.is_wanted ?? false;
}

/** A tool that may be offered. */
export type UsableTool = {
  readonly id: string;
  readonly tool_name: string;
  readonly function_name: string;
  readonly tool_schema: Readonly<Record<string, unknown>>;
  readonly openai_schema: {
    readonly type: 'function';
    readonly function: {
      readonly name: string;
      readonly description: string;
      readonly parameters: Readonly<Record<string, unknown>>;
      readonly strict: boolean;
    };
  };
  /** What it was accepted as; its calls are made only while the server still says the same. */
  readonly pinned_hash: string;
};

export type AgentConnection = McpConnection & {
  readonly connection_name: string;
  /** In the order of their names. */
  readonly tools: readonly UsableTool[];
};

/** The active connections of an agent with the tools that may be offered, the oldest first: one query. The workspace must be the agent's. */
export function agentConnections(
  db: Queryable,
  of: { readonly agentId: string; readonly workspaceId: string },
): Promise<readonly AgentConnection[]> {
  return db.query<AgentConnection>(
    {
      name: 'agent_mcp_connections',
      text: `
select ${connection('c')}, c.connection_name,
       coalesce((
         select jsonb_agg(jsonb_build_object(
                  'id', t.id, 'tool_name', t.tool_name, 'function_name', t.function_name, 'tool_schema', t.tool_schema,
                  'openai_schema', t.openai_schema, 'pinned_hash', t.pinned_hash)
                order by t.tool_name collate "C")
           from public.mcp_tools_cache t
          where t.connection_id = c.id and not t.is_quarantined and t.function_name is not null
            and t.pinned_hash = t.schema_hash), '[]') as tools
  from public.agents a
  join public.agent_mcp_connections c on c.agent_id = a.id and c.is_active
  left join public.mcp_servers s on s.id = c.mcp_server_id
 where a.id = $1 and a.workspace_id = $2
 order by c.created_at, c.id`,
    },
    [of.agentId, of.workspaceId],
  );
}
