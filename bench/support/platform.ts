/** A platform's rows: workspaces, each with an agent and a task. */
import type pg from 'pg';

export type PlatformShape = {
  readonly workspaces: number;
  /** Steps of each task; 0 leaves the task with its own instructions as its only step. */
  readonly steps: number;
};

/**
 * Inserts them and returns the tasks' ids. The statistics of what was filled are brought up to date, as autovacuum would.
 * Not those of empty tables: autovacuum leaves them alone too, and a table known to be empty gets plans that scan it.
 */
export async function createPlatform(pool: pg.Pool, shape: PlatformShape): Promise<string[]> {
  await pool.query(
    `insert into auth.users (email) select 'user-' || n || '@bench.test' from generate_series(1, $1::integer) n`,
    [shape.workspaces],
  );
  await pool.query(
    `insert into public.agents (workspace_id, user_id, name, model, instructions, goals)
     select id, owner_user_id, 'Analyst', 'gpt-4.1-mini', 'You are careful and brief.', '{Be right,Be brief}'
       from public.workspaces where is_personal`,
  );
  await pool.query(
    `insert into public.agent_tasks (workspace_id, user_id, agent_id, name, task_type, instructions)
     select workspace_id, user_id, id, 'Report', 'event_based', 'Write the weekly report from what you know.'
       from public.agents`,
  );
  await pool.query(
    `insert into public.task_steps (task_id, step_order, step_name, instructions, include_previous_context)
     select t.id, n, 'Step ' || n, 'Do part ' || n || ' of the work.', n > 1
       from public.agent_tasks t, generate_series(1, $1::integer) n`,
    [shape.steps],
  );
  await pool.query(
    'vacuum analyze auth.users, public.workspaces, public.agents, public.agent_tasks, public.task_steps',
  );
  const { rows } = await pool.query<{ id: string }>('select id from public.agent_tasks order by id');
  return rows.map((row) => row.id);
}
