/** One batch of a rule of retention: finds the next rows that have had their time, skips those that somebody holds, changes the rest. */
import type { Queryable } from './database.ts';
import type { RowRule } from './retention-rules.ts';

/** How far a walk through a table has come. */
export type Place =
  | { readonly walk: 'time'; readonly at: string; readonly tid: string }
  | { readonly walk: 'workspace'; readonly workspace: string; readonly isWhole: boolean };

export type Batch = {
  /** Rows that were looked at: those that are to be kept for longer than others are among them. */
  readonly seen: number;
  readonly changed: number;
  /** Due, and held by somebody. */
  readonly held: number;
  /** Where the next batch begins; null: this was the last. */
  readonly place: Place | null;
};

/** Workspaces that one batch of a walk by workspace looks into. */
const WORKSPACES = 200;

/**
 * Days by the workspace's own word, else by the configuration; null: for ever. (`greatest` of null and a number is the number: for ever
 * would be the shortest time of all.)
 */
const keptDays = (rule: RowRule): string =>
  `case when o.workspace_id is null then $2::integer when o.keep_days is not null then greatest(o.keep_days, ${rule.leastDays}) end`;

/** Before which time a row can be due at all: null where nothing ever is. */
const earliest = (rule: RowRule): string =>
  rule.workspace === null
    ? `agentd.now() - make_interval(days => $2::integer)`
    : `(select agentd.now() - make_interval(days => least($2::integer, case when min(s.keep_days) is not null then greatest(min(s.keep_days), ${rule.leastDays}) end))
      from agentd.retention_overrides s where s.rule = $1)`;

const overrides = (workspace: string): string =>
  `left join agentd.retention_overrides o on o.workspace_id = ${workspace} and o.rule = $1`;

const due = (rule: RowRule, keep: string): string =>
  `coalesce(${rule.at} < agentd.now() - make_interval(days => ${keep}), false)`;

/** Rows in the order of their time, from a place on. */
function byTime(rule: RowRule): string {
  return `
  select t.ctid as tid, ${rule.at} as at, ${rule.workspace === null ? 'true' : due(rule, keptDays(rule))} as is_due
    from ${rule.table} t
    ${rule.join ?? ''}
    ${rule.workspace === null ? '' : overrides(rule.workspace)}
   where ${rule.at} < ${earliest(rule)} and ($1::text is not null)
     and ${rule.at} >= coalesce($4::timestamptz, '-infinity')
     and (${rule.at}, t.ctid) > (coalesce($4::timestamptz, '-infinity'), coalesce($5::tid, '(0,0)'))
     ${rule.when === undefined ? '' : `and ${rule.when}`}
   order by ${rule.at}, t.ctid
   limit $3`;
}

const timeStatement = (rule: RowRule): string => `
with candidate as materialized (${byTime(rule)}
),
due as materialized (
  select t.ctid as tid from ${rule.table} t
   where t.ctid = any (array(select c.tid from candidate c where c.is_due))
     for ${rule.lock} of t skip locked
),
${rule.change}
select (select count(*) from candidate)::integer as seen,
       (select count(*) from candidate c where c.is_due)::integer as due,
       (select count(*) from done)::integer as changed,
       last.at::text as at, last.tid::text as tid
  from (select 1) one
  left join (select c.at, c.tid from candidate c order by c.at desc, c.tid desc limit 1) last on true`;

const workspaceStatement = (rule: RowRule): string => `
with room as materialized (
  select w.id, ${keptDays(rule)} as keep
    from public.workspaces w
    ${overrides('w.id')}
   where w.id >= coalesce($4::uuid, '00000000-0000-0000-0000-000000000000') and not (w.id = $4::uuid and $5::boolean)
   order by w.id
   limit ${WORKSPACES}
),
candidate as materialized (
  select r.tid, room.id as workspace_id
    from room
   cross join lateral (
     select t.ctid as tid from ${rule.table} t
      where t.workspace_id = room.id and ${rule.at} < agentd.now() - make_interval(days => room.keep)
        ${rule.when === undefined ? '' : `and ${rule.when}`}
      order by ${rule.at}
      limit $3) r
   order by room.id
   limit $3
),
due as materialized (
  select t.ctid as tid from ${rule.table} t
   where t.ctid = any (array(select c.tid from candidate c))
     for ${rule.lock} of t skip locked
),
${rule.change}
select (select count(*) from candidate)::integer as seen,
       (select count(*) from candidate)::integer as due,
       (select count(*) from done)::integer as changed,
       (select count(*) from room)::integer as rooms,
       (select max(c.workspace_id::text) from candidate c) as last_workspace,
       (select max(r.id::text) from room r) as last_room`;

