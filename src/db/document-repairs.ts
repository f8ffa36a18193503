/** What keeps documents from being stuck, whatever died: safe on every node at once, each pass repairs a bounded number. */
import type { Queryable } from './database.ts';

const LIMIT = 200;

/** Claims in a row that ended with their worker, after which a document is taken for poisonous. */
const MOST_LOST_CLAIMS = 5;

async function count(db: Queryable, name: string, text: string, values: readonly unknown[]): Promise<number> {
  const [row] = await db.query<{ repaired: number }>({ name, text }, values);
  return Number(row?.repaired ?? 0);
}

/** Documents whose worker is gone wait again, without a job; one that has outlived several workers has failed. */
export function requeueLapsedDocuments(db: Queryable, expected: Date | null = null): Promise<number> {
  return count(
    db,
    'requeue_lapsed_documents',
    `
with lapsed as (
  select k.id, k.job_id, k.lost_claims + 1 as lost from public.knowledge_sources k
   where k.processing_status = 'processing'
     and (k.lease_expires_at is null or k.lease_expires_at < agentd.now()
          or k.lease_expires_at > agentd.now() + interval '10 minutes')
     and ($2::timestamptz is null or agentd.now() between $2 - interval '5 seconds' and $2 + interval '5 seconds')
     -- whose file somebody holds, is left: its row is to be written as well
     and (k.media_id is null
          or exists (select 1 from public.media_library m where m.id = k.media_id for no key update skip locked))
   order by k.lease_expires_at
   limit $1
     for no key update skip locked
),
dropped as materialized (
  select l.id, l.lost, agentd.drop_job('document-ingest', l.job_id) from lapsed l
),
requeued as (
  update public.knowledge_sources k
     set processing_status = (case when d.lost >= ${MOST_LOST_CLAIMS} then 'failed' else 'uploaded' end)::public.processing_status,
         lease_epoch = least(k.lease_epoch, 2147483646) + 1, lease_expires_at = null, job_id = null,
         -- it has not failed: its worker has
         attempts = greatest(k.attempts - 1, 0), lost_claims = d.lost,
         reason_code = case when d.lost >= ${MOST_LOST_CLAIMS} then 'worker_crashed' end,
         reason = case when d.lost >= ${MOST_LOST_CLAIMS} then
           'Its worker ended ' || d.lost || ' times while it was being read. Set processing_status to uploaded to try again.' end
    from dropped d
   where k.id = d.id
  returning k.id
)
select count(*) as repaired from requeued`,
    [LIMIT, expected],
  );
}

/** Documents that were let in and whose job is gone wait again, as do those whose job has used up its attempts. */
export function requeueDocumentsWithoutJob(db: Queryable): Promise<number> {
  return count(
    db,
    'requeue_documents_without_job',
    `
with orphaned as (
  select k.id from public.knowledge_sources k
   where k.processing_status = 'uploaded' and k.job_id is not null
     and not exists (select 1 from pgboss.job j
                      where j.name = 'document-ingest' and j.id = k.job_id and j.state in ('created', 'retry', 'active'))
   limit $1
     for no key update skip locked
),
requeued as (
  update public.knowledge_sources k set job_id = null, retry_at = agentd.now() from orphaned o where k.id = o.id returning k.id
)
select count(*) as repaired from requeued`,
    [LIMIT],
  );
}

/** A job whose document is not being worked on after this time was fetched by a worker that died. */
const CLAIM_PATIENCE = `interval '30 seconds'`;

/** Jobs that a dead worker left active without a document that it had claimed. */
export function dropStaleDocumentJobs(db: Queryable): Promise<number> {
  return count(
    db,
    'drop_stale_document_jobs',
    `
with stale as (
  select j.id from pgboss.job j
   where j.name = 'document-ingest' and j.policy = 'exclusive' and j.state = 'active'
     and j.started_on < agentd.now() - ${CLAIM_PATIENCE}
     and not exists (select 1 from public.knowledge_sources k where k.job_id = j.id and k.processing_status = 'processing')
   limit $1
),
dropped as (
  delete from pgboss.job j using stale where j.name = 'document-ingest' and j.id = stale.id and j.state = 'active' returning j.id
)
select count(*) as repaired from dropped`,
    [LIMIT],
  );
}

