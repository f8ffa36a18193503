/**
 * What was stored is found: by meaning, by words, or by both.
 *
 * Three ways lead to the nearest vectors, and the cheapest that is sure of its answer is taken. A few passages are compared one by one.
 * More are first sorted out by one bit for each dimension, which lies in the row itself where the vector is kept beside it, and only
 * the best are compared. Where the passages are a good part of all that the model's HNSW index holds, that is asked, and whatever it
 * leaves out (its scan ends after so many tuples) the second way finds.
 */
import { type Kysely, sql } from 'kysely';
import { applyAccess } from './access.ts';
import { type Limits, matchKnowledgeChunks } from './match-knowledge-chunks.ts';
import { runSql, vectorSchema } from './run-sql.ts';

/** What halfvec can index. */
const MOST_DIMENSIONS = 4000;
/** Writers of the table wait while an index is made: in a table of more rows, or of more of the model's, an operator makes it concurrently. */
const MOST_ROWS = 500_000;
const MOST_OF_MODEL = 10_000;
export const LIMITS: Limits = { exactRows: 200, bitCandidates: 30, indexFactor: 20, efSearch: 200 };

/** The function as this migration makes it, with pgvector's quoted schema; a later one replaces it and gives it back on its way down. */
export const DROP_UNUSED_VECTOR_INDEXES = (vector: string): string => `
    -- Drops the indexes of models that no passage is embedded with any more. Returns how many; one whose table somebody holds stays.
    create function agentd.drop_unused_vector_indexes() returns integer
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set lock_timeout = '250ms' set enable_seqscan = off
    set enable_sort = off set enable_bitmapscan = off set jit = off as $$
    declare
      v_index   record;
      v_used    boolean;
      v_dropped integer := 0;
    begin
      if not pg_catalog.pg_try_advisory_xact_lock(7204) then
        return 0;
      end if;
      for v_index in
        select c.relname as name, d.about ->> 'model' as model, (d.about ->> 'dimensions')::integer as dimensions
          from pg_catalog.pg_class c
         cross join lateral (select pg_catalog.obj_description(c.oid, 'pg_class')::jsonb as about) d
         where c.relnamespace = 'public'::regnamespace and c.relkind = 'i' and c.relname ~ '^p_knowledge_chunks_[0-9a-f]{24}$'
           -- one without our comment is an operator's
           and d.about is not null
      loop
        -- in the index's own order, so that the index and not the table answers
        execute format(
          'select exists (select 1 from public.knowledge_chunks c
             where c.embedding_model = %L and pg_catalog.length(c.embedding_bits) = %s
             order by c.embedding::${vector}.halfvec(%s) operator(${vector}.<=>) pg_catalog.array_fill(1::real, array[%s])::${vector}.halfvec(%s)
             limit 1)',
          v_index.model, v_index.dimensions, v_index.dimensions, v_index.dimensions, v_index.dimensions) into v_used;
        if not v_used then
          begin
            execute format('drop index if exists public.%I', v_index.name);
            v_dropped := v_dropped + 1;
          exception when lock_not_available then
            null;
          end;
        end if;
      end loop;
      return v_dropped;
    end
    $$;`;

export async function up(db: Kysely<unknown>): Promise<void> {
  const home = await vectorSchema(db);
  await addBits(db, home);
  await manageIndexes(db, home);
  await runSql(db, sql.raw(matchKnowledgeChunks(quoted(home), LIMITS)));
  await applyAccess(db);
}

const quoted = (name: string): string => `"${name.replaceAll('"', '""')}"`;

async function addBits(db: Kysely<unknown>, home: string): Promise<void> {
  await runSql(
    db,
    sql`
    -- The sign of each dimension. It stays in the row, where the vector itself is kept beside the table and costs a look each.
    alter table public.knowledge_chunks
      add column embedding_bits bit varying generated always as (${sql.id(home)}.binary_quantize(embedding)::bit varying) stored;
    comment on column public.knowledge_chunks.embedding_bits is
      'The sign of each dimension of the embedding, by which a search sorts out what it need not compare.';
    `,
  );
}

