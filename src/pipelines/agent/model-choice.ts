/** The models of a run: the agent's own, and those that take its place while it is down. */
import type { ClaimedModel, ClaimedRun } from '../../db/runs.ts';
import { chooseModel, type ModelDeps, type UsableModel } from './credentials.ts';
import { RunFailure } from './errors.ts';

export class ModelChoice {
  readonly #models: readonly UsableModel[];
  #at: number;
  /** Fallbacks that can't be used, and why: for the step's context, where their owner looks. */
  readonly leftOut: readonly string[];

  constructor(models: readonly [UsableModel, ...UsableModel[]], leftOut: readonly string[] = [], at = 0) {
    this.#models = models;
    this.leftOut = leftOut;
    this.#at = at;
  }

  get current(): UsableModel {
    return this.#models[this.#at] as UsableModel;
  }

  /** Those that may make the run's calls, the agent's own first. */
  get all(): readonly UsableModel[] {
    return this.#models;
  }

  get hasNext(): boolean {
    return this.#at + 1 < this.#models.length;
  }

  /** The rest of the run is made with the next model. */
  fallBack(): UsableModel {
    if (this.hasNext) this.#at++;
    return this.current;
  }
}

/**
 * Chooses the models of a run, each with its own key. A run that fell back before stays with the model of its last call; the
 * next run begins with the agent's own again.
 *
 * Throws RunFailure where the agent's own model can't be used: that is a mistake in its settings, and no fallback is to hide it.
 */
export async function chooseModels(run: ClaimedRun, deps: ModelDeps): Promise<ModelChoice> {
  if (!run.model) throw new RunFailure('agent_deleted', 'The agent was deleted before the run ended.');
  const models: [UsableModel, ...UsableModel[]] = [await chooseModel(run, deps)];
  const leftOut: string[] = [];
  for (const named of run.fallback_models) {
    const model = withProvider(named, deps);
    try {
      models.push(await chooseModel({ ...run, model }, deps));
    } catch (error) {
      if (!(error instanceof RunFailure)) throw error;
      leftOut.push(`fallback model '${named.model}': ${error.message}`);
    }
  }
  const last = run.journal.llm.findLast((call) => call.model !== null);
  const at = models.findIndex((model) => model.provider === last?.provider && model.model === last.model);
  return new ModelChoice(models, leftOut, Math.max(at, 0));
}

/** `provider/model` where llm_models has no such row; a model's own id may hold a slash as well. */
function withProvider(named: ClaimedModel, deps: ModelDeps): ClaimedModel {
  const slash = named.model.indexOf('/');
  if (named.provider !== null || slash < 1) return named;
  const provider = deps.catalog.provider(named.model.slice(0, slash));
  return provider ? { ...named, provider: provider.name, model: named.model.slice(slash + 1) } : named;
}
