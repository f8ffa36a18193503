/** Which embedder makes a workspace's vectors. */
import type { Config } from '../config.ts';
import { DocumentError } from './document-error.ts';
import type { EmbeddingCatalog } from './embedding-models.ts';
import { type Embedder, openAiEmbedder } from './embeddings.ts';
import { FEATURE_HASH_MODEL, featureHashEmbedder } from './feature-hash.ts';

/** A key that was found for the document: the agent's own, its workspace's, or the environment's. */
export type EmbeddingCredential = {
  readonly apiKey: string | null;
  /** Null: OpenAI's own. */
  readonly baseUrl: string | null;
};

export type ChooseEmbedderOptions = {
  readonly timeoutMs?: number;
  readonly fetch?: typeof fetch;
};

/** Servers that need no key get this one: the protocol has no way to send none. */
const NO_KEY = 'none';

/**
 * The model that the configuration names, behind the credential; without a key and without an endpoint the offline embedder, but
 * only with the embedded database, which is for trying: elsewhere it would quietly fill a store with vectors that know no meanings.
 *
 * @param credential what was resolved for the document; null: the environment's
 *
 * Throws DocumentError: `no_credentials` with what to set, or `wrong_dimensions` where the model can't make those that are kept.
 */
export function chooseEmbedder(
  config: Pick<Config, 'databaseUrl' | 'embedding' | 'openai'>,
  catalog: EmbeddingCatalog,
  credential: EmbeddingCredential | null,
  options: ChooseEmbedderOptions = {},
): Embedder {
  const { model, dimensions } = config.embedding;
  if (model === FEATURE_HASH_MODEL) return offline(dimensions);
  const { apiKey, baseUrl } = credential ?? config.openai;
  if (apiKey !== null || baseUrl !== null) {
    const known = catalog.model(model);
    return openAiEmbedder({ model, dimensions, known, apiKey: apiKey ?? NO_KEY, baseUrl, ...options });
  }
  if (config.databaseUrl === null) return offline(dimensions);
  throw new DocumentError(
    'no_credentials',
    `There is no key for the embedding model ${model}. Set OPENAI_API_KEY for the worker, or OPENAI_BASE_URL for a server that ` +
      `needs none, or give the workspace a key. AGENTD_EMBEDDING_MODEL=${FEATURE_HASH_MODEL} searches by words alone and needs none.`,
  );
}

function offline(dimensions: number): Embedder {
  if (dimensions >= 16) return featureHashEmbedder(dimensions);
  throw new DocumentError(
    'wrong_dimensions',
    `${FEATURE_HASH_MODEL} needs at least 16 dimensions, and ${dimensions} are kept. Set AGENTD_EMBEDDING_DIMENSIONS.`,
  );
}