async function manageIndexes(db: Kysely<unknown>, home: string): Promise<void> {
  const vector = sql.raw(quoted(home));
  await runSql(
    db,
    sql`
    -- A model's name is whatever somebody called it, so only its hash becomes an identifier.
    create function agentd.vector_index_name(p_model text, p_dimensions integer) returns text
    language sql immutable set search_path = pg_catalog, pg_temp as $$
      select 'p_knowledge_chunks_' || substr(encode(sha256(convert_to(p_dimensions || ':' || p_model, 'UTF8')), 'hex'), 1, 24)
    $$;

    -- The statement that makes the HNSW index of a model's vectors; with concurrently, for an operator, nobody waits for it.
    create function agentd.vector_index_definition(p_model text, p_dimensions integer, p_concurrently boolean default true) returns text
    language sql immutable set search_path = pg_catalog, pg_temp as $$
      select format(
        'create index %s if not exists %I on public.knowledge_chunks using hnsw ((embedding::${vector}.halfvec(%s)) ${vector}.halfvec_cosine_ops)
           where embedding_model = %L and pg_catalog.length(embedding_bits) = %s',
        case when p_concurrently then 'concurrently' else '' end, agentd.vector_index_name(p_model, p_dimensions), p_dimensions,
        p_model, p_dimensions)
    $$;

    -- Makes the HNSW index of a model's vectors where there is none. True: it is there, or there can be none (the search is exact
    -- then). False: somebody holds the table, another daemon makes it, or there is so much that writers would wait long: then the
    -- statement is an operator's to run.
    create function agentd.ensure_vector_index(p_model text, p_dimensions integer) returns boolean
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set lock_timeout = '250ms' as $$
    declare
      v_name text := agentd.vector_index_name(p_model, p_dimensions);
    begin
      if p_dimensions is null or p_dimensions < 1 or p_model is null then
        raise exception using errcode = '22023', message = 'A vector index needs a model and its number of dimensions.';
      end if;
      if p_dimensions > ${sql.raw(String(MOST_DIMENSIONS))} then
        return true;
      end if;
      if exists (select 1 from pg_catalog.pg_class c
                  where c.relnamespace = 'public'::regnamespace and c.relname = v_name) then
        return true;
      end if;
      if not pg_catalog.pg_try_advisory_xact_lock(7204) then
        return false;
      end if;
      if (select c.reltuples from pg_catalog.pg_class c where c.oid = 'public.knowledge_chunks'::regclass) > ${sql.raw(String(MOST_ROWS))}
         -- what it would hold, whoever wrote it and whatever the sources say
         or (select count(*) from (
               select 1 from public.knowledge_chunks k
                where k.embedding_model = p_model and pg_catalog.length(k.embedding_bits) = p_dimensions
                limit ${sql.raw(String(MOST_OF_MODEL))} + 1) its) > ${sql.raw(String(MOST_OF_MODEL))} then
        return false;
      end if;
      execute agentd.vector_index_definition(p_model, p_dimensions, false);
      execute format('comment on index public.%I is %L', v_name, jsonb_build_object('model', p_model, 'dimensions', p_dimensions));
      return true;
    -- a row that no index takes and a build that takes too long are nobody else's trouble: the search is exact then
    exception when lock_not_available or query_canceled or data_exception then
      return false;
    end
    $$;

    ${sql.raw(DROP_UNUSED_VECTOR_INDEXES(quoted(home)))}
    `,
  );
}

export async function down(db: Kysely<unknown>): Promise<void> {
  const home = sql.raw(quoted(await vectorSchema(db)));
  await runSql(
    db,
    sql`
    drop function public.match_knowledge_chunks(${home}.vector, integer, double precision, uuid, uuid, text, text, uuid[]);
    do $$
    declare
      v_name text;
    begin
      for v_name in
        select c.relname from pg_catalog.pg_class c
         where c.relnamespace = 'public'::regnamespace and c.relkind = 'i' and c.relname ~ '^p_knowledge_chunks_[0-9a-f]{24}$'
      loop
        execute format('drop index public.%I', v_name);
      end loop;
    end
    $$;
    drop function agentd.drop_unused_vector_indexes();
    drop function agentd.ensure_vector_index(text, integer);
    drop function agentd.vector_index_definition(text, integer, boolean);
    drop function agentd.vector_index_name(text, integer);
    alter table public.knowledge_chunks drop column embedding_bits;
    `,
  );
}
