/** The rows behind a run, printed as an application would select them. */
import { cost, count, cut, duration, orDash, statusStyle, time } from '../commands/format.ts';
import { type Column, type Output, oneLine } from '../commands/output.ts';
import type { Queryable } from '../db/database.ts';

type Row = Readonly<Record<string, unknown>>;
/** A table of the database and the statement that reads it: what is printed is what the reader can run. */
type Section = { readonly table: string; readonly sql: string; readonly columns: readonly Column<Row>[] };

const text = (name: string, width = 40): Column<Row> => ({
  title: name,
  value: (row) => cut(oneLine(orDash(row[name] === null ? null : String(row[name]))), width),
});
const number = (name: string, show: (value: number) => string = count): Column<Row> => ({
  title: name,
  align: 'right',
  value: (row) => (row[name] === null ? '–' : show(Number(row[name]))),
});
const json = (name: string, width: number): Column<Row> => ({
  title: name,
  value: (row) => cut(oneLine(row[name] === null ? '–' : JSON.stringify(row[name])), width),
});
const status: Column<Row> = {
  title: 'status',
  value: (row) => String(row.status),
  style: (row) => statusStyle(String(row.status)),
};

const SECTIONS: readonly Section[] = [
  {
    table: 'knowledge_sources',
    sql: `select k.name, k.processing_status as status, k.page_count, k.chunk_count, k.token_count, k.embedding_model
            from knowledge_sources k join task_runs r on r.workspace_id = k.workspace_id where r.id = $1`,
    columns: [
      text('name'),
      status,
      number('page_count'),
      number('chunk_count'),
      number('token_count'),
      text('embedding_model'),
    ],
  },
  {
    table: 'media_processing_logs',
    sql: `select l.processing_step as step, l.status, l.duration_ms, l.details
            from media_processing_logs l
            join knowledge_sources k on k.id = l.source_id
            join task_runs r on r.workspace_id = k.workspace_id
           where r.id = $1
           order by array_position(array['upload', 'text_extraction', 'chunking', 'embedding', 'indexing'], l.processing_step)`,
    columns: [text('step'), status, number('duration_ms', duration), json('details', 72)],
  },
  {
    table: 'mcp_tools_cache',
    sql: `select c.connection_name, t.tool_name, (t.openai_schema #>> '{function,strict}')::boolean as strict, t.openai_schema #> '{function,parameters,properties}' as parameters
            from mcp_tools_cache t
            join agent_mcp_connections c on c.id = t.connection_id
            join task_runs r on r.agent_id = c.agent_id
           where r.id = $1 order by t.tool_name limit 5`,
    columns: [text('connection_name'), text('tool_name'), text('strict'), json('parameters', 72)],
  },
  {
    table: 'task_runs',
    sql: `select trigger, status, current_step, turns, tool_calls, prompt_tokens, completion_tokens, cost_micros
            from task_runs where id = $1`,
    columns: [
      text('trigger'),
      status,
      number('current_step'),
      number('turns'),
      number('tool_calls'),
      number('prompt_tokens'),
      number('completion_tokens'),
      number('cost_micros', cost),
    ],
  },
  {
    table: 'task_step_runs',
    sql: `select step_order, step_name, status, attempt, duration_ms, result ->> 'text' as result
            from task_step_runs where run_id = $1 order by step_order`,
    columns: [
      number('step_order'),
      text('step_name'),
      status,
      number('attempt'),
      number('duration_ms', duration),
      text('result', 56),
    ],
  },
  {
    table: 'llm_calls',
    sql: `select step_order, turn, model, status, finish_reason, prompt_tokens, completion_tokens, cost_micros, latency_ms
            from llm_calls where run_id = $1 order by step_order, turn`,
    columns: [
      number('step_order'),
      number('turn'),
      text('model'),
      status,
      text('finish_reason'),
      number('prompt_tokens'),
      number('completion_tokens'),
      number('cost_micros', cost),
      number('latency_ms', duration),
    ],
  },
  {
    table: 'tool_calls',
    sql: `select step_order, tool_name, status, arguments, result ->> 'content' as result,
                 (result #> '{citations,0}') - 'chunk_id' as first_citation
            from tool_calls where run_id = $1 order by step_order, turn, call_index`,
    columns: [
      number('step_order'),
      text('tool_name'),
      status,
      json('arguments', 33),
      text('result', 25),
      json('first_citation', 66),
    ],
  },
  {
    table: 'chat_messages',
    sql: `select c.name as channel, a.name as sender, m.content
            from chat_messages m
            join chat_channels c on c.id = m.channel_id
            left join agents a on a.id = m.sender_agent_id
           where m.metadata ->> 'run_id' = $1::text order by m.created_at`,
    columns: [text('channel'), text('sender'), text('content', 90)],
  },
  {
    table: 'agent_tasks',
    sql: `select t.name, t.status, t.cron_expression, t.timezone, t.total_executions, t.next_run_at
            from agent_tasks t join task_runs r on r.task_id = t.id where r.id = $1`,
    columns: [
      text('name'),
      status,
      text('cron_expression'),
      text('timezone'),
      number('total_executions'),
      { title: 'next_run_at', value: (row) => time(row.next_run_at as Date | null) },
    ],
  },
  {
    table: 'workspace_usage',
    sql: `select to_char(u.month, 'YYYY-MM') as month, u.messages, u.task_runs, u.tool_calls, u.tokens_used, u.cost_micros, u.rolled_up_at
            from workspace_usage u join task_runs r on r.workspace_id = u.workspace_id where r.id = $1 order by u.month`,
    columns: [
      text('month'),
      number('messages'),
      number('task_runs'),
      number('tool_calls'),
      number('tokens_used'),
      number('cost_micros', cost),
      { title: 'rolled_up_at', value: (row) => time(row.rolled_up_at as Date | null) },
    ],
  },
];

/** The rows of a run by table, read in one snapshot of each table. */
export async function rowsOfRun(db: Queryable, runId: string): Promise<Record<string, readonly Row[]>> {
  const rows: Record<string, readonly Row[]> = {};
  for (const section of SECTIONS) rows[section.table] = await db.query<Row>(section.sql, [runId]);
  return rows;
}

/** Prints them as small tables, each under its name. */
export function printRows(output: Output, rows: Readonly<Record<string, readonly Row[]>>): void {
  for (const { table, columns } of SECTIONS) {
    output.line();
    output.line(output.paint('bold', table));
    output.table(rows[table] ?? [], columns, 'no rows');
  }
}
