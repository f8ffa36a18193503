import { type Kysely, sql } from 'kysely';
import { dropTables, keepUpdatedAt, runSql } from './run-sql.ts';

// Plans and subscriptions, the facts of usage and their sums, and the limits that are decided by them.
//
// usage_events is append-only, one row a fact. What is summed and what is limited are two things: workspace_usage and
// usage_quarter_hours are written by the roll-up, workspace_usage_counters by consume_usage, which decides.

/** The function as this migration makes it; a later one replaces it and gives it back on its way down. */
export const INCREMENT_CONVERSATION_COUNT = `
    create or replace function agentd.increment_conversation_count(p_workspace_id uuid) returns void
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if not agentd.is_service_caller()
         and not exists (select 1 from agentd.my_workspace_ids() as mine (id) where mine.id = p_workspace_id) then
        raise exception 'workspace % does not exist, or you are no member of it', p_workspace_id
          using errcode = 'insufficient_privilege';
      end if;
      update public.workspaces w
         set settings = w.settings || '{"count_conversations": "calls"}'
       where w.id = p_workspace_id
         and w.settings ->> 'count_conversations' is distinct from 'calls';
      perform agentd.record_usage(p_workspace_id, 'conversation', 1, 'call:' || gen_random_uuid());
    end
    $$;`;

/** The same of this one. */
export const GET_WORKSPACE_USAGE = `
    create or replace function public.get_workspace_usage(workspace_id uuid) returns public.workspace_usage
    language plpgsql stable security invoker set search_path = pg_catalog, pg_temp as $$
    declare
      bounds record;
      usage  public.workspace_usage;
    begin
      select * into bounds from agentd.month_bounds(get_workspace_usage.workspace_id, agentd.now());
      if not found then
        return null;
      end if;
      select u.* into usage
        from public.workspace_usage u
       where u.workspace_id = get_workspace_usage.workspace_id and u.month = bounds.month;
      if not found then
        usage.workspace_id  := get_workspace_usage.workspace_id;
        usage.month         := bounds.month;
        usage.conversations := 0;
        usage.messages      := 0;
        usage.tokens_used   := 0;
        usage.task_runs     := 0;
        usage.tool_calls    := 0;
        usage.cost_micros   := 0;
        usage.period_start  := bounds.period_start;
        usage.period_end    := bounds.period_end;
      end if;
      return usage;
    end
    $$;`;

