import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { configDir } from '../src/config.ts';
import { STEPS } from '../src/demo/sample.ts';
import { startScriptedModel } from '../src/demo/scripted-model.ts';
import { DOCUMENT_LIMITS } from '../src/pipelines/ingest/document.ts';
import { extractPdf } from '../src/pipelines/ingest/extract/pdf.ts';

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

async function handbookPages(): Promise<string[]> {
  const bytes = await readFile(join(configDir, 'demo', 'handbook.pdf'));
  const { text, pageStarts } = await extractPdf(bytes, DOCUMENT_LIMITS, 'pdf-parse');
  return (pageStarts ?? []).map((start, i) => text.slice(start, pageStarts?.[i + 1]));
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
      /^tool get-structured-content \{"location":"Chicago"\}: done in /,
      /^tool search_knowledge \{"query":"when are refunds paid"\}: done in /,
      /^tool search_knowledge \{"query":"a late delivery"\}: done in /,
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

    expect(stdout).toMatch(/agentd has read it after .*: 4 pages, 4 passages of [\d,]+ tokens/);
    // what the server of tools really answers
    expect(stdout).toMatch(/agentd has listed it after .*: 13 tools, \d+ of them as strict functions/);
    expect(stdout).toMatch(
      /^ {2}Good morning, it is \d+:\d\d\. Chicago has 36 °C, light rain \/ drizzle\.$/m,
    );
    expect(table(stdout, 'knowledge_sources')[1]).toMatch(
      /^handbook.pdf {2}completed +4 +4 .* feature-hash-v1$/,
    );
    const stages = table(stdout, 'media_processing_logs').slice(1);
    expect(stages.map((line) => /^(\w+) +completed/.exec(line)?.[1])).toEqual([
      'upload',
      'text_extraction',
      'chunking',
      'embedding',
      'indexing',
    ]);

    expect(table(stdout, 'task_runs')[1]).toMatch(/^schedule {2}completed {2,}3 {2,}5 {2,}5 /);
    const steps = table(stdout, 'task_step_runs');
    expect(steps.slice(1).map((line) => /(Find out|Write|Post) +completed/.exec(line)?.[1])).toEqual([
      'Find out',
      'Write',
      'Post',
    ]);
    expect(table(stdout, 'llm_calls').filter((line) => / completed /.test(line))).toHaveLength(5);
    expect(table(stdout, 'tool_calls').filter((line) => / completed /.test(line))).toHaveLength(5);
    expect(table(stdout, 'agent_tasks')[1]).toMatch(
      / active .*Europe\/Berlin .* 1 +\d{4}-\d\d-\d\d \d\d:00:00Z$/,
    );

    // messages: what she posted; task_runs and tool_calls are the run's
    expect(table(stdout, 'workspace_usage')[1]).toMatch(/^\d{4}-\d\d +1 +1 +5 +[\d,]+ +\$0\.\d+ +\d{4}-/);

    expect(stdout, 'no colours without a terminal').not.toContain('\u001b');
    expect(await readdir(temporary)).toEqual([]);
  });

  it('has a model that knows nothing but what was found', async () => {
    const model = await startScriptedModel();
    const ask = async (found: readonly string[]): Promise<string> => {
      const calls = found.map((_, i) => ({
        id: `call_${i}`,
        type: 'function',
        function: { name: 'search_knowledge', arguments: `{"query":"fee of number ${i}"}` },
      }));
      const response = await fetch(`${model.baseUrl}/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', authorization: `Bearer ${model.apiKey}` },
        body: JSON.stringify({
          model: 'gpt-4o-mini',
          messages: [
            { role: 'user', content: STEPS[0].instructions },
            { role: 'assistant', content: '', tool_calls: calls },
            ...found.map((content, i) => ({ role: 'tool', tool_call_id: `call_${i}`, content })),
          ],
        }),
      });
      const answer = (await response.json()) as { choices: { message: { content: string } }[] };
      return answer.choices[0]?.message.content ?? '';
    };
    try {
      const other = '[other.pdf, page 12, Fees]\n# Fees\n\nNothing is free. The fee is 9 euros a month.';
      expect(await ask([other, 'Nothing was found.'])).toMatch(
        /\n- The fee is 9 euros a month\. \(other\.pdf, page 12\)\n- Nothing was found about: fee of number 1$/,
      );
    } finally {
      await model.stop();
    }
  });

  it('with --json prints one value and nothing else; with --keep its database stays, and it says where', async () => {
    const { code, stdout, stderr } = await demo(['--json', '--keep']);
    expect(code).toBe(0);
    const { status, rows } = JSON.parse(stdout) as {
      status: string;
      rows: {
        llm_calls: unknown[];
        chat_messages: { content: string }[];
        tool_calls: { tool_name: string; first_citation: unknown }[];
      };
    };
    expect(status).toBe('completed');
    expect(rows.llm_calls).toHaveLength(5);
    const [folder = ''] = await readdir(temporary);
    expect(stderr).toContain(`AGENTD_DATA_DIR=${join(temporary, folder)} `);
    expect(await readdir(join(temporary, folder))).toContain('postgres');
    await rm(join(temporary, folder), { recursive: true });

    // what the agent posts stands on the pages that it names, and the journal has them
    const quotes = [
      ...(rows.chat_messages[0]?.content ?? '').matchAll(/^- (.+) \(handbook\.pdf, page (\d)\)$/gm),
    ];
    expect(quotes.map(([, , page]) => page)).toEqual(['3', '2']);
    // read by the engine that the worker does not use
    const pages = await handbookPages();
    expect(pages).toHaveLength(4);
    for (const [, sentence = '', page] of quotes)
      expect(pages.map((text) => text.includes(sentence))).toEqual(
        [1, 2, 3, 4].map((n) => n === Number(page)),
      );
    expect(
      rows.tool_calls
        .filter((call) => call.tool_name === 'search_knowledge')
        .map((call) => call.first_citation),
    ).toEqual([
      { source: 'handbook.pdf', page: 3, heading: 'Refunds' },
      { source: 'handbook.pdf', page: 2, heading: 'Deliveries' },
    ]);
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
