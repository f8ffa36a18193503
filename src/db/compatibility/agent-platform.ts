import { type DocumentSpec, NO_FOREIGN_AGENTS } from './document.ts';

/** Document Agent Platform: agents of single users, with text ids that the application makes. */
export const agentPlatform: DocumentSpec = {
  schema: 'agent_platform',
  title: 'Agent Platform',
  file: 'agent-platform.md',
  tables: {
    agents: {
      from: 'agents',
      where: NO_FOREIGN_AGENTS,
      columns: {
        id: { type: 'text', isKey: true },
        name: 'text',
        description: 'text',
        system_prompt: { type: 'text', from: 'instructions' },
        model: 'text',
        temperature: 'numeric',
        max_tokens: { type: 'integer', default: 'null' },
        created_at: 'timestamptz',
        updated_at: 'timestamptz',
        user_id: { type: 'text', refersTo: 'users' },
      },
    },
    agent_api_connections: {
      from: 'agent_api_connections',
      columns: {
        id: { type: 'text', isKey: true },
        agent_id: { type: 'text', refersTo: 'agents' },
        api_connection_id: { type: 'text', refersTo: 'api_connections' },
        created_at: 'timestamptz',
        updated_at: 'timestamptz',
      },
    },
    agent_messages: {
      from: 'agent_messages',
      columns: {
        id: { type: 'text', isKey: true },
        agent_id: { type: 'text', refersTo: 'agents' },
        user_id: { type: 'text', refersTo: 'users' },
        role: 'text',
        content: 'text',
        created_at: 'timestamptz',
        conversation_id: { type: 'text', refersTo: 'conversations' },
        metadata: 'jsonb',
      },
    },
    agent_feedback: {
      from: 'agent_feedback',
      columns: {
        id: { type: 'text', isKey: true },
        message_id: { type: 'text', refersTo: 'agent_messages' },
        user_id: { type: 'text', refersTo: 'users' },
        rating: 'integer',
        comment: 'text',
        created_at: 'timestamptz',
      },
    },
    api_connections: {
      from: 'api_connections',
      columns: {
        id: { type: 'text', isKey: true },
        name: 'text',
        service: 'text',
        api_key: { type: 'text', secret: true },
        user_id: { type: 'text', refersTo: 'users' },
        created_at: 'timestamptz',
        updated_at: 'timestamptz',
        metadata: 'jsonb',
      },
    },
  },
  enums: [],
  functions: [],
  exceptions: {
    users:
      'the document refers to a table of users and does not define it: ids of users are those of auth.users, as text',
    agents_user_id_idx: 'idx_agents_user_id, as document Agentopia names it, is this index',
    'cuid()': 'no function of PostgreSQL: an id that is left out is a uuid, as text',
  },
};