/** The functions that decide on limits, as this migration makes them; a later one replaces them. */
export const LIMIT_FUNCTIONS = `
    -- The monthly limit of a workspace: its live subscription's plan, else the default plan. Null means unlimited, which is
    -- also the answer where nothing is sold: no default plan and never a subscription. A subscription that is paused, unpaid
    -- or canceled without a default plan to fall back on allows nothing.
    create function agentd.usage_limit(p_workspace_id uuid, p_metric text) returns bigint
    language plpgsql stable set search_path = pg_catalog, pg_temp as $$
    declare
      plan      public.pricing_plans;
      max_usage bigint;
    begin
      select p.* into plan
        from public.workspace_subscriptions s
        join public.pricing_plans p on p.id = s.plan_id
       where s.workspace_id = p_workspace_id
         and s.status in ('trialing', 'active', 'past_due')
         and (s.end_date is null or s.end_date > agentd.now())
       order by s.created_at desc
       limit 1;
      if not found then
        select p.* into plan from public.pricing_plans p where p.is_default;
        if not found then
          if exists (select 1 from public.workspace_subscriptions s where s.workspace_id = p_workspace_id) then
            return 0;
          end if;
          return null;
        end if;
      end if;
      max_usage := case p_metric
        when 'conversations' then plan.conversation_limit
        when 'messages'      then plan.message_limit
        when 'tokens'        then plan.token_limit
      end;
      return case when max_usage < 0 then null else max_usage end;
    end
    $$;

    -- True while the workspace is under its limit of conversations in the present month. Never null. It only reads: what
    -- decides is consume_usage.
    create function public.check_usage_limit(workspace_id uuid) returns boolean
    language plpgsql stable security invoker set search_path = pg_catalog, pg_temp as $$
    declare
      max_usage bigint := agentd.usage_limit(check_usage_limit.workspace_id, 'conversations');
    begin
      if max_usage is null then
        return true;
      end if;
      return coalesce(
        (select c.used
           from public.workspace_usage_counters c
          where c.workspace_id = check_usage_limit.workspace_id
            and c.metric = 'conversations'
            and c.month = (select b.month from agentd.month_bounds(check_usage_limit.workspace_id, agentd.now()) b)),
        0) < max_usage;
    end
    $$;

    -- Takes p_n of a metric from the month's allowance, or nothing. Atomic: the limit is in the condition of the one upsert,
    -- so that no number of sessions exceeds it together. A key that was granted before is granted again without consuming.
    create function agentd.consume_usage(p_workspace_id uuid, p_metric text, p_n bigint, p_key text default null)
    returns boolean
    language plpgsql set search_path = pg_catalog, pg_temp as $$
    declare
      max_usage bigint;
      v_month   date;
    begin
      if p_n < 0 then
        raise exception 'usage is consumed, not given back: % %', p_n, p_metric using errcode = 'invalid_parameter_value';
      end if;
      select b.month into v_month from agentd.month_bounds(p_workspace_id, agentd.now()) b;
      if v_month is null then
        raise exception 'workspace % does not exist', p_workspace_id using errcode = 'foreign_key_violation';
      end if;

      if p_key is not null then
        -- A second session with the same key waits here for the first to commit or roll back.
        insert into agentd.usage_reservations (workspace_id, metric, reservation_key, month, quantity, created_at)
        values (p_workspace_id, p_metric, p_key, v_month, p_n, agentd.now())
        on conflict do nothing;
        if not found then
          return true;
        end if;
      end if;

      max_usage := agentd.usage_limit(p_workspace_id, p_metric);
      insert into public.workspace_usage_counters as c (workspace_id, month, metric, used)
      select p_workspace_id, v_month, p_metric, p_n
       where max_usage is null or p_n <= max_usage
      on conflict (workspace_id, month, metric) do update
        set used = c.used + excluded.used
        where max_usage is null or c.used + excluded.used <= max_usage;
      if found then
        return true;
      end if;

      delete from agentd.usage_reservations r
       where r.workspace_id = p_workspace_id and r.metric = p_metric and r.reservation_key = p_key;
      return false;
    end
    $$;
`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await createPlans(db);
  await createPartitions(db);
  await createEvents(db);
  await createSums(db);
  await createUsageFunctions(db);
  await createLimitFunctions(db);
}

