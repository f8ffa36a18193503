/**
 * Messages of workspaces that ask for it (settings.embed_messages) are embedded, and messages are searched.
 *
 * What is to be embedded is a row of agentd.message_queue, made by a trigger in workspaces that have a row in
 * agentd.message_workspaces and by nothing elsewhere. A daemon holds a workspace, not a message: it claims one under a new epoch, takes
 * a batch of its messages, and gives it back; the workspaces are claimed in turn. Every write of the holder carries the epoch, and
 * the version of each message as it was read, so that what was edited meanwhile stays in the queue. Messages from before are found
 * by a walk through the channels and conversations of the workspace, a stretch at a time.
 */
import { type Kysely, sql } from 'kysely';
import { applyAccess } from './access.ts';
import { runSql, vectorSchema } from './run-sql.ts';
import { searchMessages } from './search-messages.ts';

/** Workspaces that one claim looks at: passing one that rests is three looks into indexes. */
const LOOKS = 1_000;
/** Channels and conversations that one stretch of a walk comes through. */
const CONTAINERS = 200;
/** A walk waits so long for transactions that had begun before the workspace asked; a tenant may leave one open for ever. */
const PATIENCE = '10 minutes';

/** Longer than any lease, and than any rest but an operator's pause: one that ends later was set while the clock was ahead. */
const LONGEST_LEASE = '10 minutes';
const LONGEST_REST = '1 hour';
const IS_FREE = `(w.retry_at is null or w.retry_at <= v_now or (w.retry_at > v_now + interval '${LONGEST_REST}' and w.retry_at <> 'infinity'))
               and (w.lease_expires_at is null or w.lease_expires_at < v_now or w.lease_expires_at > v_now + interval '${LONGEST_LEASE}')`;

/** The two kinds of messages: where they are, what they lie in, and its column. */
const KINDS = [
  { kind: 'channel', table: 'chat_messages', container: 'chat_channels', column: 'channel_id' },
  { kind: 'conversation', table: 'agent_messages', container: 'conversations', column: 'conversation_id' },
] as const;

const ASKS = `@> '{"embed_messages": true}'`;

export async function up(db: Kysely<unknown>): Promise<void> {
  const home = `"${(await vectorSchema(db)).replaceAll('"', '""')}"`;
  await addTables(db, home);
  await followWorkspaces(db);
  await followMessages(db, home);
  await claim(db);
  await walk(db);
  await runSql(db, sql.raw(searchMessages(home)));
  // those that have asked already
  await runSql(
    db,
    sql`insert into agentd.message_workspaces (id) select w.id from public.workspaces w where w.settings ${sql.raw(ASKS)}`,
  );
  await applyAccess(db);
}

async function addTables(db: Kysely<unknown>, home: string): Promise<void> {
  await runSql(
    db,
    sql`
    -- Null where nobody has embedded it, or an application has: what the worker writes has its model.
    alter table public.chat_messages
      add column embedding_model text, add column embedding_dimensions integer;
    alter table public.agent_messages
      add column embedding ${sql.raw(home)}.vector, add column embedding_model text, add column embedding_dimensions integer;
    comment on column public.chat_messages.embedding_model is
      'The model of an embedding that the worker wrote; null for one that an application wrote.';
    comment on column public.agent_messages.embedding_model is
      'The model of an embedding that the worker wrote; null for one that an application wrote.';

    create table agentd.message_workspaces (
      id               uuid        primary key references public.workspaces (id) on delete cascade,
      -- false: it asks no more, and what was embedded is being taken away
      is_wanted        boolean     not null default true,
      -- where the walk through older messages is
      walk_kind        text        default 'channel' check (walk_kind in ('channel', 'conversation')),
      walk_container   uuid,
      walk_at          timestamptz,
      walk_message     uuid,
      walk_after       xid8,
      walk_since       timestamptz,
      walk_skipped     boolean     not null default false,
      worker_id        text,
      lease_epoch      integer     not null default 0,
      lease_expires_at timestamptz,
      -- messages of the next batch: halved by a failure, doubled by a success
      batch_size       integer     not null default 256 check (batch_size >= 1),
      failures         integer     not null default 0,
      retry_at         timestamptz,
      reason_code      text,
      reason           text,
      succeeded_at     timestamptz,
      -- the models that its messages have been embedded with, the newest last
      models           jsonb       not null default '[]',
      messages         bigint      not null default 0,
      tokens           bigint      not null default 0,
      cost_micros      bigint      not null default 0,
      created_at       timestamptz not null default agentd.now()
    );
    comment on column agentd.message_workspaces.retry_at is
      'Not before this moment. Null: at once; infinity: an operator has paused it.';
    comment on column agentd.message_workspaces.walk_kind is 'Null: every older message has been seen.';
    create index message_workspaces_unfinished_idx on agentd.message_workspaces (id) where walk_kind is not null;

    create table agentd.message_queue (
      kind            text        not null check (kind in ('channel', 'conversation')),
      message_id      uuid        not null,
      workspace_id    uuid        not null,
      seq             bigint      generated always as identity,
      -- rises with every edit
      version         integer     not null default 1,
      attempts        integer     not null default 0,
      first_failed_at timestamptz,
      reason_code     text,
      reason          text,
      -- set: it is not tried again
      failed_at       timestamptz,
      primary key (message_id, kind)
    );
    create index message_queue_waiting_idx on agentd.message_queue (workspace_id, attempts, seq) where failed_at is null;
    create index message_queue_failed_idx on agentd.message_queue (failed_at) where failed_at is not null;
    `,
  );
}

