/** What the demo puts into its database: a workspace, a little knowledge, an agent and a scheduled task. */
import type { Database, Queryable } from '../db/database.ts';

/** A step's place in the sample task, with what it asks for. The scripted model recognises steps by their instructions. */
export const STEPS = [
  {
    name: 'Find out',
    instructions: 'Look up the time in Berlin, and what the handbook says about late deliveries and refunds.',
  },
  {
    name: 'Write',
    instructions: 'Write a briefing of three short lines for the support team.',
  },
  {
    name: 'Post',
    instructions: 'Post the briefing to the channel support, then say in one sentence what you did.',
  },
] as const;

const HANDBOOK = [
  {
    heading: 'Refunds',
    content: 'Refunds are paid within 14 days. Above 200 euros a colleague has to approve the refund first.',
  },
  {
    heading: 'Late deliveries',
    content: 'When a delivery is more than 3 days late, the customer gets free shipping on the next order.',
  },
  {
    heading: 'Tone',
    content: 'Write short sentences. Say what happens next and when.',
  },
] as const;

export const MODEL = 'gpt-4o-mini';
export const CHANNEL = 'support';
export const SCHEDULE = { cron: '0 9 * * 1-5', timezone: 'Europe/Berlin' } as const;

export type Sample = {
  readonly workspaceId: string;
  readonly taskId: string;
  readonly channelId: string;
};

/**
 * Inserts the sample in one transaction, as an application would.
 *
 * @param dueInSeconds when the task's first occurrence is due; after it the task follows its cron expression.
 */
export function insertSample(db: Database, dueInSeconds: number): Promise<Sample> {
  return db.transaction(async (tx) => {
    const user = await insert(
      tx,
      `insert into auth.users (email) values ('ada@example.com') returning id`,
      [],
    );
    const workspaceId = await insert(
      tx,
      `insert into public.workspaces (name, owner_user_id) values ('Demo shop', $1) returning id`,
      [user],
    );
    const channelId = await insert(
      tx,
      'insert into public.chat_channels (workspace_id, name) values ($1, $2) returning id',
      [workspaceId, CHANNEL],
    );
    const agent = await insert(
      tx,
      `insert into public.agents (workspace_id, user_id, name, instructions, model, goals)
       values ($1, $2, 'Iris', 'You help the support team of a small web shop. Be brief.', $3,
               array['Nobody in support is surprised by a question'])
       returning id`,
      [workspaceId, user, MODEL],
    );
    const source = await insert(
      tx,
      `insert into public.knowledge_sources (workspace_id, agent_id, name, type, processing_status)
       values ($1, $2, 'Support handbook', 'TEXT', 'completed') returning id`,
      [workspaceId, agent],
    );
    for (const [index, chunk] of HANDBOOK.entries()) {
      await tx.query(
        `insert into public.knowledge_chunks (source_id, chunk_index, content, heading_path)
         values ($1, $2, $3, array[$4])`,
        [source, index, chunk.content, chunk.heading],
      );
    }
    const taskId = await insert(
      tx,
      `insert into public.agent_tasks
         (agent_id, name, instructions, cron_expression, timezone, next_run_at, selected_tools)
       values ($1, 'Morning briefing', 'Prepare the support team for the day.', $2, $3,
               agentd.now() + make_interval(secs => $4), '["current_time", "search_knowledge", "send_message"]')
       returning id`,
      [agent, SCHEDULE.cron, SCHEDULE.timezone, dueInSeconds],
    );
    for (const [index, step] of STEPS.entries()) {
      await tx.query(
        `insert into public.task_steps (task_id, step_order, step_name, instructions, include_previous_context)
         values ($1, $2, $3, $4, $5)`,
        [taskId, index + 1, step.name, step.instructions, index > 0],
      );
    }
    return { workspaceId, taskId, channelId };
  });
}

async function insert(tx: Queryable, text: string, values: readonly unknown[]): Promise<string> {
  const [row] = await tx.query<{ id: string }>(text, values);
  if (!row) throw new Error('An insert of the sample returned no row.');
  return row.id;
}
