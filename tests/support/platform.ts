/** The rows that an application would have before its first run, in few lines. */
import { randomUUID } from 'node:crypto';
import type { Queryable } from '../../src/db/database.ts';

/** A user with a workspace and an agent in it. */
export type Platform = { readonly userId: string; readonly workspaceId: string; readonly agentId: string };

/** Columns of a row; `undefined` leaves the column to its default. */
export type Columns = Readonly<Record<string, unknown>>;

/** Model that the agents of tests use; the model server knows it. */
export const MODEL = 'gpt-4.1-mini';

/** Inserts one row and returns its id. */
export async function insert(db: Queryable, table: string, columns: Columns): Promise<string> {
  const given = Object.entries(columns).filter(([, value]) => value !== undefined);
  const names = given.map(([name]) => name);
  const [row] = await db.query<{ id: string }>(
    `insert into ${table} (${names.join(', ')}) values (${names.map((_, i) => `$${i + 1}`)}) returning id`,
    given.map(([, value]) => value),
  );
  if (!row) throw new Error(`No row was inserted into ${table}.`);
  return row.id;
}

/**
 * Signs a user up and makes an agent. The workspace is the user's personal one, or with `shared` one of its
 * own, which can be deleted.
 */
export async function makePlatform(
  db: Queryable,
  options: { agent?: Columns; shared?: boolean } = {},
): Promise<Platform> {
  const userId = await insert(db, 'auth.users', { email: `${randomUUID()}@example.test` });
  let workspaceId: string;
  if (options.shared) {
    workspaceId = await insert(db, 'public.workspaces', { name: 'Shared', owner_user_id: userId });
  } else {
    const [row] = await db.query<{ id: string }>(
      'select id from public.workspaces where owner_user_id = $1 and is_personal',
      [userId],
    );
    if (!row) throw new Error(`User ${userId} has no personal workspace.`);
    workspaceId = row.id;
  }
  const agentId = await makeAgent(db, { userId, workspaceId }, options.agent);
  return { userId, workspaceId, agentId };
}

/** One more agent in a workspace. */
export function makeAgent(
  db: Queryable,
  owner: Pick<Platform, 'userId' | 'workspaceId'>,
  columns: Columns = {},
): Promise<string> {
  return insert(db, 'public.agents', {
    workspace_id: owner.workspaceId,
    user_id: owner.userId,
    name: 'Ada',
    instructions: 'Answer briefly.',
    model: MODEL,
    ...columns,
  });
}

export type StepColumns = {
  readonly instructions?: string;
  readonly order?: number;
  readonly previous?: boolean;
  readonly maxRetries?: number;
  readonly timeoutSeconds?: number;
};

/** A task; without a cron expression it runs when asked to. `max_retries` is 0 unless given, so that failures show at once. */
export async function makeTask(
  db: Queryable,
  platform: Platform,
  columns: Columns = {},
  steps: readonly StepColumns[] = [],
): Promise<string> {
  const taskId = await insert(db, 'public.agent_tasks', {
    workspace_id: platform.workspaceId,
    user_id: platform.userId,
    agent_id: platform.agentId,
    name: 'Report',
    instructions: 'Write the report.',
    max_retries: 0,
    ...columns,
  });
  for (const [index, step] of steps.entries()) {
    await insert(db, 'public.task_steps', {
      task_id: taskId,
      step_order: step.order ?? index + 1,
      step_name: `step ${index + 1}`,
      instructions: step.instructions ?? `Do part ${index + 1}.`,
      include_previous_context: step.previous,
      max_retries: step.maxRetries,
      timeout_seconds: step.timeoutSeconds,
    });
  }
  return taskId;
}

/** Asks for a run of a task, as an application does. Returns the run's id. */
export function startRun(db: Queryable, taskId: string, input: object = {}): Promise<string> {
  return insert(db, 'public.task_runs', { task_id: taskId, input: JSON.stringify(input) });
}

/** A task of one step and a run of it. `marker` is in its instructions, so that the model can tell it from others. */
export async function startTask(
  db: Queryable,
  platform: Platform,
  marker: string,
  columns: Columns = {},
  steps: readonly StepColumns[] = [],
): Promise<string> {
  return startRun(db, await makeTask(db, platform, { instructions: marker, ...columns }, steps));
}

/** A key of the workspace for a provider. */
export function workspaceKey(
  db: Queryable,
  platform: Platform,
  apiKey: string | null,
  columns: Columns = {},
): Promise<string> {
  return insert(db, 'public.workspace_llm_config', {
    workspace_id: platform.workspaceId,
    provider: 'openai',
    api_key: apiKey,
    ...columns,
  });
}

/** A key of the agent's own. Returns the connection's id. */
export async function agentKey(db: Queryable, platform: Platform, apiKey: string): Promise<string> {
  const connection = await insert(db, 'public.api_connections', {
    workspace_id: platform.workspaceId,
    user_id: platform.userId,
    name: 'Key',
    service: 'openai',
    api_key: apiKey,
  });
  await insert(db, 'public.agent_api_connections', {
    agent_id: platform.agentId,
    api_connection_id: connection,
  });
  return connection;
}
