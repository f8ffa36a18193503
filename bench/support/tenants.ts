/**
 * Many tenants' rows in little time: 500 workspaces and a million rows in each table that grows, written without triggers, with
 * the indexes made afterwards. Ids of parents follow from their workspace's number, so that children find them without a join.
 */
import type pg from 'pg';

export const WORKSPACES = 500;

/** The id of a parent: of the n-th workspace, the k-th of its kind. SQL. */
const idOf = (kind: string, k: string | number): string => `md5('${kind}-' || w.n || '-' || ${k})::uuid`;

const at = `now() - i * interval '3 minutes' - w.n * interval '0.1 second'`;
const text = `'Words of no importance, as long as those that people write, number ' || i`;

/** What stands in a large table's row beside its workspace: columns and their expressions. i is its number within the workspace. */
const LARGE: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  chat_messages: {
    workspace_id: 'w.id',
    channel_id: idOf('channel', 'i % 10'),
    sender_user_id: 'w.owner',
    content: text,
    created_at: at,
  },
  agent_messages: {
    workspace_id: 'w.id',
    conversation_id: idOf('conversation', 'i % 40'),
    agent_id: idOf('agent', 'i % 4'),
    user_id: 'w.owner',
    role: `'user'`,
    content: text,
    created_at: at,
  },
  knowledge_sources: {
    id: idOf('source', 'i'),
    workspace_id: 'w.id',
    agent_id: idOf('agent', 'i % 4'),
    name: `'s' || i`,
    type: `'TEXT'`,
    processing_status: `'completed'`,
    created_at: at,
  },
  knowledge_chunks: {
    workspace_id: 'w.id',
    source_id: idOf('source', '(i / 20) * 20'),
    generation: '1',
    chunk_index: 'i % 20',
    content: text,
    created_at: at,
  },
  task_runs: {
    id: idOf('run', 'i'),
    workspace_id: 'w.id',
    task_id: idOf('task', 'i % 4'),
    agent_id: idOf('agent', 'i % 4'),
    user_id: 'w.owner',
    status: `'completed'`,
    steps: `'[]'`,
    settings: `'{}'`,
    created_at: at,
  },
  task_step_runs: {
    workspace_id: 'w.id',
    run_id: idOf('run', '(i / 5) * 5'),
    step_order: 'i % 5',
    step_name: `'s'`,
    created_at: at,
  },
  llm_calls: {
    workspace_id: 'w.id',
    run_id: idOf('run', '(i / 5) * 5'),
    step_order: 'i % 5',
    turn: '1',
    idempotency_key: `md5('llm-' || w.n || '-' || i)`,
    created_at: at,
  },
  tool_calls: {
    workspace_id: 'w.id',
    run_id: idOf('run', '(i / 5) * 5'),
    step_order: 'i % 5',
    turn: '1',
    call_index: '0',
    idempotency_key: `md5('tool-' || w.n || '-' || i)`,
    provider_call_id: `'c'`,
    tool_name: `'t'`,
    source: `'builtin'`,
    effect: `'read'`,
    created_at: at,
  },
  agent_logs: {
    workspace_id: 'w.id',
    agent_id: idOf('agent', 'i % 4'),
    user_id: 'w.owner',
    '"timestamp"': at,
    input: text,
  },
  chat_sessions: {
    id: idOf('session', 'i'),
    workspace_id: 'w.id',
    agent_id: idOf('agent', 'i % 4'),
    created_at: at,
  },
  leads: {
    workspace_id: 'w.id',
    agent_id: idOf('agent', 'i % 4'),
    session_id: idOf('session', 'i'),
    email: `'lead' || i || '@example.test'`,
    created_at: at,
  },
  usage_events: {
    workspace_id: 'w.id',
    metric: `'message'`,
    occurred_at: at,
    recorded_at: at,
  },
  media_library: {
    workspace_id: 'w.id',
    user_id: 'w.owner',
    file_name: `'f' || i || '.pdf'`,
    processing_status: `'completed'`,
    created_at: at,
  },
};

