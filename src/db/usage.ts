/** The roll-up of usage: events into deltas, deltas into sums, and the recomputation beside them. */
import type { Database, Queryable } from './database.ts';

/** What a pass over the events has found. */
export type Gathered = {
  readonly events: number;
  readonly deltas: number;
  /** False: a part of a backlog, and there is more. */
  readonly isComplete: boolean;
  /** When the oldest of the events was recorded, and the database's time at the pass; null: there was none. */
  readonly lagMs: number | null;
};

/**
 * Sums up what no pass has seen; null: another node is at it. Throws the driver's error: 40001 when another has just finished (try
 * again), 55000 when the events come from another server, 57014 when there were too many for the time.
 *
 * @param most events of one pass, about; null: all
 */
export async function gatherUsage(
  db: Pick<Database, 'transaction'>,
  most: number | null,
): Promise<Gathered | null> {
  const [row] = await db.transaction(
    (tx) =>
      tx.query<{ events: number; deltas: number; is_complete: boolean; lag_ms: number | null }>(
        `select events, deltas, is_complete, (extract(epoch from agentd.now() - oldest_at) * 1000)::float8 as lag_ms
           from agentd.gather_usage($1)`,
        [most],
      ),
    'repeatable read',
  );
  return row
    ? { events: row.events, deltas: row.deltas, isComplete: row.is_complete, lagMs: row.lag_ms }
    : null;
}

/** Up to `limit` workspaces after `after`, in the order of their ids, that have deltas to be folded; none of `without`. */
export async function workspacesToFold(
  db: Queryable,
  after: string | null,
  limit: number,
  without: readonly string[],
): Promise<string[]> {
  const rows = await db.query<{ id: string }>(
    {
      name: 'workspaces_to_fold',
      text: `select distinct d.workspace_id as id from agentd.usage_deltas d
              where d.workspace_id > coalesce($1::uuid, '00000000-0000-0000-0000-000000000000') and d.workspace_id <> all ($3::uuid[])
              order by 1 limit $2`,
    },
    [after, limit, without],
  );
  return rows.map((row) => row.id);
}

/** Some of these workspaces that have deltas to be folded, at most so many, by chance. */
export async function stillToFold(
  db: Queryable,
  workspaces: readonly string[],
  limit: number,
): Promise<string[]> {
  const rows = await db.query<{ id: string }>(
    {
      name: 'still_to_fold',
      text: `select w.id from unnest($1::uuid[]) w (id)
              where exists (select 1 from agentd.usage_deltas d where d.workspace_id = w.id) order by random() limit $2`,
    },
    [workspaces, limit],
  );
  return rows.map((row) => row.id);
}

/** How many deltas a statement has folded, and of how many workspaces it left them for later. */
export type Folded = { readonly deltas: number; readonly held: number };

/**
 * Adds the deltas of workspaces to their sums; null: another node is at it. Passes a workspace whose rows somebody holds; one alone is waited for, for 10 ms. Throws 55P03 where somebody is about to insert a row of one of
 * them: each alone tells whose it is.
 */
export async function foldUsage(db: Queryable, workspaces: readonly string[]): Promise<Folded | null> {
  const [row] = await db.query<{ folded: number; held: number }>(
    { name: 'fold_usage', text: 'select folded, held from agentd.fold_usage($1)' },
    [workspaces],
  );
  return row ? { deltas: row.folded, held: row.held } : null;
}

/** The workspace whose periods have waited longest to be cut anew, but none of `without`; null: there is none. */
export async function nextRecut(db: Queryable, without: readonly string[]): Promise<string | null> {
  const [row] = await db.query<{ id: string }>(
    'select r.workspace_id as id from agentd.usage_recuts r where r.workspace_id <> all ($1::uuid[]) order by r.id limit 1',
    [without],
  );
  return row?.id ?? null;
}

/** Cuts the periods of a workspace whose zone or plan was changed. False: a pass is under way, of another node. Throws 55P03 while somebody holds them. */
export async function recutUsage(db: Queryable, workspaceId: string): Promise<boolean> {
  const [row] = await db.query<{ done: boolean }>('select agentd.recut_requested_usage($1) as done', [
    workspaceId,
  ]);
  return row?.done ?? false;
}

/** Up to `limit` workspaces after `after`, in the order of their ids, that began to call a short time ago: rows of before may still come. */
export async function workspacesThatBeganToCall(
  db: Queryable,
  after: string | null,
  limit: number,
): Promise<string[]> {
  const rows = await db.query<{ id: string }>(
    `select c.workspace_id as id from agentd.conversation_calls c
      where c.since > agentd.now() - interval '2 days' and c.workspace_id > coalesce($1::uuid, '00000000-0000-0000-0000-000000000000')
      order by 1 limit $2`,
    [after, limit],
  );
  return rows.map((row) => row.id);
}

