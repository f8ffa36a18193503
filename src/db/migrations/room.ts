/**
 * The waiting room's rule, as an SQL expression, since two functions need it and a function call for it would
 * be a tenth of an insert's cost: how many runs of a workspace may still be let into pg-boss. Its ceiling (its
 * plan's features -> ceilings -> task-run, else the default) and the buffer, less what is admitted and has not
 * ended; 0 or less while the workspace is paused.
 *
 * @param workspace an SQL expression for the workspace's id
 */
export function roomOf(workspace: string): string {
  return `(
    select case when exists (
             select 1 from agentd.queue_controls c
              where c.queue = 'task-run' and c.workspace_id = ${workspace}) then 0
           else l.admissible - (
             select count(*) from (
               select 1 from public.task_runs r
                where r.workspace_id = ${workspace} and r.status in ('queued', 'running') and r.job_id is not null
                limit l.admissible) admitted)
           end
      from (
        select coalesce(
                 (select (p.features #>> '{ceilings,task-run}')::integer
                    from public.workspace_subscriptions s
                    join public.pricing_plans p on p.id = s.plan_id
                   where s.workspace_id = ${workspace}
                     and s.status in ('trialing', 'active', 'past_due')
                     and p.features #>> '{ceilings,task-run}' ~ '^[1-9][0-9]{0,5}$'
                   limit 1),
                 q.workspace_ceiling, 16) + coalesce(q.workspace_buffer, 0) as admissible
          from (values (1)) as one (row)
          left join agentd.queue_settings q on q.queue = 'task-run'
        -- evaluated once, although it is used twice
        offset 0) l
  )`;
}