/** Can be refreshed when its time has come, as the index has it. */
const refreshable = (row: string): string =>
  `((${row}.next_refresh_at is not null and ${row}.processing_status in ('completed', 'failed')) is true)`;

/** Workspaces that one look for due refreshes considers, and refreshes of each. */
const WORKSPACES = 500;
const REFRESHES = 50;

/**
 * Sources whose refresh is due ask for it, some of each workspace. What is being read, or has nothing to be refreshed from, is left.
 *
 * @param after the last workspace of the look before; null: from the first on
 * @returns how many asked, and the last workspace considered: null at the end
 */
export async function requestDueRefreshes(
  db: Queryable,
  after: string | null,
): Promise<{ readonly repaired: number; readonly last: string | null }> {
  const [row] = await db.query<{ repaired: number; workspaces: number; last: string | null }>(
    {
      name: 'request_due_refreshes',
      text: `
with recursive workspace as (
  (select k.workspace_id as id, 1 as place from public.knowledge_sources k
    where ${refreshable('k')} and ($1::uuid is null or k.workspace_id > $1) order by k.workspace_id limit 1)
  union all
  select next.id, w.place + 1
    from workspace w
   cross join lateral (
     select k.workspace_id as id from public.knowledge_sources k
      where ${refreshable('k')} and k.workspace_id > w.id order by k.workspace_id limit 1) next
   where w.place < ${WORKSPACES}
),
due as (
  select d.id
    from workspace w
   cross join lateral (
     select k.id from public.knowledge_sources k
      where ${refreshable('k')} and k.workspace_id = w.id and k.next_refresh_at <= agentd.now()
      order by k.next_refresh_at limit ${REFRESHES}
        for no key update skip locked) d
),
requested as (
  update public.knowledge_sources k
     set processing_status = 'uploaded', request = least(k.request, 2147483646) + 1, attempts = 0, retry_at = null, job_id = null, next_refresh_at = null
    from due where k.id = due.id
  returning k.id
)
select (select count(*)::integer from requested) as repaired, (select count(*)::integer from workspace) as workspaces,
       (select w.id from workspace w order by w.place desc limit 1) as last`,
    },
    [after],
  );
  return {
    repaired: row?.repaired ?? 0,
    last: (row?.workspaces ?? 0) < WORKSPACES ? null : (row?.last ?? null),
  };
}

/** Sources that one look for old chunks considers. */
const CONSIDERED = 1000;

/**
 * Sources with chunks that nobody searches: of an older generation, of an attempt that was given up, of an archived source.
 *
 * @param after the last source of the look before; null: from the first on
 * @returns those found, and the last one considered: null at the end
 */
export async function sourcesWithOldChunks(
  db: Queryable,
  after: string | null,
): Promise<{ readonly ids: readonly string[]; readonly last: string | null }> {
  const rows = await db.query<{ id: string; is_found: boolean }>(
    {
      name: 'sources_with_old_chunks',
      text: `
select k.id,
       k.processing_status in ('completed', 'failed', 'archived') and exists (
         select 1 from public.knowledge_chunks c where c.source_id = k.id and c.generation < k.generation
         union all
         select 1 from public.knowledge_chunks c where c.source_id = k.id and c.generation > k.generation
            -- while a workspace moves to another model, its new vectors are there
            and not exists (select 1 from agentd.embedding_migrations g
                             where g.workspace_id = k.workspace_id and g.status in ('waiting', 'running', 'failed'))
         union all
         select 1 from public.knowledge_chunks c where c.source_id = k.id and k.processing_status = 'archived') as is_found
  from (select o.id, o.workspace_id, o.processing_status, o.generation from public.knowledge_sources o
         where $1::uuid is null or o.id > $1 order by o.id limit ${CONSIDERED}) k
 order by k.id`,
    },
    [after],
  );
  return {
    ids: rows.filter((row) => row.is_found).map((row) => row.id),
    last: rows.length < CONSIDERED ? null : (rows.at(-1)?.id ?? null),
  };
}
