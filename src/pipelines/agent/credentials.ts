/** Which model a run uses and whose key pays: the agent's own, then its workspace's, then the environment's. */
import { createHash } from 'node:crypto';
import type { ClaimedRun, StoredCredential } from '../../db/runs.ts';
import type { ModelCatalog } from '../../providers/model-catalog.ts';
import { type ModelClient, openAiModelClient } from '../../providers/models.ts';
import { type SecretContext, SecretError, type SecretOpener } from '../../secrets.ts';
import { RunFailure } from './errors.ts';

/** A model that a run can call. */
export type UsableModel = {
  readonly client: ModelClient;
  readonly provider: string;
  readonly model: string;
  readonly modelId: string | null;
  /** Tokens that the model takes, answer included; null where nobody says. */
  readonly contextWindow: number | null;
  /** Names base URL, API key and model without telling them: what one rate limit of the provider is for. */
  readonly limitKey: string;
  readonly credentialSource: 'agent' | 'workspace' | 'environment';
  /** Names the credential in messages, without its secret. */
  readonly credentialName: string;
  /** US dollars per 1,000 tokens; null where no price is known. */
  readonly prices: {
    readonly inputPer1k: number;
    readonly outputPer1k: number;
    readonly cachedInputPer1k: number | null;
  } | null;
};

export type ModelDeps = {
  readonly catalog: ModelCatalog;
  readonly secrets: SecretOpener;
  readonly environment: { readonly apiKey: string | null; readonly baseUrl: string | null };
  /** Milliseconds that one model call may take. */
  readonly callTimeoutMs: number;
  /** Makes the client; tests and benchmarks put a model of their own here. */
  readonly createClient?: typeof openAiModelClient;
};

const DEFAULT_PROVIDER = 'openai';

/**
 * Chooses model and key. Keys of other tenants are never considered: the claim reads only those of the
 * run's agent and workspace.
 *
 * Throws RunFailure: `no_model_credential`, `unknown_provider`, or the reason why a secret can't be opened.
 */
export async function chooseModel(run: ClaimedRun, deps: ModelDeps): Promise<UsableModel> {
  const model = run.model;
  if (!model) throw new RunFailure('agent_deleted', 'The agent was deleted before the run ended.');
  const provider = model.provider ?? DEFAULT_PROVIDER;
  const known = deps.catalog.provider(provider);
  const name = known?.name ?? provider.toLowerCase();
  const matches = (credential: StoredCredential): boolean =>
    (deps.catalog.provider(credential.provider)?.name ?? credential.provider.toLowerCase()) === name;

  const ofAgent = run.credentials.agent.find(matches);
  const ofWorkspace = run.credentials.workspace.find((c) => matches(c) && (c.secret ?? c.vault_id) !== null);
  let apiKey: string | null = null;
  let source: UsableModel['credentialSource'] = 'environment';
  let credentialName = 'OPENAI_API_KEY of the environment';
  if (ofAgent?.secret) {
    source = 'agent';
    credentialName = `the agent's API connection ${ofAgent.id}`;
    apiKey = await open(deps, credentialName, ofAgent.secret, {
      table: 'public.api_connections',
      row: ofAgent.id,
      column: 'api_key',
      workspace: run.workspace_id,
    });
  } else if (ofWorkspace) {
    source = 'workspace';
    credentialName = `the workspace's ${ofWorkspace.provider} key (workspace_llm_config ${ofWorkspace.id})`;
    apiKey = await open(deps, credentialName, (ofWorkspace.secret ?? ofWorkspace.vault_id) as string, {
      table: 'public.workspace_llm_config',
      row: ofWorkspace.id,
      column: ofWorkspace.secret === null ? 'vault_api_key_id' : 'api_key',
      workspace: run.workspace_id,
    });
  } else if (name === DEFAULT_PROVIDER) {
    apiKey = deps.environment.apiKey;
  }
  if (apiKey === null) {
    const anywhere = name === DEFAULT_PROVIDER ? ', or set OPENAI_API_KEY for the worker' : '';
    throw new RunFailure(
      'no_model_credential',
      `No usable key for ${provider}: connect an API connection of service '${provider}' to the agent, ` +
        `add one to the workspace's workspace_llm_config${anywhere}.`,
    );
  }
  const baseUrl =
    name === DEFAULT_PROVIDER
      ? (deps.environment.baseUrl ?? known?.baseUrl ?? null)
      : (known?.baseUrl ?? null);
  if (name !== DEFAULT_PROVIDER && baseUrl === null) {
    throw new RunFailure(
      'unknown_provider',
      `agentd does not know where ${provider} is. Known providers: ${deps.catalog.providers.map((p) => p.name).join(', ')}.`,
    );
  }
  const create = deps.createClient ?? openAiModelClient;
  return {
    client: create({ apiKey, baseUrl, timeoutMs: deps.callTimeoutMs }),
    provider: name,
    model: model.model,
    modelId: model.id,
    contextWindow: model.context_window ?? deps.catalog.model(name, model.model)?.contextWindow ?? null,
    limitKey: createHash('sha256')
      .update(JSON.stringify([baseUrl, apiKey, model.model]))
      .digest('hex'),
    credentialSource: source,
    credentialName,
    prices: prices(run, deps.catalog, name),
  };
}

function prices(run: ClaimedRun, catalog: ModelCatalog, provider: string): UsableModel['prices'] {
  const model = run.model;
  if (model?.id && model.input_cost_per_1k !== null && model.output_cost_per_1k !== null) {
    return {
      inputPer1k: model.input_cost_per_1k,
      outputPer1k: model.output_cost_per_1k,
      cachedInputPer1k: null,
    };
  }
  const known = model ? catalog.model(provider, model.model) : null;
  return known
    ? {
        inputPer1k: known.inputPer1k,
        outputPer1k: known.outputPer1k,
        cachedInputPer1k: known.cachedInputPer1k ?? null,
      }
    : null;
}

async function open(deps: ModelDeps, name: string, secret: string, context: SecretContext): Promise<string> {
  try {
    return await deps.secrets.open(secret, context);
  } catch (error) {
    if (!(error instanceof SecretError)) throw error;
    throw new RunFailure(
      // those of the Vault say by themselves what they are about
      error.code.startsWith('vault_') ? error.code : `secret_${error.code}`,
      `${name} can't be opened: ${error.message} ${error.nextStep}`,
      { cause: error },
    );
  }
}
