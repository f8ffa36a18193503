import { z } from 'zod';
import { readConfigFile } from '../config.ts';
import type { ModelUsage } from './models.ts';

const price = z.number().min(0).max(100);

const providerSchema = z.strictObject({
  /** Lower case; how the platform's rows call it is matched by {@link ModelCatalog.provider}. */
  name: z.string().regex(/^[a-z0-9-]+$/),
  aliases: z.array(z.string().regex(/^[a-z0-9-]+$/)),
  /** Root of its OpenAI-compatible API. Null: only the operator's OPENAI_BASE_URL says where it is (Ollama). */
  baseUrl: z.url({ protocol: /^https$/ }).nullable(),
  defaultModel: z.string().min(1).nullable(),
});

const modelSchema = z.strictObject({
  provider: z.string(),
  id: z.string().min(1),
  /** Tokens of prompt and answer together. */
  contextWindow: z.int().min(1),
  maxOutputTokens: z.int().min(1),
  /** US dollars for 1,000 tokens. */
  inputPer1k: price,
  /** US dollars for 1,000 tokens read from the provider's cache; null: charged like the others. */
  cachedInputPer1k: price.nullable(),
  outputPer1k: price,
});

const catalogSchema = z
  .strictObject({
    pricesAsOf: z.string().regex(/^\d{4}-\d{2}$/),
    providers: z.array(providerSchema).min(1),
    models: z.array(modelSchema),
  })
  .superRefine(({ providers, models }, context) => {
    const names = providers.flatMap(({ name, aliases }) => [name, ...aliases]).map(plainName);
    const ids = models.map(({ provider, id }) => `${provider}/${id}`);
    for (const [path, list] of [['providers', names] as const, ['models', ids] as const]) {
      const twice = list.find((entry, index) => list.indexOf(entry) !== index);
      if (twice) context.addIssue({ code: 'custom', path: [path], message: `"${twice}" is listed twice` });
    }
    const homeless = models.find((model) => !providers.some(({ name }) => name === model.provider));
    if (homeless)
      context.addIssue({ code: 'custom', path: ['models'], message: `unknown provider of ${homeless.id}` });
  });

export type KnownProvider = z.infer<typeof providerSchema>;
export type KnownModel = z.infer<typeof modelSchema>;
/** US dollars for 1,000 tokens, as `llm_models` keeps them. */
export type ModelPrices = Pick<KnownModel, 'inputPer1k' | 'outputPer1k'> & {
  cachedInputPer1k?: number | null;
};

/** What is known about providers and models without asking them. `llm_models` rows win over it. */
export interface ModelCatalog {
  /** Month of the prices, `YYYY-MM`. */
  readonly pricesAsOf: string;
  readonly providers: readonly KnownProvider[];
  readonly models: readonly KnownModel[];
  /** By name or alias, whatever its case, spaces and dashes ("OpenAI", "open ai"); null when unknown. */
  provider(name: string): KnownProvider | null;
  /** By id, also of a dated snapshot (`gpt-4o-2024-08-06` is `gpt-4o`); null when unknown. */
  model(provider: string, id: string): KnownModel | null;
}

/** Reads `config/models.json`. @throws ConfigError naming the file and the field */
export function loadModelCatalog(): ModelCatalog {
  return buildCatalog(readConfigFile('models.json', catalogSchema));
}

/** Validates a catalog given as data. @throws ZodError */
export function parseModelCatalog(data: unknown): ModelCatalog {
  return buildCatalog(catalogSchema.parse(data));
}

function buildCatalog(data: z.infer<typeof catalogSchema>): ModelCatalog {
  const providers = new Map(
    data.providers.flatMap((entry) =>
      [entry.name, ...entry.aliases].map((name) => [plainName(name), entry] as const),
    ),
  );
  const models = new Map(data.models.map((entry) => [`${entry.provider}/${entry.id}`, entry]));
  const provider = (name: string) => providers.get(plainName(name)) ?? null;
  return {
    ...data,
    provider,
    model: (name, id) => {
      const home = provider(name)?.name;
      if (home === undefined) return null;
      return (
        models.get(`${home}/${id}`) ?? models.get(`${home}/${id.replace(/-\d{4}-\d{2}-\d{2}$/, '')}`) ?? null
      );
    },
  };
}

function plainName(name: string): string {
  return name.toLowerCase().replace(/[^a-z0-9]/g, '');
}

/** US dollars of a call, rounded to a billionth (the smallest price of one token here is 5e-9). */
export function callCost(prices: ModelPrices, usage: ModelUsage): number {
  const fresh = usage.promptTokens - usage.cachedTokens;
  const cost =
    (fresh * prices.inputPer1k +
      usage.cachedTokens * (prices.cachedInputPer1k ?? prices.inputPer1k) +
      usage.completionTokens * prices.outputPer1k) /
    1000;
  return Math.round(cost * 1e9) / 1e9;
}
