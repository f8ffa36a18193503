/** What keeps connections to MCP servers from being stuck, whatever died: safe on every node at once, each pass repairs a bounded number. */
import type { Queryable } from './database.ts';

const LIMIT = 200;

/** Claims in a row that ended with their worker; each one more waits longer. */
const MOST_LOST_CLAIMS = 3;

async function count(db: Queryable, name: string, text: string, values: readonly unknown[]): Promise<number> {
  const [row] = await db.query<{ repaired: number }>({ name, text }, values);
  return Number(row?.repaired ?? 0);
}

/** Connections whose worker is gone wait again; one that has outlived several workers waits an hour. */
export function requeueLapsedRefreshes(db: Queryable, expected: Date | null = null): Promise<number> {
  return count(
    db,
    'requeue_lapsed_mcp_refreshes',
    `
with lapsed as (
  select r.id, r.job_id, r.lost_claims + 1 as lost from agentd.mcp_refreshes r
   where r.lease_expires_at is not null
     and (r.lease_expires_at < agentd.now() or r.lease_expires_at > agentd.now() + interval '10 minutes')
     and ($2::timestamptz is null or agentd.now() between $2 - interval '5 seconds' and $2 + interval '5 seconds')
   order by r.lease_expires_at
   limit $1
     for no key update skip locked
),
dropped as materialized (
  select l.id, l.lost, agentd.drop_job('mcp-refresh', l.job_id) from lapsed l
),
requeued as (
  update agentd.mcp_refreshes r
     set lease_epoch = r.lease_epoch + 1, lease_expires_at = null, job_id = null, lost_claims = least(d.lost, 1000),
         wanted_at = agentd.now() + case when d.lost >= ${MOST_LOST_CLAIMS} then interval '1 hour' else interval '0' end
    from dropped d where r.id = d.id
  returning r.id
)
select count(*) as repaired from requeued`,
    [LIMIT, expected],
  );
}

/** Connections that were let in and whose job is gone wait again. */
export function requeueRefreshesWithoutJob(db: Queryable): Promise<number> {
  return count(
    db,
    'requeue_mcp_refreshes_without_job',
    `
with orphaned as (
  select r.id from agentd.mcp_refreshes r
   where r.job_id is not null and r.lease_expires_at is null
     and not exists (select 1 from pgboss.job j
                      where j.name = 'mcp-refresh' and j.id = r.job_id and j.state in ('created', 'retry', 'active'))
   limit $1
     for no key update skip locked
),
requeued as (
  update agentd.mcp_refreshes r
     -- a new epoch: the old key may still be in the queue
     set job_id = null, lease_epoch = r.lease_epoch + 1, wanted_at = coalesce(r.wanted_at, agentd.now())
    from orphaned o where r.id = o.id
  returning r.id
)
select count(*) as repaired from requeued`,
    [LIMIT],
  );
}

/** A job whose connection is not being looked at after this time was fetched by a worker that died. */
const CLAIM_PATIENCE = `interval '30 seconds'`;

/** Jobs that a dead worker left active without a connection that it had claimed. */
export function dropStaleRefreshJobs(db: Queryable): Promise<number> {
  return count(
    db,
    'drop_stale_mcp_jobs',
    `
with stale as (
  select j.id from pgboss.job j
   where j.name = 'mcp-refresh' and j.policy = 'exclusive' and j.state = 'active'
     and j.started_on < agentd.now() - ${CLAIM_PATIENCE}
     and not exists (select 1 from agentd.mcp_refreshes r where r.job_id = j.id and r.lease_expires_at is not null)
   limit $1
),
dropped as (
  delete from pgboss.job j using stale where j.name = 'mcp-refresh' and j.id = stale.id and j.state = 'active' returning j.id
)
select count(*) as repaired from dropped`,
    [LIMIT],
  );
}
