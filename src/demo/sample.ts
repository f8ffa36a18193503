/** What the demo puts into its database: a workspace, an agent with a document to read, and a scheduled task. */
import type { Database, Queryable } from '../db/database.ts';

/** A step's place in the sample task, with what it asks for. The scripted model recognises steps by their instructions. */
export const STEPS = [
  {
    name: 'Find out',
    instructions:
      'Look up the time in Berlin, the weather at our depot in Chicago, and what the handbook says about late deliveries and about refunds. Name the page of each.',
  },
  {
    name: 'Write',
    instructions: 'Write a briefing of three short lines for the support team, with the pages.',
  },
  {
    name: 'Post',
    instructions: 'Post the briefing to the channel support, then say in one sentence what you did.',
  },
] as const;

export const MODEL = 'gpt-4o-mini';
export const CHANNEL = 'support';
export const SCHEDULE = { cron: '0 9 * * 1-5', timezone: 'Europe/Berlin' } as const;

export type Team = {
  readonly workspaceId: string;
  readonly userId: string;
  readonly agentId: string;
};

/** A file in the worker's storage, as an application names it in its row. */
export type StoredFile = { readonly name: string; readonly bytes: number; readonly path: string };

/** Inserts a workspace with a channel and an agent, in one transaction. */
export function insertTeam(db: Database): Promise<Team> {
  return db.transaction(async (tx) => {
    const userId = await insert(
      tx,
      `insert into auth.users (email) values ('ada@example.com') returning id`,
      [],
    );
    const workspaceId = await insert(
      tx,
      `insert into public.workspaces (name, owner_user_id) values ('Demo shop', $1) returning id`,
      [userId],
    );
    await tx.query('insert into public.chat_channels (workspace_id, name) values ($1, $2)', [
      workspaceId,
      CHANNEL,
    ]);
    const agentId = await insert(
      tx,
      `insert into public.agents (workspace_id, user_id, name, instructions, model, goals)
       values ($1, $2, 'Iris', 'You help the support team of a small web shop. Be brief.', $3,
               array['Nobody in support is surprised by a question'])
       returning id`,
      [workspaceId, userId, MODEL],
    );
    return { workspaceId, userId, agentId };
  });
}

/** Records a stored file and lets the agent read it, in one transaction. Returns the id of what it is read into. */
export function insertFile(db: Database, team: Team, file: StoredFile): Promise<string> {
  return db.transaction(async (tx) => {
    const media = await insert(
      tx,
      `insert into public.media_library (workspace_id, user_id, file_name, file_type, file_size, storage_path)
       values ($1, $2, $3, 'application/pdf', $4, $5) returning id`,
      [team.workspaceId, team.userId, file.name, file.bytes, file.path],
    );
    await tx.query('insert into public.agent_media_assignments (agent_id, media_id) values ($1, $2)', [
      team.agentId,
      media,
    ]);
    const [source] = await tx.query<{ id: string }>(
      'select id from public.knowledge_sources where media_id = $1',
      [media],
    );
    if (!source) throw new Error('The file has no source.');
    return source.id;
  });
}

/** Connects the agent with a server of tools. Returns the connection's id. */
export function insertConnection(
  db: Database,
  team: Team,
  server: { readonly name: string; readonly url: string },
): Promise<string> {
  return insert(
    db,
    'insert into public.agent_mcp_connections (agent_id, connection_name, server_url) values ($1, $2, $3) returning id',
    [team.agentId, server.name, server.url],
  );
}

/**
 * Inserts the task in one transaction. Returns its id.
 *
 * @param dueInSeconds when its first occurrence is due; after it the task follows its cron expression.
 */
export function insertTask(db: Database, team: Team, dueInSeconds: number): Promise<string> {
  return db.transaction(async (tx) => {
    const taskId = await insert(
      tx,
      `insert into public.agent_tasks
         (agent_id, name, instructions, cron_expression, timezone, next_run_at, selected_tools)
       values ($1, 'Morning briefing', 'Prepare the support team for the day.', $2, $3,
               agentd.now() + make_interval(secs => $4),
               '["current_time", "get-structured-content", "search_knowledge", "send_message"]')
       returning id`,
      [team.agentId, SCHEDULE.cron, SCHEDULE.timezone, dueInSeconds],
    );
    for (const [index, step] of STEPS.entries()) {
      await tx.query(
        `insert into public.task_steps (task_id, step_order, step_name, instructions, include_previous_context)
         values ($1, $2, $3, $4, $5)`,
        [taskId, index + 1, step.name, step.instructions, index > 0],
      );
    }
    return taskId;
  });
}

async function insert(tx: Queryable, text: string, values: readonly unknown[]): Promise<string> {
  const [row] = await tx.query<{ id: string }>(text, values);
  if (!row) throw new Error('An insert of the sample returned no row.');
  return row.id;
}