async function createPlans(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table public.pricing_plans (
      id                 uuid           primary key default gen_random_uuid(),
      name               text           not null,
      description        text,
      stripe_price_id    text,
      price_monthly      numeric(12, 2) not null default 0,
      price_yearly       numeric(12, 2),
      conversation_limit integer,
      message_limit      bigint,
      token_limit        bigint,
      is_default         boolean        not null default false,
      features           jsonb          not null default '{}',
      created_at         timestamptz    not null default now(),
      updated_at         timestamptz    not null default now()
    );
    comment on column public.pricing_plans.conversation_limit is 'A month; null and -1 both mean unlimited, as in the other limits.';
    comment on column public.pricing_plans.is_default is 'The plan of every workspace without a live subscription.';
    create unique index pricing_plans_one_default on public.pricing_plans (is_default) where is_default;

    create table public.workspace_subscriptions (
      id                     uuid                       primary key default gen_random_uuid(),
      workspace_id           uuid                       not null references public.workspaces (id) on delete cascade,
      user_id                uuid                       references auth.users (id) on delete set null,
      plan_id                uuid                       not null references public.pricing_plans (id) on delete restrict,
      -- Unique, as payment webhooks arrive more than once.
      stripe_subscription_id text                       unique,
      status                 public.subscription_status not null default 'trialing',
      current_period_start   timestamptz                not null default now(),
      current_period_end     timestamptz,
      end_date               timestamptz,
      created_at             timestamptz                not null default now(),
      updated_at             timestamptz                not null default now()
    );
    comment on column public.workspace_subscriptions.user_id is 'Who pays, where the application subscribes users.';
    create index workspace_subscriptions_workspace_id_idx on public.workspace_subscriptions (workspace_id, created_at desc);
    create index workspace_subscriptions_user_id_idx on public.workspace_subscriptions (user_id);
    create index workspace_subscriptions_plan_id_idx on public.workspace_subscriptions (plan_id);
    create index idx_subscriptions_status on public.workspace_subscriptions (status);

    create trigger fill_1_workspace_id
      before insert on public.workspace_subscriptions
      for each row when (new.workspace_id is null) execute function agentd.fill_workspace_id();

    create table public.billing_invoices (
      id                uuid           primary key default gen_random_uuid(),
      workspace_id      uuid           not null references public.workspaces (id) on delete cascade,
      -- Unique, as payment webhooks arrive more than once.
      stripe_invoice_id text           unique,
      amount            numeric(12, 2) not null,
      currency          text           not null default 'usd',
      status            text           not null,
      invoice_url       text,
      created_at        timestamptz    not null default now()
    );
    comment on column public.billing_invoices.status is 'paid, pending or failed.';
    create index billing_invoices_workspace_id_idx on public.billing_invoices (workspace_id, created_at desc);

    ${keepUpdatedAt('pricing_plans', 'workspace_subscriptions')}
    `,
  );
}

async function createPartitions(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- Makes the months of a partitioned table, in UTC, from the present one (or the last that exists, so that there is never
    -- a hole) to p_months ahead, and once the partition for everything before. Returns how many were made. Raises
    -- lock_not_available when the table was busy for three seconds: try again.
    --
    -- A partition is made apart and then attached, which takes SHARE UPDATE EXCLUSIVE on the parent; CREATE TABLE …
    -- PARTITION OF takes ACCESS EXCLUSIVE and would hold up every reader. Its name begins with p_, which comparisons of
    -- catalogs leave out.
    create function agentd.ensure_partitions(p_parent regclass, p_months integer default 12) returns integer
    language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '3s' as $$
    declare
      parent_name text;
      this_month  timestamp := date_trunc('month', agentd.now() at time zone 'UTC');
      first_month timestamp;
      month_start timestamp;
      part_name   text;
      made        integer := 0;
    begin
      select c.relname into parent_name
        from pg_catalog.pg_class c
       where c.oid = p_parent and c.relkind = 'p';
      if parent_name is null then
        raise exception '% is not a partitioned table', p_parent using errcode = 'wrong_object_type';
      end if;
      -- Two daemons do this at once: the second finds everything made.
      perform pg_advisory_xact_lock(hashtextextended('agentd.partitions:' || parent_name, 0));

      select max(to_date(right(c.relname, 7), 'YYYY_MM'))::timestamp + interval '1 month'
        into first_month
        from pg_catalog.pg_inherits i
        join pg_catalog.pg_class c on c.oid = i.inhrelid
       where i.inhparent = p_parent
         and right(c.relname, 7) ~ '^[0-9]{4}_[0-9]{2}$';

      if first_month is null then
        first_month := this_month;
        part_name := 'p_' || parent_name || '_past';
        perform agentd.make_partition(p_parent, part_name, null, first_month);
        made := made + 1;
      end if;

      month_start := first_month;
      while month_start <= this_month + make_interval(months => p_months) loop
        part_name := 'p_' || parent_name || '_' || to_char(month_start, 'YYYY_MM');
        perform agentd.make_partition(p_parent, part_name, month_start, month_start + interval '1 month');
        made := made + 1;
        month_start := month_start + interval '1 month';
      end loop;
      return made;
    end
    $$;

    -- Bounds are in UTC; a null lower bound means from the beginning of time.
    create function agentd.make_partition(p_parent regclass, p_name text, p_from timestamp, p_to timestamp) returns void
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      -- Without INCLUDING IDENTITY: the parent's sequence serves all partitions.
      execute format(
        'create table agentd.%I (like %s including defaults including constraints including generated including indexes including storage)',
        p_name, p_parent);
      execute format('alter table agentd.%I enable row level security', p_name);
      execute format(
        'alter table %s attach partition agentd.%I for values from (%s) to (%L)',
        p_parent, p_name,
        case when p_from is null then 'minvalue' else quote_literal(to_char(p_from, 'YYYY-MM-DD') || ' 00:00:00+00') end,
        to_char(p_to, 'YYYY-MM-DD') || ' 00:00:00+00');
    end
    $$;
    `,
  );
}

