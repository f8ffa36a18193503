/**
 * Locks that nobody but agentd can hold: rows of its own tables, where they were advisory locks, which any session may take and keep.
 *
 * A name has one row. Whoever has it locked holds the lock, to the end of his transaction. Rows are never changed, so that a lock costs
 * no vacuum to speak of, and is no conflict for a transaction with an old snapshot.
 */

/** Inner doors are shared by workspaces whose ids hash alike: daemons alone take them, and none stays behind one for long. */
const INNER_DOORS = 1024;
/** Names of workspaces alike: who finds one taken gets a longer slug. */
const SLUG_DOORS = 256;

export const LOCK_TABLES = `
    create table agentd.locks (
      name text primary key
    );
    comment on table agentd.locks is
      'Whoever has a row of it locked holds that lock, to the end of the transaction. No tenant can, as with an advisory lock.';
    insert into agentd.locks (name)
      select 'inner-door:' || n from generate_series(0, ${INNER_DOORS - 1}) n
      union all select 'slug:' || n from generate_series(0, ${SLUG_DOORS - 1}) n
      union all values ('partitions'), ('queue_rights'), ('vector_indexes'), ('pgboss'), ('pgboss_statistics');

    create table agentd.workspace_doors (
      workspace_id uuid primary key references public.workspaces (id) on delete cascade
    );
    comment on table agentd.workspace_doors is
      'The outer door of a workspace''s waiting room: whoever has the row locked may make jobs of its runs.';
    insert into agentd.workspace_doors (workspace_id) select w.id from public.workspaces w;

    create function agentd.add_workspace_door() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      insert into agentd.workspace_doors (workspace_id) values (new.id) on conflict do nothing;
      return null;
    end
    $$;
    create trigger add_workspace_door
      after insert on public.workspaces
      for each row execute function agentd.add_workspace_door();
`;

export const LOCK_FUNCTIONS = `
    -- Takes a lock if nobody holds it. Waits for nobody.
    create function agentd.try_lock(p_name text) returns boolean
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
    begin
      perform 1 from agentd.locks l where l.name = p_name for update skip locked;
      if found then
        return true;
      end if;
      -- a database that was filled without its rows
      if not exists (select 1 from agentd.locks l where l.name = p_name) then
        insert into agentd.locks (name) values (p_name) on conflict do nothing;
        return found;
      end if;
      return false;
    exception when lock_not_available then
      return false;
    end
    $$;

    -- Takes a lock, and waits for it as long as lock_timeout says: then lock_not_available.
    create function agentd.hold_lock(p_name text) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
    begin
      perform 1 from agentd.locks l where l.name = p_name for update;
      if not found then
        insert into agentd.locks (name) values (p_name) on conflict do nothing;
        perform 1 from agentd.locks l where l.name = p_name for update;
      end if;
    end
    $$;

    -- Name of a workspace's inner door.
    create function agentd.inner_door(p_workspace_id uuid) returns text
    language sql immutable set search_path = pg_catalog, pg_temp as $$
      select 'inner-door:' || (uuid_hash_extended(p_workspace_id, 7201) & ${INNER_DOORS - 1})
    $$;

    -- Holds the inner door together with others who let nobody in. Waits for nobody.
    create function agentd.try_shared_door(p_workspace_id uuid) returns boolean
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
    begin
      perform 1 from agentd.locks l where l.name = agentd.inner_door(p_workspace_id) for share skip locked;
      return found;
    end
    $$;

    -- The outer door. One that a transaction of an application holds is shut; a workspace without a door gets one.
    create function agentd.try_outer_door(p_workspace_id uuid) returns boolean
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
    begin
      perform 1 from agentd.workspace_doors d where d.workspace_id = p_workspace_id for update skip locked;
      if found then
        return true;
      end if;
      if not exists (select 1 from agentd.workspace_doors d where d.workspace_id = p_workspace_id) then
        insert into agentd.workspace_doors (workspace_id) values (p_workspace_id) on conflict do nothing;
        return found;
      end if;
      return false;
    exception when lock_not_available or foreign_key_violation then
      return false;
    end
    $$;
`;

