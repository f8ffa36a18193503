/**
 * Insert: runs inserted per second by 16 clients, each in a transaction of its own, with everything that an insert triggers
 * (its steps and settings are copied; a job, where a daemon sleeps) and without. Admitting the others in batches is daemons' work.
 *
 * Without triggers the insert gives workspace, steps and settings itself. Foreign keys and indexes are there in both.
 * pgbench is the client, because one of JavaScript's takes a processor for itself and hides the difference.
 */
import { execFile } from 'node:child_process';
import { access, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type pg from 'pg';
import { withDatabase } from './support/database.ts';
import { createPlatform } from './support/platform.ts';
import type { Result } from './support/result.ts';
import { median, perSecond } from './support/stats.ts';

const CLIENTS = 16;
const SECONDS = Number(process.env.BENCH_SECONDS ?? 2);
/** Many short rounds: with a shared disk one round's commits may take five times another's, and only pairs compare. */
const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 7);
/** So many that no workspace's room is used up. */
const WORKSPACES = 6000;

const exec = promisify(execFile);

const WITH = `\\set n random(1, ${WORKSPACES})
insert into public.task_runs (task_id) select id from bench_task where n = :n;
`;
const WITHOUT = `\\set n random(1, ${WORKSPACES})
insert into public.task_runs (task_id, workspace_id, agent_id, user_id, steps, settings)
select id, workspace_id, agent_id, user_id, steps, settings from bench_task where n = :n;
`;

export async function bench(): Promise<Result> {
  const pgbench = await findPgbench();
  const folder = await mkdtemp(join(tmpdir(), 'agentd-bench-'));
  try {
    return await withDatabase('insert', { migrated: true }, async ({ url, pool }) => {
      await createPlatform(pool, { workspaces: WORKSPACES, steps: 3 });
      // what a run copies from its task, made once by the trigger and kept for the inserts without it
      await pool.query(`
        create table bench_task (n integer primary key, id uuid, workspace_id uuid, agent_id uuid, user_id uuid,
                                 steps jsonb, settings jsonb);
        insert into public.task_runs (task_id) select id from public.agent_tasks;
        insert into bench_task
        select row_number() over (), task_id, workspace_id, agent_id, user_id, steps, settings from public.task_runs`);
      const run = async (script: string): Promise<number> => {
        await reset(pool);
        const file = join(folder, 'script.sql');
        await writeFile(file, script);
        const args = [
          '-n',
          '-M',
          'prepared',
          '-c',
          `${CLIENTS}`,
          '-j',
          '2',
          '-T',
          `${SECONDS}`,
          '-f',
          file,
          url,
        ];
        const { stdout } = await exec(pgbench, args);
        return Number(/tps = ([\d.]+)/.exec(stdout)?.[1]);
      };
      const bare: number[] = [];
      const full: number[] = [];
      const jobs: number[] = [];
      const notifying: number[] = [];
      for (let round = 0; round < ROUNDS; round++) {
        await pool.query('alter table public.task_runs disable trigger user');
        bare.push(await run(WITHOUT));
        await pool.query('alter table public.task_runs enable trigger user');
        full.push(await run(WITH));
        jobs.push(await shareWithJob(pool));
        await pool.query(`insert into agentd.sleepers (queue, worker_id) values ('task-run', 'bench')`);
        notifying.push(await run(WITH));
        await pool.query('delete from agentd.sleepers');
      }
      const [without, withAll, notified] = [median(bare), median(full), median(notifying)];
      const ratio = median(full.map((rate, i) => rate / (bare[i] as number)));
      const ratioNotified = median(notifying.map((rate, i) => rate / (bare[i] as number)));
      return {
        bench: 'insert',
        lines: [
          {
            measured: `runs inserted, ${CLIENTS} clients`,
            agentd: perSecond(withAll),
            beside: `without triggers: ${perSecond(without)}`,
            goal: '≥ 0.4 ×',
            met: ratio >= 0.4,
            note: `${ratio.toFixed(2)} ×; ${Math.round(100 * median(jobs))} % of the runs got their job with the insert, ${WORKSPACES} workspaces, pgbench for ${SECONDS} s; median of ${ROUNDS} pairs`,
          },
          {
            measured: 'the same while a daemon sleeps',
            agentd: perSecond(notified),
            beside: null,
            goal: '–',
            met: null,
            note: `${ratioNotified.toFixed(2)} ×; the sleeper never wakes here, so that no insert finds it gone`,
          },
        ],
      };
    });
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** One ended run a task: a table known to be empty gets plans that scan it, which no table in use has. */
async function reset(pool: pg.Pool): Promise<void> {
  await pool.query(`
    truncate public.task_runs cascade;
    delete from pgboss.job;
    insert into public.task_runs (task_id, workspace_id, agent_id, user_id, steps, settings, status, finished_at)
    select id, workspace_id, agent_id, user_id, steps, settings, 'completed', now() from bench_task`);
  await pool.query('vacuum analyze public.task_runs, pgboss.job, bench_task');
  await pool.query('checkpoint');
}

/** Which part of the runs got its job with the insert; the others are admitted by a daemon that is awake, which is not in this figure. */
async function shareWithJob(pool: pg.Pool): Promise<number> {
  const { rows } = await pool.query<{ share: number }>(
    `select avg((job_id is not null)::integer)::double precision as share from public.task_runs where status = 'queued'`,
  );
  return rows[0]?.share ?? 0;
}

export async function findPgbench(): Promise<string> {
  const folders = [
    ...(process.env.PATH ?? '').split(':'),
    ...[18, 17, 16, 15].map((version) => `/usr/lib/postgresql/${version}/bin`),
  ];
  for (const folder of folders.filter(Boolean)) {
    const path = join(folder, 'pgbench');
    if (
      await access(path).then(
        () => true,
        () => false,
      )
    )
      return path;
  }
  throw new Error('pgbench is missing: install the package postgresql-contrib or postgresql-NN.');
}
