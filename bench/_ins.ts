import { withDatabase } from './support/database.ts';
import { createPlatform } from './support/platform.ts';
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { writeFileSync } from 'node:fs';
const exec = promisify(execFile);
await withDatabase('insprof', { migrated: true }, async ({ url, pool }) => {
  await createPlatform(pool, { workspaces: 6000, steps: 3 });
  await pool.query(`create table bench_task (n integer primary key, id uuid, workspace_id uuid, agent_id uuid, user_id uuid, steps jsonb, settings jsonb)`);
  await pool.query(`insert into public.task_runs (task_id) select id from public.agent_tasks`);
  await pool.query(`insert into bench_task select row_number() over (), task_id, workspace_id, agent_id, user_id, steps, settings from public.task_runs`);
  const W = `\\set n random(1, 6000)\ninsert into public.task_runs (task_id) select id from bench_task where n = :n;\n`;
  const WO = `\\set n random(1, 6000)\ninsert into public.task_runs (task_id, workspace_id, agent_id, user_id, steps, settings)\nselect id, workspace_id, agent_id, user_id, steps, settings from bench_task where n = :n;\n`;
  async function one(script: string, sync: string) {
    await pool.query('truncate public.task_runs cascade'); await pool.query('delete from pgboss.job'); await pool.query('vacuum analyze pgboss.job_common');
    writeFileSync('/tmp/ins.sql', script);
    const { stdout } = await exec('/usr/lib/postgresql/15/bin/pgbench', ['-n','-M','prepared','-c','16','-j','2','-T','2','-f','/tmp/ins.sql',url], {encoding:'utf8', env: {...process.env, PGOPTIONS:`-c synchronous_commit=${sync}`}});
    return Math.round(Number(stdout.match(/tps = ([\d.]+)/)![1]));
  }
  async function go(label: string, script: string) {
    const off = [await one(script,'off'), await one(script,'off')], on = [await one(script,'on'), await one(script,'on')];
    console.log(label.padEnd(50), 'async', off.join(' '), ' sync', on.join(' '), ' µs/tx at async', Math.round(2e6/Math.max(...off)));
  }
  await pool.query('vacuum analyze');
  const bare = async () => {
    await pool.query('alter table public.task_runs disable trigger user');
    await go('bare', WO);
    await pool.query('alter table public.task_runs enable trigger user');
  };
  await bare();
  await go('full', W);
  const merged = (job: string) => `
create or replace function agentd.prepare_run() returns trigger language plpgsql security definer set search_path = '' as $$
declare
  v_task record; v_room integer; v_serial boolean;
begin
  select t.workspace_id, t.agent_id, t.user_id, t.instructions, t.selected_tools, t.timeout_seconds,
         t.max_retries, t.target_conversation_id, t.target_channel_id, t.overlap_policy, t.name,
         a.status as agent_status, a.is_active as agent_active
    into v_task
    from public.agent_tasks t join public.agents a on a.id = t.agent_id where t.id = new.task_id;
  if not found then raise exception 'no'; end if;
  new.workspace_id := coalesce(new.workspace_id, v_task.workspace_id);
  new.agent_id := coalesce(new.agent_id, v_task.agent_id);
  new.user_id := coalesce(new.user_id, v_task.user_id);
  new.is_serial := v_task.overlap_policy = 'queue' and new.trigger in ('schedule', 'catch_up');
  if new.steps is null then
    select jsonb_agg(jsonb_build_object('id', s.id, 'order', s.position, 'name', s.step_name, 'instructions', s.instructions,
             'include_previous_context', s.include_previous_context, 'max_retries', s.max_retries, 'timeout_seconds', s.timeout_seconds) order by s.position)
      into new.steps
      from (select *, row_number() over (order by step_order) as position from public.task_steps where task_id = new.task_id) s;
    if new.steps is null then new.steps := jsonb_build_array(jsonb_build_object('id', null, 'order', 1, 'name', v_task.name, 'instructions', '', 'include_previous_context', false)); end if;
  end if;
  if new.settings is null then
  new.settings := jsonb_build_object('task_name', v_task.name, 'instructions', v_task.instructions, 'selected_tools', v_task.selected_tools,
    'timeout_seconds', v_task.timeout_seconds, 'max_retries', v_task.max_retries, 'target_conversation_id', v_task.target_conversation_id, 'target_channel_id', v_task.target_channel_id);
  end if;
  if new.status = 'queued' and new.job_id is null and to_regclass('pgboss.job') is not null then
    -- one statement: paused?, ceiling + buffer, admitted
    select case when exists (select 1 from agentd.queue_controls c where c.queue = 'task-run' and c.workspace_id = new.workspace_id) then 0
           else coalesce((select (p.features #>> '{ceilings,task-run}')::integer from public.workspace_subscriptions s join public.pricing_plans p on p.id = s.plan_id
                 where s.workspace_id = new.workspace_id and s.status in ('trialing', 'active', 'past_due') and p.features #>> '{ceilings,task-run}' ~ '^[1-9][0-9]{0,5}$' limit 1), q.workspace_ceiling, 16) + coalesce(q.workspace_buffer, 4) end
      into v_room from agentd.queue_settings q where q.queue = 'task-run';
    select v_room - count(*) into v_room from (select 1 from public.task_runs r where r.workspace_id = new.workspace_id and r.status in ('queued', 'running') and r.job_id is not null limit v_room) x;
    if v_room > 0 then
      ${job}
      if exists (select 1 from agentd.sleepers s where s.queue = 'task-run') then
        SLEEP
      end if;
    end if;
  end if;
  return new;
end $$`;
  const insert = (table: string) => `insert into pgboss.${table} (name, data, singleton_key, start_after, policy, priority, retry_limit, retry_delay, retry_backoff, retry_delay_max, expire_seconds, deletion_seconds, keep_until, dead_letter, heartbeat_seconds)
      select q.name, jsonb_build_object('run_id', new.id, 'workspace_id', new.workspace_id), new.id::text, coalesce(new.wake_at, now()), q.policy, 0, q.retry_limit, q.retry_delay, q.retry_backoff, q.retry_delay_max,
             q.expire_seconds, q.deletion_seconds, coalesce(new.wake_at, now()) + make_interval(secs => q.retention_seconds), q.dead_letter, q.heartbeat_seconds
        from pgboss.queue q where q.name = 'task-run' on conflict do nothing returning id into new.job_id;`;
  const plain = `perform pg_notify('agentd_wake', 'task-run');`;
  await pool.query(merged(insert('job')).replace('SLEEP', plain));
  await go('merged', W);
  console.log((await pool.query(`select avg((job_id is not null)::int) from task_runs`)).rows[0]);
  await pool.query(merged(insert('job_common')).replace('SLEEP', plain));
  await go('merged, into job_common directly', W);
  await pool.query(merged('new.job_id := gen_random_uuid();').replace('SLEEP', plain));
  await go('merged, no job', W);
  await pool.query(`insert into agentd.sleepers (queue, worker_id) values ('task-run', 'bench')`);
  await pool.query(merged(insert('job')).replace('SLEEP', plain));
  await go('merged + sleeper, notify in each', W);
  for (const [l, s] of [['notify only if the sleeper row can be locked (skip locked) and delete it', `declare begin if exists (select 1 from agentd.sleepers s where s.queue = 'task-run' for update skip locked) then delete from agentd.sleepers where queue='task-run' ; perform pg_notify('agentd_wake','task-run'); end if; end;`]] as const) {
    await pool.query(merged(insert('job')).replace('SLEEP', s));
    await go('merged + sleeper once: ' + l, W);
  }
  await pool.query('delete from agentd.sleepers');
  await bare();
});
