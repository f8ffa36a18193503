/** Many rows in little time: what inserts through the triggers would leave, written without them. */
import type pg from 'pg';

/**
 * Queued runs of each task, as their inserts leave them while no daemon sleeps: the first 32 of a workspace are arrivals, the
 * others are parked. Needs a superuser. The workspaces' turns alternate, so that all have waited equally long.
 */
export async function fillQueuedRuns(pool: pg.Pool, perTask: number): Promise<void> {
  await withoutTriggers(
    pool,
    `insert into public.task_runs (workspace_id, task_id, agent_id, user_id, steps, settings, is_parked)
     select t.workspace_id, t.id, t.agent_id, t.user_id,
            (select jsonb_agg(jsonb_build_object('id', s.id, 'order', s.step_order, 'name', s.step_name,
                      'instructions', s.instructions, 'include_previous_context', s.include_previous_context,
                      'max_retries', s.max_retries, 'timeout_seconds', s.timeout_seconds, 'on_failure', s.on_failure)
                      order by s.step_order)
               from public.task_steps s where s.task_id = t.id),
            jsonb_build_object('task_name', t.name, 'instructions', t.instructions, 'selected_tools', t.selected_tools,
              'timeout_seconds', t.timeout_seconds, 'max_retries', t.max_retries, 'approval_policy', t.approval_policy,
              'target_conversation_id', t.target_conversation_id, 'target_channel_id', t.target_channel_id),
            n > 32
       from generate_series(1, $1::integer) n, public.agent_tasks t`,
    [perTask],
  );
}

/** Finished jobs of queue task-run that pg-boss has not deleted yet, an hour's worth. */
export async function fillFinishedJobs(pool: pg.Pool, count: number): Promise<void> {
  await withoutTriggers(
    pool,
    `insert into pgboss.job (name, data, singleton_key, state, policy, retry_limit, retry_delay, retry_backoff, retry_delay_max,
       expire_seconds, deletion_seconds, keep_until, dead_letter, created_on, started_on, completed_on)
     select q.name, jsonb_build_object('run_id', r.id, 'workspace_id', r.id), r.id::text, 'completed', q.policy,
            q.retry_limit, q.retry_delay, q.retry_backoff, q.retry_delay_max, q.expire_seconds, q.deletion_seconds,
            now() + make_interval(secs => q.retention_seconds), q.dead_letter, at, at, at
       from pgboss.queue q,
            (select gen_random_uuid() as id, now() - n * interval '2 milliseconds' as at
               from generate_series(1, $1::integer) n) r
      where q.name = 'task-run'`,
    [count],
  );
}

async function withoutTriggers(pool: pg.Pool, text: string, values: unknown[]): Promise<void> {
  const client = await pool.connect();
  try {
    await client.query('begin');
    await client.query('set local session_replication_role = replica');
    await client.query(text, values);
    await client.query('commit');
  } catch (error) {
    await client.query('rollback');
    throw error;
  } finally {
    client.release();
  }
}
