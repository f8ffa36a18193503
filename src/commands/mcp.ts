import type { Command } from 'commander';
import { sleep, systemClock } from '../clock.ts';
import type { Database } from '../db/database.ts';
import { idsByPrefix, isIdPrefix } from '../db/ids.ts';
import { requestRefresh } from '../db/mcp.ts';
import {
  type ConnectionReport,
  connectionReport,
  connectionReports,
  type RefreshReport,
  refreshReports,
  type ToolReport,
  toolReports,
} from '../db/operations-mcp.ts';
import type { CommandContext } from './context.ts';
import { CommandError, UsageError } from './errors.ts';
import { count, cut, duration, orDash, shortId, time } from './format.ts';
import { asOperator } from './operator.ts';
import { wholeNumber } from './options.ts';
import { type Output, oneLine, type Style } from './output.ts';
import { workspaceOf } from './workspace.ts';

type Json = { readonly json?: boolean };
const MOST_ROWS = 200;
const LOOKS = 5;
const LOOK_MS = 250;

/** `agentd mcp list|show|refresh`. */
export function register(program: Command, context: CommandContext): void {
  const mcp = program
    .command('mcp')
    .description('look at connections to MCP servers and the tools that they offer, and look anew');

  mcp
    .command('list')
    .description('list connections with their state, those that fail first')
    .option('--workspace <slug-or-id>', 'only this workspace')
    .action(async (options: { workspace?: string }, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const found = await context.withDatabase(async (db) => {
        const workspace = await workspaceOf(db, options.workspace);
        return connectionReports(db, { workspace, limit: output.json ? 100_000 : MOST_ROWS + 1 });
      });
      if (output.json) return output.data(found.map(shownConnection));
      printConnections(output, found.slice(0, MOST_ROWS));
      if (found.length > MOST_ROWS)
        output.line('… and more; --workspace shows those of one, --json all of them.');
    });

  mcp
    .command('show')
    .description('show a connection, its tools, those that are held back with the reason, and the last looks')
    .argument('<id>', 'the connection’s id, or its first six digits')
    .action(async (id: string, _options: object, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const found = await context.withDatabase(async (db) => {
        const connection = await connectionOf(db, id);
        return {
          connection,
          tools: await toolReports(db, connection.id),
          looks: await refreshReports(db, connection.id, LOOKS),
        };
      });
      if (output.json) return output.data({ ...found, connection: shownConnection(found.connection) });
      printConnection(output, found);
    });

  mcp
    .command('refresh')
    .description('look at the tools of a connection now instead of when it is due; a running worker does it')
    .argument('<id>', 'the connection’s id, or its first six digits')
    .option('--detach', 'return as soon as it is asked for')
    .option('--timeout <seconds>', 'how long to wait for it', wholeNumber(1, 3_600), 120)
    .action(async (id: string, options: { detach?: boolean; timeout: number }, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const look = await context.withDatabase(async (db) => {
        const { id: connection } = await connectionOf(db, id);
        const [before] = await refreshReports(db, connection, 1);
        if (!(await asOperator(db, (tx) => requestRefresh(tx, connection, 'asked')))) {
          throw new CommandError(
            'The connection is switched off.',
            'Set its is_active in agent_mcp_connections.',
          );
        }
        return options.detach ? null : await nextLook(db, connection, before, options.timeout);
      });
      if (output.json) return output.data(look ?? { asked: true });
      if (look === null) return output.line('Asked for. agentd mcp show tells what it gives.');
      output.line(lookInWords(look));
      if (look.error_message !== null) context.exitWith(1);
    });
}

async function connectionOf(db: Database, text: string): Promise<ConnectionReport> {
  if (!isIdPrefix(text)) {
    throw new UsageError(
      `'${text}' is not the id of a connection.`,
      'Give the id, or at least its first six digits, as agentd mcp list shows it.',
    );
  }
  const [id, another] = await idsByPrefix(db, 'connection', text);
  if (another !== undefined) {
    throw new UsageError(
      `Several connections begin with ${text}, such as ${id} and ${another}.`,
      'Give more digits.',
    );
  }
  const found = id === undefined ? null : await connectionReport(db, id);
  if (found === null) {
    throw new CommandError(`There is no connection with the id ${text}.`, 'agentd mcp list shows them.');
  }
  return found;
}

/** Waits for a look that is newer than the last one. */
async function nextLook(
  db: Database,
  connection: string,
  before: RefreshReport | undefined,
  timeoutSeconds: number,
): Promise<RefreshReport> {
  const until = systemClock.elapsed() + timeoutSeconds * 1000;
  for (;;) {
    const [last] = await refreshReports(db, connection, 1);
    if (last && last.created_at.getTime() !== before?.created_at.getTime()) return last;
    if (systemClock.elapsed() > until) {
      throw new CommandError(
        `Nobody has looked within ${timeoutSeconds} seconds.`,
        'See agentd status: is a worker of the queue mcp-refresh running?',
      );
    }
    await sleep(systemClock, LOOK_MS);
  }
}

