/** What `agentd embeddings migrate` says and does. */
import { setTimeout as pause } from 'node:timers/promises';
import type { Config } from '../config.ts';
import type { Database } from '../db/database.ts';
import {
  embeddingRate,
  indexAdvice,
  type MovePreview,
  type MoveReport,
  modelsInUse,
  movers,
  moves,
  previewMoves,
  requestMoves,
} from '../db/embedding-reports.ts';
import { type EmbeddingCatalog, loadEmbeddingCatalog } from '../providers/embedding-models.ts';
import { FEATURE_HASH_MODEL } from '../providers/feature-hash.ts';
import { printMoves } from './embedding-moves.ts';
import { costOf, limitKeyOf, nameOf, parseTarget, type Target } from './embedding-target.ts';
import { CommandError, UsageError } from './errors.ts';
import { cost, count, cut, duration, shortId } from './format.ts';
import { asOperator, operatorName } from './operator.ts';
import type { Output } from './output.ts';

export type MigrateOptions = {
  readonly to?: string;
  readonly workspaceId: string | null;
  readonly yes?: boolean;
  readonly dryRun?: boolean;
  readonly detach?: boolean;
};

type Rate = Awaited<ReturnType<typeof embeddingRate>>;
type Planned = MovePreview & { readonly expected_cost_micros: number | null };
type Plan = {
  readonly target: Target;
  readonly workspaces: readonly Planned[];
  readonly rate: Rate;
  /** For an operator to run first; null: nothing. */
  readonly index: string | null;
};

const LOOK_MS = 500;

/** Shows what a move would take, records it with `yes`, and watches it to its end. */
export async function migrate(
  db: Database,
  config: Config,
  output: Output,
  note: (text: string) => void,
  options: MigrateOptions,
): Promise<void> {
  const catalog = loadEmbeddingCatalog();
  const target = parseTarget(options.to ?? null, config, catalog);
  const open = (await moves(db, options.workspaceId === null ? null : [options.workspaceId])).filter(
    ({ status }) => status === 'waiting' || status === 'running',
  );
  requireNoOther(open, target);
  const underWay = new Set(open.map(({ workspace_id }) => workspace_id));
  const previews = await previewMoves(db, target, options.workspaceId);
  const plan: Plan = {
    target,
    workspaces: previews
      .filter(({ workspace_id }) => !underWay.has(workspace_id))
      .map((preview) => ({ ...preview, expected_cost_micros: costOf(target, preview.tokens, catalog) })),
    rate: await embeddingRate(db, target.model, limitKeyOf(target, config, catalog)),
    index: await indexAdvice(db, target),
  };
  const isDone = options.yes === true && options.dryRun !== true;
  const isNothing = plan.workspaces.length + underWay.size === 0;
  if (isNothing && (await modelsInUse(db, options.workspaceId, 1)).length === 0) {
    if (output.json) return output.data(asJson(plan, false, open));
    return output.line(
      `There is no knowledge yet${options.workspaceId === null ? '' : ' in this workspace'}, so there is nothing to move. Put some in: agentd ingest FILE.`,
    );
  }
  if (!output.json && (plan.workspaces.length > 0 || underWay.size === 0)) printPlan(output, plan, catalog);
  if (!isDone || isNothing) {
    if (output.json) output.data(asJson(plan, false, open));
    else if (plan.workspaces.length > 0) output.line(`\nNothing was changed. To do it, say --yes.`);
    return;
  }
  const recorded = await asOperator(db, (tx) => requestMoves(tx, target, plan.workspaces, operatorName()));
  const watched = [...new Set([...recorded, ...underWay])];
  if (options.detach === true) {
    if (output.json) return output.data(asJson(plan, true, await moves(db, watched)));
    return output.line(`\n${count(watched.length)} under way. To watch: agentd embeddings status.`);
  }
  note('Daemons are at it; Ctrl-C leaves it going. To call it off: agentd embeddings cancel.');
  const ended = await follow(db, watched, note);
  if (output.json) output.data(asJson(plan, true, ended));
  else printMoves(output, ended);
  const failed = ended.filter(({ status }) => status !== 'completed');
  if (failed.length > 0) {
    throw new CommandError(
      `${count(failed.length)} of ${count(ended.length)} workspaces were not moved: ${cut(failed[0]?.reason ?? failed[0]?.status ?? '', 200)}`,
      'Mend what the reasons say and run the command again: what was embedded is not paid for again.',
    );
  }
}

function requireNoOther(open: readonly MoveReport[], target: Target): void {
  const other = open.find((move) => move.model !== target.model || move.dimensions !== target.dimensions);
  if (other === undefined) return;
  throw new UsageError(
    `Workspace ${shortId(other.workspace_id)} is on its way to ${nameOf(other)} already.`,
    `Wait for it (agentd embeddings status), or call it off: agentd embeddings cancel --workspace ${shortId(other.workspace_id)}.`,
  );
}