/** Takes back rows that were counted beside an application's first calls in a workspace. Returns how many. Throws 55P03 while somebody holds its counter. */
export async function voidCountedRows(db: Queryable, workspaceId: string, limit: number): Promise<number> {
  const [row] = await db.query<{ voided: number }>('select agentd.void_counted_rows($1, $2) as voided', [
    limit,
    workspaceId,
  ]);
  return row?.voided ?? 0;
}

/** Closes periods that ended more than `hours` ago. */
export async function closeUsagePeriods(db: Queryable, hours: number, limit: number): Promise<number> {
  const [row] = await db.query<{ closed: number }>(
    'select agentd.close_usage_periods(make_interval(hours => $1), $2) as closed',
    [hours, limit],
  );
  return row?.closed ?? 0;
}

/** Takes the turn of comparing sums with events, for this caller alone until `everyMs` are over. */
export async function takeReconciliation(db: Queryable, everyMs: number): Promise<boolean> {
  const rows = await db.query(
    `update agentd.usage_rollup_state s set last_run_at = agentd.now()
      where s.name in (
        select o.name from agentd.usage_rollup_state o
         where o.name = 'reconcile'
           and (o.last_run_at is null or abs(extract(epoch from agentd.now() - o.last_run_at)) * 1000 >= $1)
           for update skip locked)
     returning 1`,
    [everyMs],
  );
  return rows.length > 0;
}

/** A sum that differs from the events. */
export type Drift = {
  readonly workspace_id: string;
  /** overlap: of two periods, which no recomputation would tell. */
  readonly level: 'quarter_hour' | 'period' | 'overlap';
  readonly at: Date;
  readonly metric: string;
  readonly expected: number;
  readonly found: number;
};

/** Where sums differ from a recomputation; of all workspaces (null), or of one. Reads every event that is kept. */
export function usageDrift(db: Queryable, workspaceId: string | null): Promise<Drift[]> {
  return db.query<Drift>(
    `select workspace_id, level, at, metric, expected::float8, found::float8 from agentd.usage_drift($1)`,
    [workspaceId],
  );
}

/** Writes drift down, as found now; repaired or not. */
export async function recordDrift(
  db: Queryable,
  drift: readonly Drift[],
  isRepaired: boolean,
): Promise<void> {
  if (drift.length === 0) return;
  await db.query(
    `insert into agentd.usage_drifts (workspace_id, level, at, metric, expected, found, repaired_at)
     select d.workspace_id, d.level, d.at, d.metric, d.expected, d.found, case when $2 then agentd.now() end
       from jsonb_to_recordset($1::jsonb) d (workspace_id uuid, level text, at timestamptz, metric text, expected numeric, found numeric)
       join public.workspaces w on w.id = d.workspace_id`,
    [JSON.stringify(drift), isRepaired],
  );
}

/** What was found of a workspace before differs no more. */
export async function settleDrift(db: Queryable, workspaceId: string): Promise<void> {
  await db.query(
    'update agentd.usage_drifts set repaired_at = agentd.now() where workspace_id = $1 and repaired_at is null',
    [workspaceId],
  );
}

/** A workspace's sums anew from its events. Throws 55P03 while a pass is under way. */
export async function rebuildUsage(db: Queryable, workspaceId: string): Promise<void> {
  await db.query('select agentd.rebuild_usage($1)', [workspaceId]);
}

/** After a restore: what is there counts as seen, and is to be rebuilt. False: there was no restore. */
export async function adoptRestoredUsage(db: Queryable): Promise<boolean> {
  const [row] = await db.query<{ adopted: boolean }>('select agentd.adopt_restored_usage() as adopted');
  return row?.adopted ?? false;
}

/** Workspaces that have usage, after `after` in the order of their ids. */
export async function workspacesWithUsage(
  db: Queryable,
  after: string | null,
  limit: number,
): Promise<string[]> {
  const rows = await db.query<{ id: string }>(
    `select w.id from public.workspaces w
      where w.id > coalesce($1, '00000000-0000-0000-0000-000000000000'::uuid)
        and (exists (select 1 from public.usage_events e where e.workspace_id = w.id)
             or exists (select 1 from public.workspace_usage u where u.workspace_id = w.id)
             or exists (select 1 from public.usage_quarter_hours q where q.workspace_id = w.id))
      order by w.id limit $2`,
    [after, limit],
  );
  return rows.map((row) => row.id);
}