async function createEvents(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- No foreign keys: making or dropping a partition would take locks on every table that they name.
    create table public.usage_events (
      id              uuid        not null default gen_random_uuid(),
      workspace_id    uuid        not null,
      agent_id        uuid,
      run_id          uuid,
      metric          text        not null check (metric in (
                        'conversation', 'message', 'tokens', 'task_run', 'tool_call',
                        'embedding_tokens', 'stored_chunks', 'correction')),
      quantity        bigint      not null default 1,
      cost_micros     bigint      not null default 0,
      idempotency_key text        not null default gen_random_uuid()::text,
      dimensions      jsonb       not null default '{}',
      occurred_at     timestamptz not null default now(),
      recorded_at     timestamptz not null default now(),
      xid             xid8        not null default pg_current_xact_id(),
      primary key (id, recorded_at)
    ) partition by range (recorded_at);
    comment on column public.usage_events.cost_micros is 'Millionths of a US dollar.';
    comment on column public.usage_events.xid is
      'The writing transaction. What a roll-up has not seen is what its snapshot could not see; a rising id would miss those that committed late.';
    create index usage_events_xid_idx on public.usage_events (xid);
    create index usage_events_workspace_id_idx on public.usage_events (workspace_id, occurred_at);

    -- The keys of events, which cannot be unique across partitions. Pruned by age.
    create table public.usage_event_keys (
      workspace_id    uuid        not null references public.workspaces (id) on delete cascade,
      idempotency_key text        not null,
      recorded_at     timestamptz not null default now(),
      primary key (workspace_id, idempotency_key)
    );
    create index usage_event_keys_recorded_at_idx on public.usage_event_keys (recorded_at);

    select agentd.ensure_partitions('public.usage_events', 12);
    `,
  );
}

async function createSums(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- Fifteen minutes, because the offset of every civil time zone is a multiple of them.
    create table public.usage_quarter_hours (
      workspace_id uuid        not null references public.workspaces (id) on delete cascade,
      bucket       timestamptz not null,
      metric       text        not null,
      events       bigint      not null default 0,
      quantity     bigint      not null default 0,
      cost_micros  bigint      not null default 0,
      updated_at   timestamptz not null default now(),
      primary key (workspace_id, bucket, metric)
    );

    create table public.workspace_usage (
      id            uuid        primary key default gen_random_uuid(),
      workspace_id  uuid        not null references public.workspaces (id) on delete cascade,
      month         date        not null,
      conversations integer     not null default 0,
      messages      integer     not null default 0,
      tokens_used   bigint      not null default 0,
      task_runs     integer     not null default 0,
      tool_calls    integer     not null default 0,
      cost_micros   bigint      not null default 0,
      period_start  timestamptz not null,
      period_end    timestamptz not null,
      closed_at     timestamptz,
      rolled_up_at  timestamptz,
      created_at    timestamptz not null default now(),
      updated_at    timestamptz not null default now(),
      -- The roll-up adds to the one row of a month.
      constraint workspace_usage_workspace_month_key unique (workspace_id, month)
    );

    create table public.workspace_usage_counters (
      workspace_id uuid   not null references public.workspaces (id) on delete cascade,
      month        date   not null,
      metric       text   not null check (metric in ('conversations', 'messages', 'tokens')),
      used         bigint not null default 0,
      primary key (workspace_id, month, metric)
    ) with (fillfactor = 50); -- One row a workspace, updated all the time: the room keeps updates on its page.

    create table agentd.usage_reservations (
      workspace_id    uuid        not null references public.workspaces (id) on delete cascade,
      metric          text        not null,
      reservation_key text        not null,
      month           date        not null,
      quantity        bigint      not null,
      created_at      timestamptz not null default now(),
      primary key (workspace_id, metric, reservation_key)
    );
    create index usage_reservations_created_at_idx on agentd.usage_reservations (created_at);
    comment on table agentd.usage_reservations is
      'What consume_usage has granted, by key, so that a retry does not consume twice. Pruned by age.';

    create table agentd.usage_rollup_state (
      name             text        primary key,
      snapshot         pg_snapshot not null,
      events_rolled    bigint      not null default 0,
      last_run_at      timestamptz,
      last_duration_ms integer
    );
    insert into agentd.usage_rollup_state (name, snapshot) values ('usage', pg_current_snapshot());

    ${keepUpdatedAt('workspace_usage', 'usage_quarter_hours')}
    `,
  );
}

