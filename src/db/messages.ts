/** What was said, searched. */
import type { Queryable } from './database.ts';
import type { QueryVector, VectorModel } from './knowledge.ts';
import type { StoredCredential } from './runs.ts';

/** A message that was found. */
export type FoundMessage = {
  readonly id: string;
  readonly kind: 'conversation' | 'channel';
  /** Of the conversation or channel. */
  readonly place_id: string;
  /** The conversation's title or the channel's name; null where it has none. */
  readonly title: string | null;
  /** Who says it: `user`, `assistant`, or another role of the application's. */
  readonly role: string;
  /** Its beginning. */
  readonly content: string;
  /** ISO 8601, to the second. */
  readonly said_at: string;
  /** Of nearness and words together; only its order means something. */
  readonly score: number;
};

/** Models of a workspace's messages beyond these, the newest first, are not asked. */
const MOST_MODELS = 2;
/** Characters of a message that are shown. */
const SHOWN = 2_000;

/**
 * The messages that fit a query best, by nearness and words together, of those that an agent may look up on behalf of a user. Never
 * crosses a workspace. Best first; empty if nothing fits.
 *
 * @param search.vectors the query, embedded by each of the models that are searched; none: by words alone
 */
export async function searchMessages(
  db: Queryable,
  search: {
    readonly workspaceId: string;
    readonly agentId: string;
    /** Null: on nobody's behalf, so in no user's own conversations. */
    readonly userId: string | null;
    readonly query: string;
    readonly limit: number;
    readonly vectors?: readonly QueryVector[];
  },
): Promise<FoundMessage[]> {
  const vectors = search.vectors?.length ? search.vectors : [null];
  const found = await Promise.all(
    vectors.map((vector) =>
      db.query<FoundMessage>(
        {
          name: 'search_messages',
          text: `
select m.id, m.kind, coalesce(m.conversation_id, m.channel_id) as place_id, left(m.title, 200) as title, left(m.role, 50) as role,
       left(m.content, ${SHOWN}) as content, to_char(m.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as said_at, m.score
  from public.search_messages(
         query_embedding => $1, query_text => $2, match_count => $3, workspace_id => $4, for_agent => $5, for_user => $6,
         embedding_model => $7) m`,
        },
        [
          vector === null ? null : `[${Array.from(vector.vector).join(',')}]`,
          search.query,
          search.limit,
          search.workspaceId,
          search.agentId,
          search.userId,
          vector?.model ?? null,
        ],
      ),
    ),
  );
  // Each search knows the words and its own model's vectors: a message counts where it counts most.
  const best = new Map<string, FoundMessage>();
  for (const message of found.flat()) {
    const key = `${message.kind}:${message.id}`;
    const other = best.get(key);
    if (!other || message.score > other.score) best.set(key, message);
  }
  return [...best.values()].sort((a, b) => b.score - a.score).slice(0, search.limit);
}

/** What a query must be embedded with to be compared with a workspace's messages, and its keys to do so. */
export async function findMessageModels(
  db: Queryable,
  workspaceId: string,
): Promise<{ readonly models: readonly VectorModel[]; readonly credentials: readonly StoredCredential[] }> {
  const [row] = await db.query<{ models: VectorModel[]; credentials: StoredCredential[] }>(
    {
      name: 'find_message_models',
      text: `
select coalesce((
         select jsonb_agg(m.model order by m.place desc)
           from agentd.message_workspaces e
          cross join lateral jsonb_array_elements(e.models) with ordinality m (model, place)
          where e.id = $1 and m.place > jsonb_array_length(e.models) - ${MOST_MODELS}), '[]') as models,
       coalesce((
         select jsonb_agg(jsonb_build_object('id', w.id, 'provider', w.provider, 'secret', w.api_key,
                                             'vault_id', w.vault_api_key_id) order by w.created_at)
           from public.workspace_llm_config w
          where w.workspace_id = $1 and w.is_active), '[]') as credentials`,
    },
    [workspaceId],
  );
  return row ?? { models: [], credentials: [] };
}
