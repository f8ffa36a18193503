import { z } from 'zod';
import { readConfigFile } from '../config.ts';

const modelSchema = z.strictObject({
  id: z.string().min(1),
  /** What it makes when it is not asked for fewer. */
  dimensions: z.int().min(1),
  /** Whether it can be asked for fewer. */
  isShortenable: z.boolean(),
  /** Tokens of one text. */
  maxItemTokens: z.int().min(1),
  /** US dollars for 1,000 tokens. */
  inputPer1k: z.number().min(0).max(100),
});

const catalogSchema = z.strictObject({
  pricesAsOf: z.string().regex(/^\d{4}-\d{2}$/),
  models: z
    .array(modelSchema)
    .refine(
      (models) => new Set(models.map(({ id }) => id)).size === models.length,
      'a model is listed twice',
    ),
});

export type KnownEmbeddingModel = z.infer<typeof modelSchema>;

/** What is known of embedding models without asking them. */
export interface EmbeddingCatalog {
  /** Month of the prices, `YYYY-MM`. */
  readonly pricesAsOf: string;
  readonly models: readonly KnownEmbeddingModel[];
  /** By id, also behind a prefix as routers write it (`openai/text-embedding-3-small`); null when unknown. */
  model(id: string): KnownEmbeddingModel | null;
}

/** Reads `config/embeddings.json`. @throws ConfigError naming the file and the field */
export function loadEmbeddingCatalog(): EmbeddingCatalog {
  const data = readConfigFile('embeddings.json', catalogSchema);
  const byId = new Map(data.models.map((model) => [model.id, model]));
  return { ...data, model: (id) => byId.get(id) ?? byId.get(id.replace(/^openai\//, '')) ?? null };
}