/** Changes the next rows, at most `most`. Throws the driver's error: 55P03 when what hangs on a row is held by somebody. */
export async function changeBatch(
  db: Queryable,
  rule: RowRule,
  keepDays: number | null,
  most: number,
  place: Place | null,
): Promise<Batch> {
  // without a name: planned for this place and this many rows each time, which costs a millisecond and never a scan of the table
  if (rule.walk === 'time') {
    const from = place?.walk === 'time' ? place : null;
    const [row] = await db.query<{
      seen: number;
      due: number;
      changed: number;
      at: string | null;
      tid: string | null;
    }>(timeStatement(rule), [rule.name, keepDays, most, from?.at ?? null, from?.tid ?? null]);
    if (!row) throw new Error(`The rule ${rule.name} answered nothing.`);
    const next = row.seen < most || row.at === null || row.tid === null ? null : row;
    return {
      seen: row.seen,
      changed: row.changed,
      held: row.due - row.changed,
      place: next === null ? null : { walk: 'time', at: next.at as string, tid: next.tid as string },
    };
  }
  const from = place?.walk === 'workspace' ? place : null;
  const [row] = await db.query<{
    seen: number;
    due: number;
    changed: number;
    rooms: number;
    last_workspace: string | null;
    last_room: string | null;
  }>(workspaceStatement(rule), [rule.name, keepDays, most, from?.workspace ?? null, from?.isWhole ?? false]);
  if (!row) throw new Error(`The rule ${rule.name} answered nothing.`);
  // a full batch that changed nothing met held rows only: on to the next workspace, or it would meet them for ever
  const isFull = row.seen === most;
  const isStuck = isFull && row.changed === 0;
  let next: Place | null = null;
  if (isFull && row.last_workspace !== null)
    next = { walk: 'workspace', workspace: row.last_workspace, isWhole: isStuck };
  else if (row.rooms === WORKSPACES && row.last_room !== null)
    next = { walk: 'workspace', workspace: row.last_room, isWhole: true };
  return { seen: row.seen, changed: row.changed, held: row.due - row.changed, place: next };
}

/** Steps over the next row, which can't be changed now because of what hangs on it. Null: there is none, or the walk is not by time. */
export async function stepOver(
  db: Queryable,
  rule: RowRule,
  keepDays: number | null,
  place: Place | null,
): Promise<{ readonly place: Place; readonly key: string } | null> {
  if (rule.walk === 'workspace') return null;
  const from = place?.walk === 'time' ? place : null;
  const [row] = await db.query<{ at: string; tid: string; key: string }>(
    `select s.at::text as at, s.tid::text as tid,
            coalesce((select to_jsonb(t) ->> 'id' from ${rule.table} t where t.ctid = s.tid), s.tid::text) as key
       from (${byTime(rule)}) s`,
    [rule.name, keepDays, 1, from?.at ?? null, from?.tid ?? null],
  );
  return row ? { place: { walk: 'time', at: row.at, tid: row.tid }, key: row.key } : null;
}

/** How many rows have had their time, counted up to `most`, and the oldest of them. Changes nothing. */
export async function countDue(
  db: Queryable,
  rule: RowRule,
  keepDays: number | null,
  most: number,
): Promise<{ rows: number; oldest: Date | null }> {
  const values = [rule.name, keepDays, most];
  const [row] = await db.query<{ rows: number; oldest: Date | null }>(
    `select count(*) as rows, min(d.at) as oldest from (
  select ${rule.at} as at
    from ${rule.table} t
    ${rule.join ?? ''}
    ${rule.workspace === null ? '' : overrides(rule.workspace)}
   where ${rule.workspace === null ? `${rule.at} < ${earliest(rule)}` : due(rule, keptDays(rule))} and ($1::text is not null)
     ${rule.when === undefined ? '' : `and ${rule.when}`}
   limit $3) d`,
    values,
  );
  return { rows: row?.rows ?? 0, oldest: row?.oldest ?? null };
}

/** Whether a rule can find anything: somebody has said how long. */
export async function isLimited(db: Queryable, rule: RowRule, keepDays: number | null): Promise<boolean> {
  if (keepDays !== null) return true;
  if (rule.workspace === null) return false;
  const found = await db.query(
    'select 1 from agentd.retention_overrides o where o.rule = $1 and o.keep_days is not null limit 1',
    [rule.name],
  );
  return found.length > 0;
}
