/** Runs the command line as people do: a process of its own, with an environment of its own. */
import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Queryable } from '../../src/db/database.ts';

const cli = fileURLToPath(new URL('../../src/cli.ts', import.meta.url));

export type Outcome = { readonly code: number | null; readonly stdout: string; readonly stderr: string };

/** The process inherits nothing of the test's environment but the path and the cache of compiled code. */
export function agentd(
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [cli, ...args], {
      env: {
        PATH: process.env.PATH ?? '',
        NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE ?? '',
        AGENTD_DATA_DIR: join(tmpdir(), `agentd-none-${randomUUID()}`),
        ...env,
      },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    child.once('error', reject);
    child.once('close', (code) => resolve({ code, stdout, stderr }));
  });
}

/** The outcome's standard output as JSON. Throws, with everything that was printed, when it is none. */
export function json<T>(outcome: Outcome): T {
  try {
    return JSON.parse(outcome.stdout) as T;
  } catch {
    throw new Error(`Not JSON (exit ${outcome.code}):\n${outcome.stdout}\n${outcome.stderr}`);
  }
}

export type Tenant = { readonly workspace: string; readonly agent: string; readonly task: string };

/** A workspace with an agent and a task, and nothing scheduled. */
export async function insertTenant(db: Queryable, name: string, cron: string | null = null): Promise<Tenant> {
  const [user, workspace, agent, task] = [0, 1, 2, 3].map(() => randomUUID()) as [
    string,
    string,
    string,
    string,
  ];
  await db.query('insert into auth.users (id) values ($1)', [user]);
  await db.query(
    'insert into public.workspaces (id, name, slug, owner_user_id) values ($1::uuid, $2, $1::text, $3)',
    [workspace, name, user],
  );
  await db.query('insert into public.agents (id, workspace_id, user_id, name) values ($1, $2, $3, $4)', [
    agent,
    workspace,
    user,
    `${name} agent`,
  ]);
  await db.query(
    `insert into public.agent_tasks (id, workspace_id, user_id, agent_id, name, cron_expression, timezone)
     values ($1, $2, $3, $4, $5, $6, 'America/New_York')`,
    [task, workspace, user, agent, `${name} task`, cron],
  );
  return { workspace, agent, task };
}
