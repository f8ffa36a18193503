/** Passages with vectors of a few dimensions, and the search for them. */
import { inserted, type Runner } from './schema-support.ts';

export type Passage = {
  readonly content?: string;
  readonly vector?: readonly number[] | null;
  readonly model?: string;
  readonly generation?: number;
};

/** A complete source with passages. `columns` are those of knowledge_sources beside the usual ones. */
export async function source(
  db: Runner,
  workspace: string,
  passages: readonly Passage[],
  columns: Record<string, unknown> = {},
): Promise<string> {
  const model = passages.find((passage) => passage.vector)?.model ?? 'm';
  const row = {
    workspace_id: workspace,
    name: 's',
    type: 'TEXT',
    processing_status: 'completed',
    embedding_model: model,
    embedding_dimensions: passages.find((passage) => passage.vector)?.vector?.length ?? null,
    ...columns,
  };
  const names = Object.keys(row);
  const id = await inserted(
    db,
    `insert into public.knowledge_sources (${names}) values (${names.map((_, i) => `$${i + 1}`)})`,
    Object.values(row),
  );
  await db.query(
    `insert into public.knowledge_chunks (source_id, generation, chunk_index, content, embedding_model, embedding, page, heading_path)
     select $1, x.generation, x.n, x.content, x.model, x.vector, x.n + 1, array['Part', x.n::text]
       from jsonb_to_recordset($2::jsonb) x (n integer, generation integer, content text, model text, vector vector)`,
    [
      id,
      JSON.stringify(
        passages.map((passage, n) => ({
          n,
          generation: passage.generation ?? 1,
          content: passage.content ?? `passage ${n}`,
          model: passage.model ?? 'm',
          vector: passage.vector ? `[${passage.vector}]` : null,
        })),
      ),
    ],
  );
  return id;
}

export type Found = {
  readonly id: string;
  readonly source_id: string;
  readonly source_name: string;
  readonly content: string;
  readonly page: number;
  readonly heading_path: string[];
  readonly similarity: number | null;
  readonly score: number;
};

/** match_knowledge_chunks with named arguments. */
export async function match(db: Runner, args: Record<string, unknown>): Promise<Found[]> {
  const names = Object.keys(args);
  const { rows } = await db.query(
    `select * from public.match_knowledge_chunks(${names.map((name, i) => `${name} => $${i + 1}`)})`,
    Object.values(args).map((value) =>
      Array.isArray(value) && typeof value[0] === 'number' ? `[${value}]` : value,
    ),
  );
  return rows as Found[];
}

export const contents = (found: readonly Found[]): string[] => found.map((one) => one.content);
