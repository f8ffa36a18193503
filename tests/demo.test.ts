import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

const CLI = new URL('../src/cli.ts', import.meta.url).pathname;

/** Temporary folders of the children go here, so that what they leave behind can be seen. */
let temporary = '';
beforeAll(async () => {
  temporary = await mkdtemp(join(tmpdir(), 'agentd-demo-test-'));
});
afterAll(() => rm(temporary, { recursive: true, force: true }));

type Ended = { code: number | null; stdout: string; stderr: string };

/** Runs the command in a process without a terminal; `onOutput` sees everything that has come so far. */
async function demo(
  args: string[],
  onOutput: (stdout: string, kill: (signal: NodeJS.Signals) => void) => void = () => {},
  env: Record<string, string> = {},
): Promise<Ended> {
  const { PATH = '', HOME = '' } = process.env;
  const child = spawn(process.execPath, [CLI, 'demo', ...args], {
    cwd: temporary,
    env: { PATH, HOME, TMPDIR: temporary, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
    onOutput(stdout, (signal) => child.kill(signal));
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const [code] = (await once(child, 'close')) as [number | null];
  return { code, stdout, stderr };
}

/** The lines of a printed table, from its name to the empty line. */
function table(stdout: string, name: string): string[] {
  const lines = stdout.split('\n');
  const start = lines.indexOf(name);
  if (start < 0) return [];
  return lines.slice(start + 1, lines.indexOf('', start));
}

// Each starts a database and a worker in a process of its own, which takes long on a busy machine.
describe('agentd demo', { timeout: 150_000 }, () => {
  it('tells a scheduled run from due to completed, prints its rows, and leaves nothing behind', async () => {
    const { code, stdout, stderr } = await demo([]);
    expect(stderr).toBe('');
    expect(code).toBe(0);

    const told = stdout.split('\n').flatMap((line) => /^\s*\+\d+\.\d\ds\s+(.*)$/.exec(line)?.[1] ?? []);
    const story = [
      /^the task is due: run [0-9a-f]{8} is queued$/,
      /^picked up by worker /,
      /^step 1 of 3: Find out$/,
      /^gpt-4o-mini answered in .* tokens, \$0\.\d+, asks for tools$/,
      /^tool current_time \{"timezone":"Europe\/Berlin"\}: done in /,
      /^tool search_knowledge .*: done in /,
      /^gpt-4o-mini answered in .* tokens, \$0\.\d+$/,
      /^step completed$/,
      /^step 2 of 3: Write$/,
      /^gpt-4o-mini answered/,
      /^step completed$/,
      /^step 3 of 3: Post$/,
      /^gpt-4o-mini answered .* asks for tools$/,
      /^tool send_message .*: done in /,
      /^gpt-4o-mini answered/,
      /^step completed$/,
      /^run completed in .*, [\d,]+ tokens, \$0\.\d+$/,
    ];
    expect(told).toHaveLength(story.length);
    for (const [index, line] of story.entries()) expect(told[index]).toMatch(line);

    expect(table(stdout, 'task_runs')[1]).toMatch(/^schedule {2}completed {2,}3 {2,}5 {2,}3 /);
    const steps = table(stdout, 'task_step_runs');
    expect(steps.slice(1).map((line) => /(Find out|Write|Post) +completed/.exec(line)?.[1])).toEqual([
      'Find out',
      'Write',
      'Post',
    ]);
    expect(table(stdout, 'llm_calls').filter((line) => / completed /.test(line))).toHaveLength(5);
    expect(table(stdout, 'tool_calls').filter((line) => / completed /.test(line))).toHaveLength(3);
    // what the handbook says has come through the search, the steps and the tool into the channel
    expect(table(stdout, 'chat_messages')[1]).toMatch(/^support {2}Iris .*Refunds are paid within 14 days/);
    expect(table(stdout, 'agent_tasks')[1]).toMatch(
      / active .*Europe\/Berlin .* 1 +\d{4}-\d\d-\d\d \d\d:00:00Z$/,
    );

    expect(stdout, 'no colours without a terminal').not.toContain('\u001b');
    expect(await readdir(temporary)).toEqual([]);
  });

  it('with --json prints one value and nothing else; with --keep its database stays, and it says where', async () => {
    const { code, stdout, stderr } = await demo(['--json', '--keep']);
    expect(code).toBe(0);
    const value = JSON.parse(stdout) as { status: string; rows: Record<string, unknown[]> };
    expect(value.status).toBe('completed');
    expect(value.rows.llm_calls).toHaveLength(5);
    const [folder = ''] = await readdir(temporary);
    expect(stderr).toContain(`AGENTD_DATA_DIR=${join(temporary, folder)} `);
    expect(await readdir(join(temporary, folder))).toContain('postgres');
    await rm(join(temporary, folder), { recursive: true });
  });

  it('ends on an interrupt in the middle of the run, with nothing left behind', async () => {
    let sent = false;
    const { code, stdout, stderr } = await demo([], (text, kill) => {
      if (sent || !text.includes('step 1 of 3')) return;
      sent = true;
      kill('SIGINT');
    });
    expect(code).toBe(1);
    expect(stderr).toContain('Stopped.');
    expect(stdout).not.toContain('run completed');
    expect(await readdir(temporary)).toEqual([]);
  });

  it('exits with 1 and the reason when the model refuses the key', async () => {
    const { createServer } = await import('node:http');
    const server = createServer((_, response) => {
      response.writeHead(401, { 'content-type': 'application/json' });
      response.end('{"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}');
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as { port: number };
    const { code, stdout, stderr } = await demo([], undefined, {
      OPENAI_API_KEY: 'sk-refused',
      OPENAI_BASE_URL: `http://127.0.0.1:${port}/v1`,
    });
    server.close();
    expect(code).toBe(1);
    expect(stdout).toContain('its tokens are real and are paid for');
    expect(table(stdout, 'task_runs')[1]).toContain('failed');
    expect(stderr).toMatch(/The run failed: .*refused the API key/);
  });
});