async function followWorkspaces(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create function agentd.choose_message_embedding() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if new.settings ${sql.raw(ASKS)} then
        insert into agentd.message_workspaces (id) values (new.id)
        on conflict (id) do update
           set is_wanted = true, walk_kind = 'channel', walk_container = null, walk_at = null, walk_message = null, walk_after = null,
               walk_since = null, walk_skipped = false, failures = 0,
               -- an operator's pause stays
               retry_at = case when message_workspaces.retry_at = 'infinity' then message_workspaces.retry_at end,
               reason_code = null, reason = null;
        perform agentd.wake('message-embedding');
      else
        -- whoever has a batch of it loses it with the epoch
        update agentd.message_workspaces w
           set is_wanted = false, walk_kind = 'channel', walk_container = null, walk_at = null, walk_message = null, walk_skipped = false,
               lease_epoch = w.lease_epoch + 1, lease_expires_at = null, worker_id = null,
               retry_at = case when w.retry_at = 'infinity' then w.retry_at end, reason_code = null, reason = null
         where w.id = new.id and w.is_wanted;
        if found then
          perform agentd.wake('message-embedding');
        end if;
      end if;
      return null;
    end
    $$;
    create trigger choose_message_embedding_insert after insert on public.workspaces
      for each row when (new.settings ${sql.raw(ASKS)}) execute function agentd.choose_message_embedding();
    create trigger choose_message_embedding_update after update of settings on public.workspaces
      for each row when ((new.settings ${sql.raw(ASKS)}) is distinct from (old.settings ${sql.raw(ASKS)}))
      execute function agentd.choose_message_embedding();
    `,
  );
}

async function followMessages(db: Kysely<unknown>, home: string): Promise<void> {
  // with an empty search_path no operator of pgvector is found by itself
  const isSame = sql.raw(`((new.embedding is null) = (old.embedding is null)
           and coalesce(not new.embedding operator(${home}.<>) old.embedding, true))`);
  await runSql(
    db,
    sql`
    -- Whether an application has marked a message as deleted, hidden or temporary: it is neither embedded nor found.
    create function agentd.is_hidden_message(p_metadata jsonb) returns boolean
    language sql immutable set search_path = pg_catalog, pg_temp as $$
      select coalesce(
        p_metadata @> '{"deleted": true}' or p_metadata @> '{"hidden": true}' or p_metadata @> '{"temporary": true}'
        or p_metadata ->> 'deleted_at' is not null, false)
    $$;

    -- A vector of what a message no longer says is not kept, unless an application has brought one with the new text. The model is
    -- the worker's word.
    create function agentd.guard_message_embedding() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if tg_op = 'UPDATE' and (new.content is distinct from old.content or agentd.is_hidden_message(new.metadata))
         and old.embedding_model is not null and ${isSame} then
        new.embedding := null;
        new.embedding_model := null;
        new.embedding_dimensions := null;
        return new;
      end if;
      if agentd.is_service_caller() then
        return new;
      end if;
      if tg_op = 'UPDATE' and ${isSame} then
        new.embedding_model := old.embedding_model;
        new.embedding_dimensions := old.embedding_dimensions;
      else
        new.embedding_model := null;
        new.embedding_dimensions := null;
      end if;
      return new;
    end
    $$;

    -- For each row: a statement with a transition table costs a single insert more, and most inserts are single. Who does not ask pays
    -- for a look at a small table.
    create function agentd.queue_message() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if not exists (select 1 from agentd.message_workspaces w where w.id = new.workspace_id and w.is_wanted) then
        return null;
      end if;
      if agentd.is_hidden_message(new.metadata) then
        return null;
      end if;
      insert into agentd.message_queue (kind, message_id, workspace_id) values (tg_argv[0], new.id, new.workspace_id)
      -- edited, or of an earlier message of that id
      on conflict (message_id, kind) do update
         set workspace_id = excluded.workspace_id, version = message_queue.version + 1, attempts = 0, first_failed_at = null,
             reason_code = null, reason = null, failed_at = null;
      perform agentd.wake('message-embedding');
      return null;
    end
    $$;
    ${sql.raw(
      KINDS.map(
        ({ kind, table }) => `
    create trigger queue_new_message after insert on public.${table}
      for each row when (new.embedding is null) execute function agentd.queue_message('${kind}');
    create trigger zz_guard_message_embedding_insert before insert on public.${table}
      for each row when (new.embedding_model is not null or new.embedding_dimensions is not null)
      execute function agentd.guard_message_embedding();
    create trigger zz_guard_message_embedding_update
      before update of content, metadata, embedding, embedding_model, embedding_dimensions on public.${table}
      for each row execute function agentd.guard_message_embedding();
    create trigger queue_changed_message after update of content, metadata, workspace_id on public.${table}
      for each row when (new.embedding is null
                         and (new.content is distinct from old.content or new.metadata is distinct from old.metadata
                              or new.workspace_id is distinct from old.workspace_id))
      execute function agentd.queue_message('${kind}');`,
      ).join('\n'),
    )}
    `,
  );
}

async function claim(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- Takes the next workspace after p_after, in a ring, in which there is something to do and which nobody has. No rows: there is none.
    -- A row without an epoch: it has come by so many that rest that it gave up at this one, and the next look begins there.
    -- Waits for nobody. A lease or a rest that ends later than any that is given was set while the clock was ahead: it is over.
    create function agentd.claim_message_workspace(p_after uuid, p_worker_id text, p_lease_seconds double precision)
    returns table (id uuid, lease_epoch integer, is_wanted boolean, is_walking boolean, batch_size integer, failures integer)
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
    #variable_conflict use_column
    declare
      v_after   uuid := coalesce(p_after, '00000000-0000-0000-0000-000000000000');
      v_first   uuid := v_after;
      v_wrapped boolean := false;
      v_next    uuid;
      v_now     timestamptz := agentd.now();
    begin
      for look in 1 .. ${sql.raw(String(LOOKS))} loop
        v_next := least(
          (select q.workspace_id from agentd.message_queue q
            where q.failed_at is null and q.workspace_id > v_after order by q.workspace_id limit 1),
          (select w.id from agentd.message_workspaces w
            where w.walk_kind is not null and w.id > v_after order by w.id limit 1));
        if v_next is null then
          if v_wrapped then
            return;
          end if;
          v_wrapped := true;
          v_after := '00000000-0000-0000-0000-000000000000';
          continue;
        end if;
        if v_wrapped and v_next > v_first then
          return;
        end if;
        v_after := v_next;
        continue when not exists (select 1 from agentd.message_workspaces w where w.id = v_next and ${sql.raw(IS_FREE)});
        return query
          with free as (
            select w.id from agentd.message_workspaces w
             where w.id = v_next and ${sql.raw(IS_FREE)}
               for no key update skip locked
          )
          update agentd.message_workspaces w
             set lease_epoch = w.lease_epoch + 1, worker_id = p_worker_id,
                 lease_expires_at = agentd.now() + make_interval(secs => p_lease_seconds)
            from free where w.id = free.id
          returning w.id, w.lease_epoch, w.is_wanted, w.walk_kind is not null, w.batch_size, w.failures;
        if found then
          return;
        end if;
      end loop;
      return query select v_after, null::integer, null::boolean, null::boolean, null::integer, null::integer;
    end
    $$;

    -- Rows of messages that are gone or lie elsewhere now, and of workspaces that do not ask: nobody will come for them. Returns how many.
    create function agentd.sweep_message_queue(p_limit integer) returns integer
    language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
      with gone as (
        delete from agentd.message_queue q
         where (q.message_id, q.kind) in (
           select o.message_id, o.kind from (
             (select f.message_id, f.kind, f.workspace_id from agentd.message_queue f
               where f.failed_at is not null order by f.failed_at limit 10000)
             union all
             (select f.message_id, f.kind, f.workspace_id from agentd.message_queue f
               where f.failed_at is null
                 and not exists (select 1 from agentd.message_workspaces w where w.id = f.workspace_id) limit 10000)) o
            where not exists (select 1 from agentd.message_workspaces w where w.id = o.workspace_id)
               or not exists (select 1 from public.chat_messages m
                               where o.kind = 'channel' and m.id = o.message_id and m.workspace_id = o.workspace_id
                              union all
                              select 1 from public.agent_messages m
                               where o.kind = 'conversation' and m.id = o.message_id and m.workspace_id = o.workspace_id)
            limit p_limit)
        returning 1)
      select count(*)::integer from gone
    $$;
    `,
  );
}

