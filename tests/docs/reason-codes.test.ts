import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';

const root = new URL('../..', import.meta.url).pathname;
const document = readFileSync(join(root, 'docs/sql-interface.md'), 'utf8');

/** Codes that never reach a row of a run: the caller's own abort, what retrying hides, and what keeps messages waiting for vectors. */
const NEVER_STORED = new Set(['aborted', 'bad_key', 'row_locked']);

function source(folder: string): string {
  return readdirSync(join(root, 'src', folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith('.ts'))
    .map((entry) => readFileSync(join(entry.parentPath, entry.name), 'utf8'))
    .join('\n');
}

function all(text: string, pattern: RegExp): string[] {
  return [...text.matchAll(pattern)].map((match) => match[1] ?? '');
}

/** The members of a union of string literals. */
function members(text: string, type: string): string[] {
  const body = new RegExp(`type ${type} =([^;]*);`).exec(text)?.[1] ?? '';
  return all(body, /'([a-z_]+)'/g);
}

/** Every code that the source can put into a row. */
function codesOfSource(): Set<string> {
  const pipelines = [source('pipelines/agent'), source('pipelines/ingest')].join('\n');
  const tools = source('pipelines/mcp');
  const rows = readFileSync(join(root, 'src/pipelines/mcp/tool-rows.ts'), 'utf8');
  const secrets = readFileSync(join(root, 'src/secrets.ts'), 'utf8');
  const schedule = source('schedule');
  const providers = source('providers');
  const tasks = ['0008_tasks', '0013_run_control']
    .map((name) => readFileSync(join(root, `src/db/migrations/${name}.ts`), 'utf8'))
    .join('\n');
  const events = readFileSync(join(root, 'src/db/migrations/event-firing.ts'), 'utf8');
  const housekeeping = readFileSync(join(root, 'src/db/migrations/0036_housekeeping.ts'), 'utf8');
  const listing = readFileSync(join(root, 'src/db/migrations/mcp-listing.ts'), 'utf8');
  const services = source('services');
  const codes = [
    ...all(pipelines, /\b(?:RunFailure|RunMustWait|StepFailure|ToolError)\(\s*'([a-z_]+)'/g),
    ...all(pipelines, /settledAs\(\s*'([a-z_]+)'/g),
    ...all(pipelines, /\bcode: '([a-z_]+)'/g),
    ...all(pipelines, /settle\('failed', [^\n]*, '([a-z_]+)'\)/g),
    ...members(providers, 'ProviderErrorCode'),
    ...members(providers, 'McpErrorCode').filter((code) => code !== 'cancelled'),
    ...members(secrets, 'SecretErrorCode').map((code) =>
      code.startsWith('vault_') ? code : `secret_${code}`,
    ),
    ...members(tools, 'QuarantineReason'),
    ...all(rows, /\bleft\(\s*'([a-z_]+)'/g),
    ...all(rows, /(?:return|first \?\?) \{\s*code: '([a-z_]+)'/g),
    ...all(listing, /'(changed|change_denied)'/g),
    ...members(schedule, 'ScheduleErrorCode'),
    ...all(schedule, /readonly reasonCode: ((?:'[a-z_]+'(?: \| )?)+);/g).flatMap((union) =>
      all(union, /'([a-z_]+)'/g),
    ),
    ...all(services, /\bcode: '([a-z_]+)'/g),
    ...all(services, /error\.code : '([a-z_]+)'/g),
    ...all(events, /v_code := '([a-z_]+)'/g),
    ...all(tasks, /new\.reason_code := '([a-z_]+)'/g),
    ...all(tasks, /then '(agent_[a-z]+)' else/g),
    ...all(tasks, /else '(agent_[a-z]+)' end/g),
    ...all(tasks, /reason_code = '([a-z_]+)'/g),
    ...all(tasks, /error_code\s+= case when p_approve then null else '([a-z_]+)'/g),
    ...all(housekeeping, /error_code = '([a-z_]+)'/g),
  ];
  return new Set(codes.filter((code) => !NEVER_STORED.has(code.replace(/^secret_/, ''))));
}

/** The codes in the first column of the tables under "Reason codes". */
function codesOfDocument(): Set<string> {
  const section = document.slice(document.indexOf('\n## Reason codes'));
  const firstCells = all(section, /^\| (`[^|]*`) \|/gm);
  return new Set(firstCells.flatMap((cell) => all(cell, /`([a-z_]+)`/g)));
}

describe('the reason codes of docs/sql-interface.md', () => {
  it('are those that the source can write, every one of them and no other', () => {
    const written = codesOfSource();
    expect(written.size).toBeGreaterThan(45);
    expect([...codesOfDocument()].sort()).toEqual([...written].sort());
  });
});
