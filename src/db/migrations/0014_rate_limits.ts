/** Models that an agent falls back to, and the rate limits of model providers, which all daemons share. */
import { type Kysely, sql } from 'kysely';
import { applyAccess } from './access.ts';
import { runSql } from './run-sql.ts';

export async function up(db: Kysely<unknown>): Promise<void> {
  await addColumns(db);
  await createLimits(db);
  await createPlaces(db);
  await applyAccess(db);
}

async function addColumns(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    alter table public.agents
      add column fallback_models text[] not null default '{}',
      add constraint agents_fallback_models_check check (
        cardinality(fallback_models) <= 10
        and array_position(fallback_models, null) is null
        and octet_length(array_to_string(fallback_models, '')) <= 2000);
    comment on column public.agents.fallback_models is
      'Models to use, in this order, while the agent''s own is down: ids as in llm_models.model_id, or provider/id.';

    alter table public.llm_calls
      add column fallback_reason text,
      add column ticket_at timestamptz,
      add column ticket_kind text,
      add constraint llm_calls_ticket_check check (
        ticket_kind in ('place', 'return') and (ticket_kind is null) = (ticket_at is null));
    comment on column public.llm_calls.fallback_reason is
      'Which models this call was given up on before it was made of this one, and why.';
    comment on column public.llm_calls.ticket_at is
      'While the call waits for a rate limit: from when it may be made (place), or may ask before newcomers (return).';
    `,
  );
}

async function createLimits(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- What a provider allows a key for a model, as one bucket of requests and one of tokens that refill steadily, and how
    -- full they are by our own books. Only keys that come near their limit have a row.
    -- ..._at is the moment at which the bucket was, or will be, empty: it holds (now - at) * per_second. Null: no limit known.
    create table agentd.rate_limits (
      key                 text             primary key,
      requests_limit      double precision,
      requests_per_second double precision,
      requests_at         timestamptz,
      tokens_limit        double precision,
      tokens_per_second   double precision,
      tokens_at           timestamptz,
      blocked_until       timestamptz,
      -- How many tokens the provider counts for one of ours, learnt from what it says is left: some count max_tokens in place of
      -- the answer, and others may use the same key. Given so far by our count; and what was said last, with what was given then.
      tokens_factor       double precision not null default 1,
      tokens_given        double precision not null default 0,
      said_at             timestamptz,
      said_left           double precision,
      said_given          double precision,
      updated_at          timestamptz      not null default agentd.now(),
      constraint rate_limits_requests_check check (
        num_nonnulls(requests_limit, requests_per_second, requests_at) in (0, 3)
        and requests_limit >= 1 and requests_per_second > 0),
      constraint rate_limits_tokens_check check (
        num_nonnulls(tokens_limit, tokens_per_second, tokens_at) in (0, 3)
        and tokens_limit >= 1 and tokens_per_second > 0)
    );
    comment on column agentd.rate_limits.key is 'SHA-256 of base URL, API key and model.';

    -- How many calls of one workspace found the buckets promised to others and are to ask again, and when the last of them
    -- is. A line each, and the lines are served in turn, so that a workspace with thousands of calls takes no more of a shared key
    -- than one with a few.
    create table agentd.rate_limit_lines (
      key          text        not null references agentd.rate_limits (key) on delete cascade,
      workspace_id uuid        not null,
      waiting      integer     not null,
      last_at      timestamptz not null,
      primary key (key, workspace_id)
    );
    `,
  );
}