export const DROP_LOCKS = `
    drop trigger add_workspace_door on public.workspaces;
    drop function agentd.add_workspace_door();
    drop function agentd.try_outer_door(uuid);
    drop function agentd.try_shared_door(uuid);
    drop function agentd.inner_door(uuid);
    drop function agentd.hold_lock(text);
    drop function agentd.try_lock(text);
    drop table agentd.workspace_doors;
    drop table agentd.locks;
`;

/** A piece of a function's text as it was and as it is, by the function's name in schema agentd. */
export type Piece = readonly [name: string, was: string, is: string];

const inner = (workspace: string): string => `pg_catalog.uuid_hash_extended(${workspace}, 7201)`;
const outer = (workspace: string): string => `pg_catalog.uuid_hash_extended(${workspace}, 7202)`;
const tryInner = (name: string, workspace: string): Piece => [
  name,
  `pg_try_advisory_xact_lock(${inner(workspace)})`,
  `agentd.try_lock(agentd.inner_door(${workspace}))`,
];
const holdInner = (name: string, workspace: string): Piece => [
  name,
  `pg_advisory_xact_lock(${inner(workspace)})`,
  `agentd.hold_lock(agentd.inner_door(${workspace}))`,
];
const tryOuter = (name: string, workspace: string): Piece => [
  name,
  `pg_try_advisory_xact_lock(${outer(workspace)})`,
  `agentd.try_outer_door(${workspace})`,
];

/** Where the locks were advisory ones, and what is said now. */
export const LOCK_PIECES: readonly Piece[] = [
  [
    'admit_workspaces',
    `pg_try_advisory_xact_lock_shared(${inner('v_workspace')})`,
    'agentd.try_shared_door(v_workspace)',
  ],
  ['admit_workspaces', `order by ${inner('w.id')}`, 'order by agentd.inner_door(w.id)'],
  tryInner('admit_workspaces', 'v_workspace'),
  holdInner('admit_workspaces', 'v_workspace'),
  tryOuter('admit_workspaces', 'v_workspace'),
  tryInner('look_at_arrivals', 'v_workspace'),
  tryOuter('look_at_arrivals', 'v_workspace'),
  holdInner('look_at_arrivals', 'v_busy'),
  tryOuter('look_at_arrivals', 'v_busy'),
  tryInner('look_at_waiting', 'v_workspace'),
  tryOuter('look_at_waiting', 'v_workspace'),
  tryOuter('enter_run', 'p_workspace_id'),
  ['ensure_vector_index', 'pg_catalog.pg_try_advisory_xact_lock(7204)', `agentd.try_lock('vector_indexes')`],
  [
    'ensure_partitions',
    `perform pg_advisory_xact_lock(hashtextextended('agentd.partitions:' || parent_name, 0));`,
    `perform agentd.hold_lock('partitions');`,
  ],
  [
    'retry_run',
    `perform pg_advisory_xact_lock(hashtextextended('agentd.retry:' || p_run_id, 0));`,
    'perform 1 from public.task_runs r where r.id = p_run_id for no key update;',
  ],
  [
    'fill_workspace_slug',
    `      -- Two workspaces of one name may be inserted at once: the second waits here, then sees the first.
      perform pg_advisory_xact_lock(hashtextextended('agentd.slug:' || wanted, 0));
      new.slug := wanted;
`,
    `      -- Two workspaces of one name may be inserted at once: the second waits for nobody, and gets a longer slug. So does one with the
      -- slug of somebody's personal workspace.
      new.slug := wanted;
      if wanted ~ '^personal-[0-9a-f]{8}-' or not agentd.try_lock('slug:' || (hashtextextended(wanted, 0) & ${SLUG_DOORS - 1})) then
        new.slug := wanted || '-' || left(replace(gen_random_uuid()::text, '-', ''), 8);
      end if;
`,
  ],
];
