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
  await pool.query('alter table public.task_runs disable trigger user');
  await go('bare', WO);
  await pool.query('alter table public.task_runs enable trigger user');
  await go('full', W);
  const src = async (f: string) => (await pool.query(`select pg_get_functiondef($1::regproc) d`, [f])).rows[0].d as string;
  const enq = await src('agentd.enqueue'), room = await src('agentd.workspace_room');
  const fns = ['agentd.enqueue(text,jsonb,text,uuid,timestamptz)','agentd.workspace_room(uuid)','agentd.admit_new_run(uuid,uuid,uuid,boolean,timestamptz)','agentd.prepare_run()','agentd.workspace_ceiling(uuid,text)'];
  await pool.query(fns.map(f=>`alter function ${f} reset search_path`).join(';'));
  await go('no SET search_path', W);
  await pool.query(fns.map(f=>`alter function ${f} set search_path = ''`).join(';'));
  await pool.query(`alter table pgboss.job_common disable trigger all`);
  await go('no foreign keys on pgboss.job', W);
  await pool.query(`alter table pgboss.job_common enable trigger all`);
  await pool.query(room.replace(/declare[\s\S]*end\n/, 'begin return 5; end\n'));
  await go('room constant', W);
  await pool.query(room);
  await pool.query(enq.replace(/declare[\s\S]*end\n/, 'begin return gen_random_uuid(); end\n'));
  await go('no job', W);
  await pool.query(enq);
  await go('steps and settings given', WO);
  await go('full', W);
  await pool.query('alter table public.task_runs disable trigger user');
  await go('bare', WO);
});