async function createPlaces(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- Gives calls their places under rate limits: first come, first served, and at most a few seconds ahead.
    --
    -- items: n (number of the item), key, workspace_id, tokens (what the call will need, estimated), ticket_at and ticket_kind
    -- (from an earlier answer), returns (goes before newcomers without a ticket), and what is new about the key: used (tokens used less tokens estimated, of finished calls),
    -- requests_left, tokens_left and age_ms (what the provider said, and how long ago).
    --
    -- The answer's kind:
    --   place    the call may be made in wait_ms. It has its place, whatever the others do.
    --   return   the buckets are promised to others for more than newcomers_ms (of a call that returns: returning_ms). It is to
    --            ask again in wait_ms and then goes before newcomers. So nobody's place is far ahead: what a cancelled run
    --            leaves behind, or a limit that was raised, costs seconds, and one workspace can't take a shared key for hours.
    --   locked   somebody holds the row.
    --   unknown  there is no row.
    create function agentd.take_places(items jsonb, newcomers_ms double precision, returning_ms double precision)
    returns table (n integer, kind text, wait_ms double precision, at timestamptz)
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    #variable_conflict use_column
    declare
      -- Lines are called a little faster than places come free: one that does not return leaves no gap.
      c_overbooked constant double precision := 1.15;
      -- The pace of a line whose limit is not known, in calls a second.
      c_unknown    constant double precision := 5;
      -- Nobody is called back sooner, and no more lines than these are counted.
      c_pause      constant interval := interval '500 milliseconds';
      c_lines      constant integer := 1000;
      -- Calls that have not come back by then will not.
      c_gone       constant interval := interval '5 seconds';
      -- What a provider counts is learnt while less than this is left, from at least so much time and so large a share of
      -- the bucket, and not over a longer time, in which the bucket may have been full.
      c_scarce     constant double precision := 0.5;
      c_enough     constant interval := interval '2 seconds';
      c_stale      constant interval := interval '30 seconds';
      c_share      constant double precision := 0.02;
      c_ticket     constant interval := interval '1 minute';
      v_now        constant timestamptz := agentd.now();
      v_item       record;
      v_limit      agentd.rate_limits;
      v_key        text;
      v_free_at    timestamptz;
      v_requests   timestamptz;
      v_tokens     timestamptz;
      v_seconds    double precision;
      v_return     timestamptz;
      v_said_at    timestamptz;
      v_given      double precision;
      v_waiting    integer;
      v_place      double precision;
    begin
      for v_item in
        select x.*, coalesce(x.ticket_at > v_now - c_ticket, false) as is_valid
          from jsonb_to_recordset(items) as x (
            n integer, key text, workspace_id uuid, tokens double precision, ticket_at timestamptz, ticket_kind text, returns boolean,
            used double precision, requests_left double precision, tokens_left double precision, age_ms double precision)
         -- in the keys' order, as everybody locks them; those that waited before newcomers
         order by x.key, x.ticket_at, x.n
      loop
        n := v_item.n;
        wait_ms := 0;
        at := null;
        if v_key is distinct from v_item.key then
          v_key := v_item.key;
          select l.* into v_limit from agentd.rate_limits l where l.key = v_key for no key update skip locked;
        end if;
        if v_limit.key is null then
          kind := case when exists (select 1 from agentd.rate_limits l where l.key = v_key) then 'locked' else 'unknown' end;
          return next;
          continue;
        end if;

        -- What the provider counted can only be more than we know of: others use the key as well.
        v_limit.requests_at := greatest(
          v_limit.requests_at,
          v_now - make_interval(secs => coalesce(v_item.age_ms, 0) / 1000 + v_item.requests_left / v_limit.requests_per_second),
          v_now - make_interval(secs => v_limit.requests_limit / v_limit.requests_per_second));
        v_limit.tokens_at := greatest(
          v_limit.tokens_at,
          v_now - make_interval(secs => coalesce(v_item.age_ms, 0) / 1000 + v_item.tokens_left / v_limit.tokens_per_second));
        v_limit.tokens_given := v_limit.tokens_given + coalesce(v_item.used, 0);
        -- A provider's bucket does not go below empty: a wrong guess is no debt beyond the places that are promised.
        v_limit.tokens_at := case when v_limit.tokens_at is not null then greatest(
          least(
            v_limit.tokens_at
              + make_interval(secs => least(coalesce(v_item.used, 0), v_limit.tokens_limit)
                                        * v_limit.tokens_factor / v_limit.tokens_per_second),
            greatest(v_limit.tokens_at, v_now + newcomers_ms * interval '1 millisecond')),
          v_now - make_interval(secs => v_limit.tokens_limit / v_limit.tokens_per_second)) end;

        v_said_at := v_now - make_interval(secs => coalesce(v_item.age_ms, 0) / 1000);
        if v_item.tokens_left < v_limit.tokens_limit * c_scarce then
          v_given := v_limit.tokens_given - v_limit.said_given;
          if v_limit.said_at is null or v_said_at > v_limit.said_at + c_stale then
            v_limit.said_at := v_said_at;
            v_limit.said_left := v_item.tokens_left;
            v_limit.said_given := v_limit.tokens_given;
          elsif v_said_at > v_limit.said_at + c_enough and v_given > v_limit.tokens_limit * c_share then
            v_limit.tokens_factor := (v_limit.tokens_factor + least(16, greatest(0.25,
              (v_limit.said_left - v_item.tokens_left
                + extract(epoch from v_said_at - v_limit.said_at) * v_limit.tokens_per_second) / v_given))) / 2;
            v_limit.said_at := v_said_at;
            v_limit.said_left := v_item.tokens_left;
            v_limit.said_given := v_limit.tokens_given;
          end if;
        end if;

        if v_item.ticket_kind = 'return' then
          update agentd.rate_limit_lines i set waiting = i.waiting - 1
           where i.key = v_key and i.workspace_id = v_item.workspace_id and i.waiting > 0;
        end if;

        if v_item.is_valid and v_item.ticket_kind = 'place' then
          kind := 'place';
          at := greatest(v_item.ticket_at, v_limit.blocked_until, v_now);
        else
          v_free_at := greatest(v_limit.requests_at, v_limit.tokens_at, v_limit.blocked_until, v_now);
          if extract(epoch from v_free_at - v_now) * 1000
             <= (case when v_item.is_valid or v_item.returns then returning_ms else newcomers_ms end) then
            v_requests := v_limit.requests_at + make_interval(secs => 1 / v_limit.requests_per_second);
            v_tokens := v_limit.tokens_at
              + make_interval(secs => least(v_item.tokens * v_limit.tokens_factor, v_limit.tokens_limit)
                                        / v_limit.tokens_per_second);
            v_limit.tokens_given := v_limit.tokens_given + v_item.tokens;
            v_limit.requests_at := v_requests;
            v_limit.tokens_at := v_tokens;
            kind := 'place';
            at := greatest(v_requests, v_tokens, v_limit.blocked_until, v_now);
          else
            v_seconds := coalesce(
              greatest(1 / v_limit.requests_per_second,
                       least(v_item.tokens * v_limit.tokens_factor, v_limit.tokens_limit) / v_limit.tokens_per_second),
              1 / c_unknown) / c_overbooked;
            insert into agentd.rate_limit_lines as i (key, workspace_id, waiting, last_at)
            values (v_key, v_item.workspace_id, 1, v_now)
            on conflict (key, workspace_id) do update
               set waiting = case when i.last_at < v_now - c_gone then 1 else i.waiting + 1 end
            returning i.waiting into v_waiting;
            -- Lines are served in turn: before the k-th of one go the first k of each other.
            select sum(least(o.waiting, v_waiting)) into v_place
              from (select i.waiting from agentd.rate_limit_lines i
                     where i.key = v_key and i.waiting > 0 and i.last_at >= v_now - c_gone
                     limit c_lines) o;
            v_return := greatest(v_free_at, v_now + c_pause) + make_interval(secs => v_place * v_seconds);
            update agentd.rate_limit_lines i
               set last_at = greatest(i.last_at, v_return)
             where i.key = v_key and i.workspace_id = v_item.workspace_id;
            kind := 'return';
            at := v_return;
          end if;
        end if;
        wait_ms := extract(epoch from at - v_now) * 1000;
        update agentd.rate_limits l
           set requests_at = v_limit.requests_at, tokens_at = v_limit.tokens_at, updated_at = v_now,
               tokens_factor = v_limit.tokens_factor, tokens_given = v_limit.tokens_given,
               said_at = v_limit.said_at, said_left = v_limit.said_left, said_given = v_limit.said_given
         where l.key = v_key;
        return next;
      end loop;
    end
    $$;
    `,
  );
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    drop function agentd.take_places(jsonb, double precision, double precision);
    drop table agentd.rate_limit_lines, agentd.rate_limits;
    alter table public.llm_calls drop column fallback_reason, drop column ticket_at, drop column ticket_kind;
    alter table public.agents drop column fallback_models;
    `,
  );
}