async function walk(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- One stretch of the walk through a workspace's older messages: into the queue, or, where the workspace asks no more, without the
    -- worker's vectors. Returns how many messages it came by; -1: later, transactions of before are
    -- still open, or somebody holds a message that is to lose its vector.
    create function agentd.walk_messages(p_id uuid, p_epoch integer, p_limit integer) returns integer
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
    declare
      w         agentd.message_workspaces;
      v_count   integer := 0;
      v_seen    integer;
      v_skipped integer;
      v_at      timestamptz;
      v_message uuid;
    begin
      select * into w from agentd.message_workspaces m
       where m.id = p_id and m.lease_epoch = p_epoch and m.walk_kind is not null for no key update skip locked;
      if not found then
        return 0;
      end if;
      -- A message whose transaction did not see that its workspace asks is not in the queue: the walk begins when all of those are over.
      if w.walk_after is null then
        w.walk_after := pg_snapshot_xmax(pg_current_snapshot());
        w.walk_since := agentd.now();
      end if;
      -- the clock was ahead
      w.walk_since := least(w.walk_since, agentd.now());
      if w.is_wanted and w.walk_container is null and w.walk_kind = 'channel'
         and pg_snapshot_xmin(pg_current_snapshot()) < w.walk_after and agentd.now() < w.walk_since + interval '${sql.raw(PATIENCE)}' then
        update agentd.message_workspaces m set walk_after = w.walk_after, walk_since = w.walk_since where m.id = p_id;
        return -1;
      end if;
      if not w.is_wanted then
        delete from agentd.message_queue q
         where (q.message_id, q.kind) in (
           select o.message_id, o.kind from agentd.message_queue o where o.workspace_id = p_id and o.failed_at is null
           order by o.attempts, o.seq limit p_limit for update skip locked);
        get diagnostics v_count = row_count;
        if v_count = p_limit then
          return v_count;
        end if;
        v_count := 0;
      end if;
      for container in 1 .. ${sql.raw(String(CONTAINERS))} loop
        ${sql.raw(
          KINDS.map(
            ({ kind, container }) => `
        if w.walk_kind = '${kind}' and w.walk_at is null then
          w.walk_container := (
            select c.id from public.${container} c
             where c.workspace_id = p_id and c.id > coalesce(w.walk_container, '00000000-0000-0000-0000-000000000000')
             order by c.id limit 1);
          w.walk_at := '-infinity';
          w.walk_message := '00000000-0000-0000-0000-000000000000';
        end if;`,
          ).join(''),
        )}
        if w.walk_container is null then
          w.walk_at := null;
          w.walk_message := null;
          if w.walk_kind = 'channel' then
            w.walk_kind := 'conversation';
            continue;
          end if;
          w.walk_kind := case when w.walk_skipped then 'channel' end;
          if w.walk_skipped then
            v_count := -1;
          end if;
          w.walk_skipped := false;
          exit;
        end if;
        ${sql.raw(KINDS.map((kind) => stretch(kind)).join(''))}
        v_count := v_count + v_seen;
        w.walk_at := v_at;
        w.walk_message := v_message;
        exit when v_count >= p_limit;
        -- this one is through
        w.walk_at := null;
        w.walk_message := null;
      end loop;
      if w.walk_kind is null and not w.is_wanted then
        delete from agentd.message_workspaces m where m.id = p_id;
      else
        update agentd.message_workspaces m
           set walk_kind = w.walk_kind, walk_container = w.walk_container, walk_at = w.walk_at, walk_message = w.walk_message,
               walk_after = w.walk_after, walk_since = w.walk_since, walk_skipped = w.walk_skipped
         where m.id = p_id;
      end if;
      return v_count;
    end
    $$;
    `,
  );
}

function stretch({ kind, table, column }: (typeof KINDS)[number]): string {
  return `
        if w.walk_kind = '${kind}' then
          with part as materialized (
            select m.id, m.created_at, m.embedding_model is not null as is_ours,
                   m.embedding is null and not agentd.is_hidden_message(m.metadata) as is_open
              from public.${table} m
             where m.${column} = w.walk_container and m.workspace_id = p_id
               and m.created_at >= w.walk_at and (m.created_at, m.id) > (w.walk_at, w.walk_message)
             order by m.created_at, m.id limit p_limit - v_count
          ),
          queued as (
            insert into agentd.message_queue (kind, message_id, workspace_id)
            select '${kind}', s.id, p_id from part s where w.is_wanted and s.is_open
            on conflict (message_id, kind) do nothing
          ),
          ours as (
            select m.id from public.${table} m join part s on s.id = m.id
             where not w.is_wanted and s.is_ours for no key update of m skip locked
          ),
          erased as (
            update public.${table} m set embedding = null, embedding_model = null, embedding_dimensions = null
              from ours where m.id = ours.id
            returning 1
          )
          select (select count(*) from part),
                 (select count(*) from part s where not w.is_wanted and s.is_ours) - (select count(*) from erased),
                 (select s.created_at from part s order by s.created_at desc, s.id desc limit 1),
                 (select s.id from part s order by s.created_at desc, s.id desc limit 1)
            into v_seen, v_skipped, v_at, v_message;
          w.walk_skipped := w.walk_skipped or v_skipped > 0;
        end if;`;
}

export async function down(db: Kysely<unknown>): Promise<void> {
  const home = sql.raw(`"${(await vectorSchema(db)).replaceAll('"', '""')}"`);
  await runSql(
    db,
    sql`
    drop function public.search_messages(${home}.vector, text, integer, uuid, uuid, uuid, uuid, uuid, text);
    ${sql.raw(
      KINDS.map(
        ({ table }) => `
    drop trigger queue_changed_message on public.${table};
    drop trigger zz_guard_message_embedding_update on public.${table};
    drop trigger zz_guard_message_embedding_insert on public.${table};
    drop trigger queue_new_message on public.${table};`,
      ).join(''),
    )}
    drop trigger choose_message_embedding_update on public.workspaces;
    drop trigger choose_message_embedding_insert on public.workspaces;
    drop function agentd.walk_messages(uuid, integer, integer);
    drop function agentd.sweep_message_queue(integer);
    drop function agentd.claim_message_workspace(uuid, text, double precision);
    drop function agentd.queue_message();
    drop function agentd.guard_message_embedding();
    drop function agentd.is_hidden_message(jsonb);
    drop function agentd.choose_message_embedding();
    drop table agentd.message_queue;
    drop table agentd.message_workspaces;
    alter table public.agent_messages drop column embedding_dimensions, drop column embedding_model, drop column embedding;
    alter table public.chat_messages drop column embedding_dimensions, drop column embedding_model;
    `,
  );
}