async function createUsageFunctions(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- The zone, or UTC if there is none of this name: a typing error in a workspace must not stop its usage. Rules of one's own, which PostgreSQL
    -- takes too ('A0B-160,J1/0'), are no names: each has a digit, as few names have. (pg_timezone_names reads every file.)
    create function agentd.valid_time_zone(p_name text) returns text
    language plpgsql stable set search_path = pg_catalog, pg_temp as $$
    begin
      if p_name ~ '[0-9<,]' and p_name !~ '^(posix/)?(Etc/GMT(0|[+-][0-9]|[+-]1[0-2]|-1[34])|GMT[+-]?0|EST5EDT|CST6CDT|MST7MDT|PST8PDT)$'
         or p_name ~* '^right/' then
        return 'UTC';
      end if;
      perform pg_catalog.now() at time zone p_name;
      return coalesce(p_name, 'UTC');
    exception when invalid_parameter_value then
      return 'UTC';
    end
    $$;

    -- The month of a workspace, in its own time zone, that an instant lies in. No row for a workspace that the caller cannot
    -- see; UTC for a time zone that does not exist.
    create function agentd.month_bounds(p_workspace_id uuid, p_at timestamptz)
    returns table (month date, period_start timestamptz, period_end timestamptz)
    language sql stable set search_path = pg_catalog, pg_temp as $$
      select date_trunc('month', p_at at time zone z.name)::date,
             date_trunc('month', p_at at time zone z.name) at time zone z.name,
             (date_trunc('month', p_at at time zone z.name) + interval '1 month') at time zone z.name
        from public.workspaces w,
             lateral (select agentd.valid_time_zone(w.timezone) as name) z
       where w.id = p_workspace_id
    $$;

    create function agentd.fill_usage_period() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      select coalesce(new.period_start, new.month::timestamp at time zone z.name),
             coalesce(new.period_end, (new.month::timestamp + interval '1 month') at time zone z.name)
        into new.period_start, new.period_end
        from public.workspaces w,
             lateral (select agentd.valid_time_zone(w.timezone) as name) z
       where w.id = new.workspace_id;
      return new;
    end
    $$;

    create trigger fill_2_period
      before insert on public.workspace_usage
      for each row when (new.period_start is null or new.period_end is null)
      execute function agentd.fill_usage_period();

    -- Records one fact of usage. False, and nothing written, when the key was used before in this workspace.
    create function agentd.record_usage(
      p_workspace_id uuid,
      p_metric       text,
      p_quantity     bigint,
      p_key          text,
      p_cost_micros  bigint      default 0,
      p_occurred_at  timestamptz default null,
      p_agent_id     uuid        default null,
      p_run_id       uuid        default null,
      p_dimensions   jsonb       default '{}'
    ) returns boolean
    language plpgsql set search_path = pg_catalog, pg_temp as $$
    begin
      insert into public.usage_event_keys (workspace_id, idempotency_key, recorded_at)
      values (p_workspace_id, p_key, agentd.now())
      on conflict do nothing;
      if not found then
        return false;
      end if;
      insert into public.usage_events (
        workspace_id, agent_id, run_id, metric, quantity, cost_micros, idempotency_key, dimensions, occurred_at, recorded_at)
      values (
        p_workspace_id, p_agent_id, p_run_id, p_metric, p_quantity, p_cost_micros, p_key, p_dimensions,
        coalesce(p_occurred_at, agentd.now()), agentd.now());
      return true;
    end
    $$;

    -- The row of the present month; zeros when nothing has been rolled up yet; null when the caller may not see the workspace.
    ${sql.raw(GET_WORKSPACE_USAGE.replace('create or replace function', 'create function'))}

    -- A signed-in user counts only in workspaces that he is a member of. The first call turns the workspace to counting calls
    -- instead of rows, so that an application which does both is counted once.
    ${sql.raw(INCREMENT_CONVERSATION_COUNT)}

    create function public.increment_conversation_count(workspace_id uuid) returns void
    language sql security invoker set search_path = pg_catalog, pg_temp as $$
      select agentd.increment_conversation_count(increment_conversation_count.workspace_id)
    $$;
    `,
  );
}

async function createLimitFunctions(db: Kysely<unknown>): Promise<void> {
  await runSql(db, sql.raw(LIMIT_FUNCTIONS));
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    drop function agentd.consume_usage(uuid, text, bigint, text);
    drop function public.check_usage_limit(uuid);
    drop function agentd.usage_limit(uuid, text);
    drop function public.increment_conversation_count(uuid);
    drop function agentd.increment_conversation_count(uuid);
    drop function public.get_workspace_usage(uuid);
    drop function agentd.record_usage(uuid, text, bigint, text, bigint, timestamptz, uuid, uuid, jsonb);
    drop table agentd.usage_rollup_state;
    drop table agentd.usage_reservations;
    ${dropTables(
      'workspace_usage_counters',
      'workspace_usage',
      'usage_quarter_hours',
      'usage_event_keys',
      'usage_events',
      'billing_invoices',
      'workspace_subscriptions',
      'pricing_plans',
    )}
    drop function agentd.fill_usage_period();
    drop function agentd.month_bounds(uuid, timestamptz);
    drop function agentd.valid_time_zone(text);
    drop function agentd.make_partition(regclass, text, timestamp, timestamp);
    drop function agentd.ensure_partitions(regclass, integer);
    `,
  );
}
