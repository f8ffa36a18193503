/** What makes credentials due, and keeps them from being stuck, whatever died: safe on every node at once. */
import type { Queryable } from './database.ts';

const LIMIT = 200;

/** Marks due credentials, at most so many. Returns how many. */
export async function requestDueCredentials(db: Queryable, limit: number): Promise<number> {
  const [row] = await db.query<{ requested: number }>(
    { name: 'request_due_credentials', text: 'select agentd.request_due_credentials($1) as requested' },
    [limit],
  );
  return row?.requested ?? 0;
}

/** Milliseconds until the next credential is due; null: none will be. */
export async function nextCredentialDueMs(db: Queryable): Promise<number | null> {
  const [row] = await db.query<{ ms: number | null }>({
    name: 'next_credential_due',
    text: `
select (extract(epoch from least(n.at, agentd.now() + interval '1 day') - agentd.now()) * 1000)::float8 as ms
  from (
    select min(c.next_refresh_at) as at
      from public.user_integration_credentials c
     where ((c.next_refresh_at is not null and c.connection_status = 'active' and not c.is_refresh_due) is true)
       -- nothing can be taken from infinity, and a row may hold it
       and c.next_refresh_at > '-infinity') n
 where n.at is not null`,
  });
  return row?.ms ?? null;
}

/** A job that is active for so long without anybody's lease on its credential was fetched by a worker that died. */
const CLAIM_PATIENCE = `interval '30 seconds'`;
/** A lease that lies far ahead is of a clock that was wrong. */
const UNHELD = `(c.refresh_lease_until is null or c.refresh_lease_until <= agentd.now()
                 or c.refresh_lease_until > agentd.now() + interval '10 minutes')`;

/** Credentials whose worker is gone, and those whose job is, wait again. Returns how many. */
export async function requeueLostCredentials(db: Queryable): Promise<number> {
  const [row] = await db.query<{ repaired: number }>(
    {
      name: 'requeue_lost_credentials',
      text: `
with admitted as materialized (
  select c.id, c.job_id from public.user_integration_credentials c
   where c.job_id is not null and ${UNHELD}
   limit 5000
),
lost as (
  select a.id, a.job_id from admitted a
    left join pgboss.job j on j.name = 'credential-refresh' and j.id = a.job_id and j.state in ('created', 'retry', 'active')
   where j.id is null or (j.state = 'active' and j.started_on < agentd.now() - ${CLAIM_PATIENCE})
   limit $1
),
locked as (
  select c.id, c.job_id from public.user_integration_credentials c join lost l on l.id = c.id and l.job_id = c.job_id
   where ${UNHELD}
     for no key update of c skip locked
),
dropped as materialized (
  select l.id, agentd.drop_job('credential-refresh', l.job_id) from locked l
),
requeued as (
  update public.user_integration_credentials c
     set job_id = null, refresh_lease_token = null, refresh_lease_until = null
    from dropped d where c.id = d.id
  returning 1
)
select count(*)::integer as repaired from requeued`,
    },
    [LIMIT],
  );
  return row?.repaired ?? 0;
}
