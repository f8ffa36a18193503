import type { DocumentSpec } from './document.ts';

/** Document AgentExpress: ready-made agents that users subscribe to and configure. */
export const agentexpress: DocumentSpec = {
  schema: 'agentexpress',
  title: 'AgentExpress',
  file: 'agentexpress.md',
  tables: {
    users: {
      from: 'auth.users',
      byHand: 'a row is in auth.users, profiles, roles and user_roles; a user sees himself alone',
      columns: {
        id: 'uuid',
        email: 'varchar',
        password: 'varchar',
        first_name: 'varchar',
        last_name: 'varchar',
        avatar_url: 'varchar',
        role: 'varchar',
        created_at: 'timestamp',
        updated_at: 'timestamp',
      },
    },
    agents: {
      from: 'agents',
      columns: {
        id: 'uuid',
        name: 'varchar',
        description: 'text',
        type: 'varchar',
        capabilities: 'jsonb',
        is_public: 'boolean',
        creator_id: { type: 'uuid', from: 'user_id' },
        created_at: 'timestamp',
        updated_at: 'timestamp',
      },
    },
    user_agents: {
      from: 'user_agents',
      columns: {
        id: 'uuid',
        user_id: 'uuid',
        agent_id: 'uuid',
        settings: 'jsonb',
        is_active: 'boolean',
        created_at: 'timestamp',
        updated_at: 'timestamp',
      },
    },
    agent_logs: {
      from: 'agent_logs',
      columns: {
        id: 'uuid',
        agent_id: 'uuid',
        user_id: 'uuid',
        timestamp: 'timestamp',
        input: 'text',
        output: 'text',
        metadata: 'jsonb',
      },
    },
    subscriptions: {
      from: 'workspace_subscriptions',
      columns: {
        id: 'uuid',
        user_id: 'uuid',
        plan_id: 'uuid',
        status: { type: 'varchar', asText: true, spellings: { cancelled: 'canceled' } },
        start_date: { type: 'timestamp', from: 'current_period_start' },
        end_date: 'timestamp',
        created_at: 'timestamp',
        updated_at: 'timestamp',
      },
    },
    plans: {
      from: 'pricing_plans',
      columns: {
        id: 'uuid',
        name: 'varchar',
        description: 'text',
        price: { type: 'decimal', from: 'price_monthly' },
        features: 'jsonb',
        created_at: 'timestamp',
        updated_at: 'timestamp',
      },
    },
    integrations: {
      from: 'integrations',
      columns: {
        id: 'uuid',
        user_agent_id: 'uuid',
        type: 'varchar',
        credentials: { type: 'jsonb', secret: true },
        settings: 'jsonb',
        created_at: 'timestamp',
        updated_at: 'timestamp',
      },
    },
  },
  enums: [],
  functions: [],
  exceptions: {
    'users.password':
      'read and written by service_role alone, and only where the users are agentd’s own table; with Supabase Auth it is null',
    'subscriptions.status':
      'one of the words of subscription_status; "cancelled" is understood and becomes "canceled"',
  },
};
