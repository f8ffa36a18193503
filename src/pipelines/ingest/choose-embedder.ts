/** Whose key embeds a document: its workspace's, else the environment's. */
import type { Config } from '../../config.ts';
import type { StoredCredential } from '../../db/runs.ts';
import { chooseEmbedder } from '../../providers/choose-embedder.ts';
import { DocumentError } from '../../providers/document-error.ts';
import type { EmbeddingCatalog } from '../../providers/embedding-models.ts';
import { FEATURE_HASH_MODEL } from '../../providers/feature-hash.ts';
import { SecretError, type SecretOpener } from '../../secrets.ts';
import type { ChosenEmbedder } from './ingest.ts';

export type EmbedderChoiceDeps = {
  readonly config: Pick<Config, 'databaseUrl' | 'embedding' | 'openai'>;
  readonly catalog: EmbeddingCatalog;
  readonly secrets: SecretOpener;
};

const PROVIDER = 'openai';

/**
 * Chooses the embedder of a workspace. Keys of other tenants are never considered. Throws DocumentError: `no_credentials`.
 *
 * @param model what its vectors must be of; null: what the configuration says, or stands in for it
 */
export async function embedderOf(
  deps: EmbedderChoiceDeps,
  owner: { readonly workspace_id: string; readonly credentials: readonly StoredCredential[] },
  model: { readonly model: string; readonly dimensions: number } | null = null,
): Promise<ChosenEmbedder> {
  const own = owner.credentials.find(
    (c) => c.provider.toLowerCase() === PROVIDER && (c.secret ?? c.vault_id) !== null,
  );
  const credential =
    own === undefined
      ? null
      : { apiKey: await opened(deps, own, owner.workspace_id), baseUrl: deps.config.openai.baseUrl };
  const config = model === null ? deps.config : { ...deps.config, embedding: model };
  const embedder = chooseEmbedder(config, deps.catalog, credential);
  if (model !== null && embedder.model !== model.model) {
    throw new DocumentError(
      'no_credentials',
      `There is no key for the embedding model ${model.model}. Set OPENAI_API_KEY or OPENAI_BASE_URL for the worker, or give the workspace a key.`,
    );
  }
  return { provider: embedder.model === FEATURE_HASH_MODEL ? 'agentd' : PROVIDER, embedder };
}

async function opened(
  deps: EmbedderChoiceDeps,
  credential: StoredCredential,
  workspace: string,
): Promise<string> {
  try {
    return await deps.secrets.open((credential.secret ?? credential.vault_id) as string, {
      table: 'public.workspace_llm_config',
      row: credential.id,
      column: credential.secret === null ? 'vault_api_key_id' : 'api_key',
      workspace,
    });
  } catch (error) {
    if (!(error instanceof SecretError)) throw error;
    throw new DocumentError(
      'no_credentials',
      `The workspace's ${credential.provider} key (workspace_llm_config ${credential.id}) can't be opened: ${error.message} ${error.nextStep}`,
      { cause: error },
    );
  }
}
