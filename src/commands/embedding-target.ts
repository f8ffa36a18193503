/** Which model `agentd embeddings` is about, and what it costs. */
import type { Config } from '../config.ts';
import type { EmbeddingCatalog } from '../providers/embedding-models.ts';
import { openAiEmbedder } from '../providers/embeddings.ts';
import { FEATURE_HASH_MODEL } from '../providers/feature-hash.ts';
import { UsageError } from './errors.ts';

export type Target = { readonly model: string; readonly dimensions: number };

/** What the index of pgvector can hold. */
const MOST_DIMENSIONS = 4000;
const FEWEST_HASHED = 16;
const LONGEST_NAME = 200;

/** What new documents are embedded with by a daemon of this configuration, where their workspace has chosen nothing else. */
export function configuredModel(config: Pick<Config, 'databaseUrl' | 'embedding' | 'openai'>): Target {
  const { apiKey, baseUrl } = config.openai;
  const isOffline = config.databaseUrl === null && apiKey === null && baseUrl === null;
  return isOffline ? { ...config.embedding, model: FEATURE_HASH_MODEL } : config.embedding;
}

/** `MODEL` or `MODEL:DIMENSIONS`; null: what the configuration says. Throws UsageError for what cannot be. */
export function parseTarget(
  text: string | null,
  config: Pick<Config, 'databaseUrl' | 'embedding' | 'openai'>,
  catalog: EmbeddingCatalog,
): Target {
  const configured = configuredModel(config);
  // a model's own name may have a colon
  const [, name = '', digits] = /^(.*?)(?::(\d+))?$/s.exec(text?.trim() ?? configured.model) ?? [];
  if (name === '' || name.length > LONGEST_NAME) {
    throw new UsageError(
      'That is no name of a model.',
      'Write --to MODEL or --to MODEL:DIMENSIONS, such as text-embedding-3-large:1024.',
    );
  }
  const known = catalog.model(name);
  const dimensions =
    digits !== undefined
      ? Number(digits)
      : name === configured.model
        ? configured.dimensions
        : name === FEATURE_HASH_MODEL
          ? config.embedding.dimensions
          : (known?.dimensions ?? null);
  if (dimensions === null) {
    throw new UsageError(
      `config/embeddings.json does not know how many dimensions ${name} has.`,
      `Say so: --to ${name}:DIMENSIONS.`,
    );
  }
  const fewest = name === FEATURE_HASH_MODEL ? FEWEST_HASHED : 1;
  const most = known === null ? MOST_DIMENSIONS : Math.min(MOST_DIMENSIONS, known.dimensions);
  const isFixed = known !== null && !known.isShortenable;
  if (dimensions < fewest || dimensions > most || (isFixed && dimensions !== known.dimensions)) {
    throw new UsageError(
      `${name} makes no vectors of ${dimensions} dimensions that could be stored.`,
      isFixed ? `It makes ${known.dimensions}.` : `Ask for ${fewest} to ${most}.`,
    );
  }
  return { model: name, dimensions };
}

/** Millionths of a US dollar for so many tokens; null: nobody knows its price. */
export function costOf({ model }: Target, tokens: number, catalog: EmbeddingCatalog): number | null {
  if (model === FEATURE_HASH_MODEL) return 0;
  const price = catalog.model(model)?.inputPer1k;
  return price === undefined ? null : Math.round(tokens * price * 1000);
}

/** Under what a daemon of this configuration keeps the rate limit of the environment's key; null: there is none. */
export function limitKeyOf(target: Target, config: Config, catalog: EmbeddingCatalog): string | null {
  const { apiKey, baseUrl } = config.openai;
  if (target.model === FEATURE_HASH_MODEL || (apiKey === null && baseUrl === null)) return null;
  return openAiEmbedder({
    ...target,
    known: catalog.model(target.model),
    apiKey: apiKey ?? 'none',
    baseUrl,
  }).limitKey;
}

/** `text-embedding-3-small:1536`. */
export function nameOf({
  model,
  dimensions,
}: {
  readonly model: string | null;
  readonly dimensions: number | null;
}): string {
  return model === null ? 'the application’s own' : `${model}:${dimensions ?? '?'}`;
}
