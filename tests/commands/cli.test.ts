import { expect, test } from 'vitest';
import { agentd, json } from './support.ts';

const unreachable = { DATABASE_URL: 'postgres://someone:hunter2secret@127.0.0.1:1/nowhere' };

test('the help lists every command with an example and the exit codes', async () => {
  const { code, stdout } = await agentd(['--help']);
  expect(code).toBe(0);
  for (const command of ['start', 'migrate', 'doctor', 'status', 'runs', 'tasks']) {
    expect(stdout).toMatch(new RegExp(`^  ${command}\\b`, 'm'));
  }
  expect(stdout).toContain('Examples:');
  expect(stdout).toContain('Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.');
});

test('the help of a command names the options that hold for all commands', async () => {
  const { code, stdout } = await agentd(['runs', 'show', '--help']);
  expect(code).toBe(0);
  expect(stdout).toContain('--json');
});

test('an unknown command or option is wrong usage: exit code 2, on standard error, with a next step', async () => {
  for (const args of [
    ['nonsense'],
    ['status', '--nonsense'],
    ['runs', 'list', '--limit', '0'],
    ['runs', 'list', '--status', 'odd'],
  ]) {
    const { code, stdout, stderr } = await agentd(args);
    expect([args, code]).toEqual([args, 2]);
    expect(stdout).toBe('');
    expect(stderr).toMatch(/^agentd: .+\n.*--help/s);
  }
});

test('a wrong configuration is exit code 2 and names every variable that is wrong, before anything is done', async () => {
  const { code, stderr } = await agentd(['status'], {
    AGENTD_HTTP_PORT: 'many',
    AGENTD_QUEUES: 'nothing',
    DATABASE_URL: 'mysql://x',
  });
  expect(code).toBe(2);
  for (const name of ['AGENTD_HTTP_PORT', 'AGENTD_QUEUES', 'DATABASE_URL']) expect(stderr).toContain(name);
});

test('a database that does not answer is exit code 1, without a stack and without the password', async () => {
  const { code, stderr } = await agentd(['status'], unreachable);
  expect(code).toBe(1);
  expect(stderr).toContain('127.0.0.1:1');
  expect(stderr).toContain('Check DATABASE_URL');
  expect(stderr).not.toContain('hunter2secret');
  expect(stderr).not.toMatch(/^\s+at /m);
});

test('the stack is printed when the log level asks for it, and it too is without the password', async () => {
  const { stderr } = await agentd(['status'], { ...unreachable, AGENTD_LOG_LEVEL: 'debug' });
  expect(stderr).toMatch(/^\s+at /m);
  expect(stderr).not.toContain('hunter2secret');
});

test('with --json a failure is JSON as well, on standard error', async () => {
  const { code, stdout, stderr } = await agentd(['runs', 'list', '--json'], unreachable);
  expect(code).toBe(1);
  expect(stdout).toBe('');
  expect(JSON.parse(stderr)).toMatchObject({
    error: { message: expect.stringContaining('does not answer') },
  });
});

test('a command that only reads creates no embedded database', async () => {
  const { code, stderr } = await agentd(['status'], { AGENTD_EMBEDDED_PORT: '0' });
  expect(code).toBe(1);
  expect(stderr).toContain('There is no database yet');
});

test('status --watch into a pipe is refused without --json', async () => {
  const { code, stderr } = await agentd(['status', '--watch'], unreachable);
  expect(code).toBe(2);
  expect(stderr).toContain('--json');
});

test('tasks preview needs no database and shows what the clocks do', async () => {
  const { code, stdout } = await agentd([
    'tasks',
    'preview',
    '30 2 * * *',
    '--zone',
    'America/New_York',
    '--count',
    '400',
  ]);
  expect(code).toBe(0);
  expect(stdout).toContain('02:30 does not exist on this day (clocks go forward): runs at 03:00');
  expect(stdout).not.toContain('\u001b');
});

test('tasks preview --json gives instants that parse', async () => {
  const outcome = await agentd([
    'tasks',
    'preview',
    '0 9 * * 1-5',
    '--zone',
    'Europe/Berlin',
    '--count',
    '3',
    '--json',
  ]);
  const { occurrences, zone } = json<{ occurrences: { at: string }[]; zone: string }>(outcome);
  expect(zone).toBe('Europe/Berlin');
  expect(occurrences).toHaveLength(3);
  for (const { at } of occurrences) expect(Number.isNaN(Date.parse(at))).toBe(false);
});

test('a wrong expression or zone is wrong usage and says what is wrong', async () => {
  for (const args of [['61 * * * *'], ['* * * *'], ['0 9 * * *', '--zone', 'Mars/Olympus']]) {
    const { code, stderr } = await agentd(['tasks', 'preview', ...args]);
    expect([args, code]).toEqual([args, 2]);
    expect(stderr.length).toBeGreaterThan(20);
  }
});