const sum = (plan: Plan, of: (row: Planned) => number): number =>
  plan.workspaces.reduce((total, row) => total + of(row), 0);

/** Millionths of a US dollar; null: the price is unknown. */
function totalCost(plan: Plan): number | null {
  return plan.workspaces.some((row) => row.expected_cost_micros === null)
    ? null
    : sum(plan, (row) => row.expected_cost_micros ?? 0);
}

function printPlan(output: Output, plan: Plan, catalog: EmbeddingCatalog): void {
  const { target } = plan;
  if (plan.workspaces.length === 0) {
    output.line(`Nothing is to be moved: all knowledge that was embedded here has ${nameOf(target)}.`);
    return;
  }
  output.line(`To ${nameOf(target)}:\n`);
  output.table(
    plan.workspaces,
    [
      { title: 'WORKSPACE', value: (row) => cut(row.workspace_name, 24) },
      { title: 'ID', value: (row) => shortId(row.workspace_id) },
      {
        title: 'FROM',
        value: (row) => cut(nameOf({ model: row.from_model, dimensions: row.from_dimensions }), 48),
      },
      { title: 'SOURCES', value: (row) => count(row.sources), align: 'right' },
      { title: 'PASSAGES', value: (row) => count(row.chunks), align: 'right' },
      { title: 'TOKENS TO PAY', value: (row) => count(row.tokens), align: 'right' },
      {
        title: 'COST',
        value: (row) => (row.expected_cost_micros === null ? 'unknown' : cost(row.expected_cost_micros)),
        align: 'right',
      },
    ],
    '',
  );
  const tokens = sum(plan, (row) => row.tokens);
  const micros = totalCost(plan);
  output.line(
    `\n${count(plan.workspaces.length)} ${plan.workspaces.length === 1 ? 'workspace' : 'workspaces'}, ${count(sum(plan, (row) => row.chunks))} passages, ${count(tokens)} tokens to be embedded.`,
  );
  output.line(
    target.model === FEATURE_HASH_MODEL
      ? 'Cost: nothing, it is computed here.'
      : micros === null
        ? `Cost: unknown, config/embeddings.json has no price of ${target.model}.`
        : `Cost: ${cost(micros)}, by the prices of ${catalog.pricesAsOf} in config/embeddings.json.`,
  );
  output.line(`Time: ${timeOf(plan, tokens)}`);
  if (plan.index !== null) {
    output.line(
      '\nThe table is too large for daemons to make the index of the new model while others write. Make it first, or searches are slower until you do:',
    );
    output.line(`  ${plan.index.replace(/\s+/g, ' ')};`);
  }
}

function timeOf({ rate, target }: Plan, tokens: number): string {
  if (target.model === FEATURE_HASH_MODEL) return 'as fast as the processor and the database are.';
  if (rate === null) return 'unknown, nothing was embedded with this model and key lately.';
  const how =
    rate.from === 'limit' ? 'the rate limit of the environment’s key' : 'the rate of the last documents';
  return `about ${duration((tokens / rate.perSecond) * 1000)}, by ${how} (${count(Math.round(rate.perSecond))} tokens a second).`;
}

function asJson(plan: Plan, done: boolean, rows: readonly MoveReport[]): unknown {
  const tokens = sum(plan, (row) => row.tokens);
  return {
    ...plan.target,
    done,
    chunks: sum(plan, (row) => row.chunks),
    tokens,
    expected_cost_micros: totalCost(plan),
    expected_seconds: plan.rate === null ? null : tokens / plan.rate.perSecond,
    workspaces: plan.workspaces,
    index_to_make_first: plan.index,
    moves: rows,
  };
}

/** Looks until all have ended, and says what changes. */
async function follow(
  db: Database,
  ids: readonly string[],
  note: (text: string) => void,
): Promise<MoveReport[]> {
  let said = '';
  for (;;) {
    const rows = await moves(db, ids);
    const open = rows.filter(({ status }) => status === 'waiting' || status === 'running');
    if (open.length === 0) return rows;
    const chunks = rows.reduce((total, row) => total + row.chunks, 0);
    const done = rows.reduce(
      (total, row) => total + (row.status === 'completed' ? row.chunks : row.done_chunks),
      0,
    );
    const waits = open.find(({ reason }) => reason !== null);
    const line =
      open.every(({ status }) => status === 'waiting') && (await movers(db)) === 0
        ? 'waiting: no worker that ingests documents is running (agentd start)'
        : `${Math.floor((100 * done) / Math.max(chunks, 1))} % of ${count(chunks)} passages, ${count(rows.length - open.length)} of ${count(rows.length)} workspaces` +
          (waits ? `; workspace ${shortId(waits.workspace_id)} waits: ${cut(waits.reason ?? '', 120)}` : '');
    if (line !== said) note(line);
    said = line;
    await pause(LOOK_MS);
  }
}