/** Without what an address may carry beside the place: names, keys, queries. */
function shownUrl(url: string): string {
  if (!URL.canParse(url)) return cut(url.split(/[?#@]/)[0] ?? '', 60);
  const { protocol, host, pathname } = new URL(url);
  return host === '' ? `${protocol}${pathname}` : `${protocol}//${host}${pathname}`;
}

const shownConnection = (row: ConnectionReport): ConnectionReport => ({
  ...row,
  server_url: shownUrl(row.server_url),
});

const STYLES: Readonly<Record<ConnectionReport['state'], Style | null>> = {
  ok: 'green',
  new: null,
  waiting: 'cyan',
  working: 'cyan',
  failing: 'red',
  off: 'dim',
};

const toolsOf = (row: ConnectionReport): string =>
  row.tools_usable === null ? '–' : `${count(row.tools_usable)}/${count(row.tools_listed ?? 0)}`;

function printConnections(output: Output, rows: readonly ConnectionReport[]): void {
  output.table(
    rows,
    [
      { title: 'ID', value: (row) => shortId(row.id) },
      { title: 'WORKSPACE', value: (row) => cut(row.workspace, 20) },
      { title: 'AGENT', value: (row) => cut(row.agent, 20) },
      { title: 'CONNECTION', value: (row) => cut(row.name, 24) },
      { title: 'SERVER', value: (row) => cut(shownUrl(row.server_url), 40) },
      { title: 'STATE', value: (row) => row.state, style: (row) => STYLES[row.state] },
      { title: 'TOOLS', value: toolsOf, align: 'right' },
      {
        title: 'HELD BACK',
        value: (row) => count(row.quarantined),
        align: 'right',
        style: (row) => (row.quarantined > 0 ? 'yellow' : null),
      },
      { title: 'LOOKED', value: (row) => time(row.last_refreshed_at) },
      { title: 'REASON', value: (row) => orDash(row.reason_code) },
    ],
    'There are no connections to MCP servers.',
  );
}

function printConnection(
  output: Output,
  {
    connection,
    tools,
    looks,
  }: { connection: ConnectionReport; tools: readonly ToolReport[]; looks: readonly RefreshReport[] },
): void {
  const { name, agent, workspace, state } = connection;
  output.line(`${oneLine(`${name}, of ${agent} in ${workspace}`)}: ${output.paint(STYLES[state], state)}`);
  output.line(`  id         ${connection.id}`);
  output.line(`  server     ${oneLine(shownUrl(connection.server_url))}`);
  const info = connection.server_info;
  if (info)
    output.line(
      `  says       ${cut(oneLine(`${info.name} ${info.version}, ${info.protocolVersion}, ${info.transport}`), 120)}`,
    );
  output.line(`  signs in   ${connection.auth_type}`);
  output.line(`  changes    ${connection.change_policy}`);
  output.line(`  tools      ${toolsOf(connection)}`);
  output.line(`  next look  ${time(connection.next_refresh_at)}`);
  if (connection.reason_code !== null)
    output.line(`  reason     ${connection.reason_code}: ${cut(oneLine(connection.reason ?? ''), 400)}`);
  output.line();
  output.table(
    tools,
    [
      { title: 'TOOL', value: (row) => cut(row.tool_name || '(no name)', 40) },
      { title: 'FUNCTION', value: (row) => orDash(row.function_name) },
      { title: 'STRICT', value: (row) => (row.is_strict === null ? '–' : row.is_strict ? 'yes' : 'no') },
      {
        title: 'HELD BACK',
        value: (row) => (row.is_quarantined ? (row.reason_code ?? 'yes') : ''),
        style: () => 'yellow',
      },
      { title: 'WHY', value: (row) => cut(row.reason ?? '', 90) },
      { title: 'ID', value: (row) => (row.is_quarantined ? row.id : '') },
    ],
    'It offers no tools.',
  );
  if (looks.length === 0) return;
  output.line('\nThe last looks:');
  for (const look of looks) output.line(`  ${time(look.created_at)}  ${lookInWords(look)}`);
}

function lookInWords(look: RefreshReport): string {
  const took = `in ${duration(look.duration_ms)}`;
  if (look.error_message !== null) return `${look.status} ${took}: ${cut(oneLine(look.error_message), 300)}`;
  if (look.status === 'unchanged') return `nothing changed, ${took}`;
  return `${look.tools_added} added, ${look.tools_changed} changed, ${look.tools_removed} removed, ${took}`;
}