export const largeTables = Object.keys(LARGE);

/** Parents of a workspace: table, how many, columns. */
const PARENTS: readonly (readonly [string, number, Readonly<Record<string, string>>])[] = [
  ['agents', 4, { id: idOf('agent', 'i'), workspace_id: 'w.id', user_id: 'w.owner', name: `'a'` }],
  ['chat_channels', 10, { id: idOf('channel', 'i'), workspace_id: 'w.id', name: `'c'` }],
  [
    'conversations',
    40,
    {
      id: idOf('conversation', 'i'),
      workspace_id: 'w.id',
      agent_id: idOf('agent', 'i % 4'),
      user_id: 'w.owner',
    },
  ],
  [
    'agent_tasks',
    4,
    {
      id: idOf('task', 'i'),
      workspace_id: 'w.id',
      agent_id: idOf('agent', 'i'),
      user_id: 'w.owner',
      name: `'t'`,
    },
  ],
];

/**
 * Users with a workspace of their own, each a member of two others, and `rows` rows in every large table.
 * Needs a superuser.
 */
export async function fillTenants(pool: pg.Pool, rows: number): Promise<void> {
  await pool.query(
    `insert into auth.users (email) select 'tenant-' || n || '@bench.test' from generate_series(1, ${WORKSPACES}) n`,
  );
  await pool.query(
    `create table bench_tenants as
       select row_number() over (order by id)::integer as n, id, owner_user_id as owner from public.workspaces where is_personal`,
  );
  await pool.query(
    `insert into public.workspace_members (workspace_id, user_id, role)
     select o.id, w.owner, 'member' from bench_tenants w
       join bench_tenants o on o.n in (w.n % ${WORKSPACES} + 1, (w.n + 6) % ${WORKSPACES} + 1)`,
  );
  for (const [table, count, columns] of PARENTS) await fill(pool, table, count, columns);
  // Two at once, as many as there are processors in the machine that the table is of.
  const waiting = Object.entries(LARGE);
  const next = async (): Promise<void> => {
    for (let one = waiting.shift(); one; one = waiting.shift())
      await fill(pool, one[0], Math.ceil(rows / WORKSPACES), one[1]);
  };
  await Promise.all([next(), next()]);
}

/** Rows of all workspaces in turn, as they would have come. */
async function fill(
  pool: pg.Pool,
  table: string,
  perWorkspace: number,
  columns: Readonly<Record<string, string>>,
): Promise<void> {
  const client = await pool.connect();
  try {
    await client.query(
      `set session_replication_role = replica; set synchronous_commit = off; set maintenance_work_mem = '256MB'`,
    );
    const { rows: indexes } = await client.query<{ name: string; definition: string }>(
      `select i.indexrelid::regclass::text as name, pg_get_indexdef(i.indexrelid) as definition
         from pg_index i join pg_class c on c.oid = i.indrelid
        where i.indrelid = ('public.' || $1)::regclass and c.relkind = 'r'
          and not exists (select 1 from pg_constraint k where k.conindid = i.indexrelid)`,
      [table],
    );
    for (const { name } of indexes) await client.query(`drop index ${name}`);
    await client.query(
      `insert into public.${table} (${Object.keys(columns)})
       select ${Object.values(columns)}
         from generate_series(0, ${perWorkspace - 1}) i cross join bench_tenants w`,
    );
    for (const { definition } of indexes) await client.query(definition);
    // As autovacuum does it, which never looks at partitions that nobody has written to.
    const { rows: written } = await client.query<{ name: string }>(
      `select relid::regclass::text as name from pg_partition_tree($1::regclass) where isleaf and pg_relation_size(relid) > 0
       union all select $1::regclass::text where not exists (select from pg_partition_tree($1::regclass))`,
      [`public.${table}`],
    );
    for (const { name } of written) await client.query(`vacuum analyze ${name}`);
    await client.query('reset all');
  } finally {
    client.release();
  }
}
