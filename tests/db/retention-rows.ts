/** Old rows for every rule of retention: how to make one of a workspace and an age, and what else it is about. */
import { randomUUID } from 'node:crypto';
import type { Queryable } from '../../src/db/database.ts';
import type { Platform } from '../support/platform.ts';

type Columns = Readonly<Record<string, unknown>>;

/** What a workspace has that rows hang on. */
export type Home = Platform & {
  readonly connectionId: string;
  readonly credentialId: string;
  readonly mediaId: string;
  readonly channelId: string;
  readonly conversationId: string;
};

const run = (home: Home): Columns => ({
  workspace_id: home.workspaceId,
  agent_id: home.agentId,
  steps: '[]',
  settings: '{}',
});
const key = (): string => randomUUID();

/** The columns of a row that a rule is about; the time is added. */
export const ruleRows: Readonly<
  Record<string, { readonly time: string; readonly row: (home: Home) => Columns }>
> = {
  task_runs: { time: 'finished_at', row: (home) => ({ ...run(home), status: 'completed' }) },
  call_bodies: { time: 'finished_at', row: (home) => ({ ...run(home), status: 'failed' }) },
  agent_logs: {
    time: 'timestamp',
    row: (home) => ({ workspace_id: home.workspaceId, agent_id: home.agentId }),
  },
  mcp_refresh_log: {
    time: 'created_at',
    row: (home) => ({ connection_id: home.connectionId, status: 'ok' }),
  },
  credential_refresh_log: {
    time: 'created_at',
    row: (home) => ({ credential_id: home.credentialId, outcome: 'refreshed' }),
  },
  media_processing_logs: {
    time: 'created_at',
    row: (home) => ({ media_id: home.mediaId, processing_step: 'chunking', status: 'completed' }),
  },
  audit_log: {
    time: 'at',
    row: (home) => ({ workspace_id: home.workspaceId, action: 'cancel', object_type: 'run' }),
  },
  usage_event_keys: {
    time: 'recorded_at',
    row: (home) => ({ workspace_id: home.workspaceId, idempotency_key: key() }),
  },
  usage_reservations: {
    time: 'created_at',
    row: (home) => ({
      workspace_id: home.workspaceId,
      metric: 'tokens',
      reservation_key: key(),
      month: '2020-01-01',
      quantity: 1,
    }),
  },
  usage_quarter_hours: {
    time: 'bucket',
    row: (home) => ({ workspace_id: home.workspaceId, metric: 'tokens', quantity: 1 }),
  },
  usage_drifts: {
    time: 'found_at',
    row: (home) => ({
      workspace_id: home.workspaceId,
      level: 'period',
      at: '2020-01-01',
      metric: 'tokens',
      expected: 1,
      found: 2,
      repaired_at: '2020-01-01',
    }),
  },
  integration_events: {
    time: 'received_at',
    row: (home) => ({ workspace_id: home.workspaceId, source: 's', event_type: 'e' }),
  },
  stale_chat_sessions: {
    time: 'started_at',
    row: (home) => ({ workspace_id: home.workspaceId, agent_id: home.agentId, status: 'active' }),
  },
  chat_sessions: {
    time: 'started_at',
    row: (home) => ({ workspace_id: home.workspaceId, agent_id: home.agentId, status: 'completed' }),
  },
  temporary_chat_messages: {
    time: 'created_at',
    row: (home) => ({
      workspace_id: home.workspaceId,
      channel_id: home.channelId,
      content: 'x',
      metadata: '{"temporary": true}',
    }),
  },
  temporary_agent_messages: {
    time: 'created_at',
    row: (home) => ({
      workspace_id: home.workspaceId,
      conversation_id: home.conversationId,
      user_id: home.userId,
      agent_id: home.agentId,
      role: 'user',
      content: 'x',
      metadata: '{"temporary": true}',
    }),
  },
  signup_failures: {
    time: 'created_at',
    row: () => ({ user_id: randomUUID(), error_code: 'x', error_message: 'y' }),
  },
  closed_workspaces: {
    time: 'closed_at',
    row: (home) => ({ workspace_id: home.workspaceId, owner_user_id: home.userId }),
  },
  maintenance_log: { time: 'started_at', row: () => ({ name: 'x', worker_id: 'w', outcome: 'completed' }) },
};

/** Inserts a row as it lies there after years: no trigger and no foreign key looks at it. */
export async function plant(
  db: { transaction<T>(work: (tx: Queryable) => Promise<T>): Promise<T> },
  table: string,
  rows: readonly Columns[],
): Promise<void> {
  await db.transaction(async (tx) => {
    await tx.query('set local session_replication_role = replica');
    for (const row of rows) {
      const names = Object.keys(row);
      await tx.query(
        `insert into ${table} (${names.map((name) => `"${name}"`).join(', ')}) values (${names.map((_, i) => `$${i + 1}`).join(', ')})`,
        Object.values(row),
      );
    }
  });
}
