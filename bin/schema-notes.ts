// What docs/schema.md says of each table in words, for people who write applications. A table that has a comment in the database speaks
// for itself there: its `what` may be left empty here.

export type TableNote = {
  /** What a row is. */
  readonly what: string;
  /** What the worker, and the functions and triggers that belong to it, write; empty: nothing. */
  readonly worker: string;
  /** What an application writes; empty: nothing. */
  readonly application: string;
};

export type Domain = {
  readonly title: string;
  readonly about: string;
  readonly tables: Readonly<Record<string, TableNote>>;
};

const note = (what: string, worker: string, application: string): TableNote => ({
  what,
  worker,
  application,
});
/** A table that only applications write. */
const own = (what: string): TableNote => note(what, '', 'all');
/** A table that only the worker writes. */
const workers = (what: string, application = ''): TableNote => note(what, 'all', application);

/** Names without a schema are of schema public. */
export const domains: readonly Domain[] = [
  {
    title: 'Identity',
    about:
      'Who there is, and who may do what. People are rows of `auth.users`; every row of a tenant belongs to a workspace, and a member’s role in it decides what he may write.',
    tables: {
      workspaces: note(
        'A tenant: what people share, and what limits and usage are counted by.',
        'a personal one for each new user',
        'all others',
      ),
      workspace_members: note(
        'A person, an agent or a team in a workspace, and its role there.',
        'the owner’s own membership',
        'all others',
      ),
      user_roles: note(
        'What a person may do in a workspace: what row security reads.',
        'mirrors `workspace_members`',
        'roles that belong to no workspace',
      ),
      roles: own('Names of roles that belong to no workspace.'),
      profiles: note(
        'A person’s name and picture, and the workspace that he is looking at.',
        'an empty one for each new user',
        'the rest',
      ),
      user_preferences: own('A person’s language, theme and notifications.'),
      user_secrets: own('Secrets of a person, as references or ciphertext.'),
      teams: own('A group of agents and people within a workspace.'),
      team_members: own('An agent in a team.'),
      user_team_memberships: own('A person in a team.'),
      team_connections: own('An arrow between two teams: who reports to or works with whom.'),
      team_canvas_layouts: own('Where a person has put the teams on his canvas.'),
    },
  },
  {
    title: 'Models and credentials',
    about:
      'Which models there are and with whose keys they are called: the agent’s own, else the workspace’s, else the worker’s.',
    tables: {
      llm_models: own('A model that agents may use, with its provider and prices.'),
      workspace_llm_config: own('A workspace’s key and settings for a provider of models.'),
      api_connections: own('A key for an outside service, which agents may be given.'),
      agent_api_connections: own('An agent may use this key.'),
      service_providers: own('An outside service that people can connect their accounts with.'),
      integration_capabilities: own('What can be done with a service.'),
      user_integration_credentials: own(
        'A person’s connected account with a service: tokens by reference or as ciphertext, scopes, expiry.',
      ),
    },
  },
  {
    title: 'Agents',
    about: 'Agents, what they are told to be, and what they may reach.',
    tables: {
      agents: own('An agent: instructions, model, limits of its answers, which calls need approval.'),
      personas: own('A manner that agents can share: tone, rules, greetings.'),
      user_agents: own('A person uses somebody’s public agent.'),
      integrations: own('An outside service that a person has connected to an agent that he uses.'),
      agent_integration_permissions: own('An agent may use a person’s connected account, with these scopes.'),
      agent_discord_connections: own('An agent in a channel of Discord.'),
      channel_configs: own('A workspace’s settings for a channel such as e-mail or chat.'),
      agent_web_widget_config: own('How an agent looks on a website.'),
    },
  },
  {
    title: 'Knowledge',
    about:
      'What agents know: files and pages become sources, sources become passages, and runs search the passages.',
    tables: {
      datastores: own('A store of knowledge, here or at an outside service.'),
      agent_datastores: own('An agent may search a store.'),
      media_library: note(
        'A file.',
        'its processing status, its counts of passages and agents',
        'the file’s row; the rest',
      ),
      agent_media_assignments: own('An agent may search a file.'),
      media_processing_logs: workers('A step of the processing of a file: when, how it ended, why.'),
      knowledge_sources: note(
        'A text, page or file that is searched, with its state.',
        'status, reason, count of passages; one for each file',
        'the source; set it to `uploaded` to have it read again',
      ),
      knowledge_chunks: note(
        'A passage of a source, with its place in it.',
        'the passages of what it reads',
        'passages of your own, for sources that you read yourself',
      ),
    },
  },
  {
    title: 'Conversations',
    about:
      'What people and agents say to each other: in channels of a workspace, in conversations with one agent, and on websites.',
    tables: {
      chat_rooms: own('A room: a group of channels and those who are in it.'),
      chat_room_members: own('A person, an agent or a team in a room.'),
      chat_channels: note('A channel of a workspace.', 'when something was last said', 'the rest'),
      chat_messages: note('Something said in a channel.', 'what runs say', 'what people say'),
      conversations: note(
        'A person’s conversation with an agent.',
        'one for a key of a document that names none',
        'the rest',
      ),
      agent_messages: note('Something said in a conversation.', 'what runs say', 'what people say'),
      agent_feedback: own('What a person thought of an answer.'),
      chat_sessions: own('A visit on a website, with what was said.'),
      leads: own('Somebody who left his address.'),
      agent_logs: workers('What an agent did, in short, for people.'),
    },
  },
  {
    title: 'Tools',
    about: 'What agents can use beside their knowledge. MCP is the Model Context Protocol.',
    tables: {
      tool_catalog: own('A tool that can be set up.'),
      account_tool_environments: own('A person’s own environment of a tool.'),
      mcp_configurations: own('A set of MCP servers of an agent.'),
      mcp_servers: own('An MCP server: where it is, how long to wait for it, how often to try.'),
      agent_mcp_connections: note('An agent’s connection to an MCP server.', 'what became of it', 'the rest'),
      mcp_tools_cache: workers(
        'A tool that an MCP server offers, as its server describes it and as a model is given it.',
      ),
      mcp_refresh_log: workers('A look at what an MCP server offers, and what had changed.'),
      credential_refresh_log: workers('A refresh of a connected account’s tokens, or a look at a key.'),
    },
  },
  {
    title: 'Tasks and runs',
    about:
      'What agents are to do, and what they did. A run copies its steps when it is made; its journal is what the worker goes on from when another one has died.',
    tables: {
      agent_tasks: note(
        'A task: instructions, schedule or events, limits.',
        'when it runs next, counts, and `paused`, with its reason, when its schedule cannot be used or it fails too often',
        'the rest',
      ),
      task_steps: note('A step of a task.', 'how it went the last time', 'the step itself'),
      agent_task_event_triggers: note(
        'What starts a task of the type event_based.',
        'how often it has fired, and when and why it did not',
        'the trigger',
      ),
      integration_events: own('Something that happened outside: a webhook, an e-mail. It may start tasks.'),
      budgets: own('What a run, an agent, a task or a workspace may use.'),
      task_runs: note(
        'One run of a task, with its state, result and cost.',
        'all but the request',
        'the request: `run_task()`, or a row with a task; `cancel_run()`, `retry_run()`',
      ),
      task_step_runs: workers('A step of a run.'),
      llm_calls: workers('A call of a model, written down before it is made.'),
      tool_calls: workers(
        'A call of a tool, written down before it is made.',
        'the decision: `decide_tool_call()`',
      ),
    },
  },
  {
    title: 'Billing and usage',
    about: 'What workspaces have booked and what they have used.',
    tables: {
      pricing_plans: own('A plan: its price, limits and features.'),
      workspace_subscriptions: own('The plan that a workspace has booked, and who pays.'),
      billing_invoices: own('An invoice.'),
      usage_events: workers(
        'Something that was used: so many tokens, messages, conversations.',
        'usage of your own, through `agentd.record_usage`',
      ),
      usage_event_keys: workers('Keys of usage events: none is counted twice.'),
      usage_quarter_hours: workers('Usage by quarter of an hour (UTC).'),
      workspace_usage: workers('Usage by month, or by the period of a subscription, as the plan says.'),
      workspace_usage_counters: workers(
        'The counters against which limits are checked.',
        'conversations, through `increment_conversation_count()`, what is asked for, through `consume_usage()`',
      ),
      usage_warnings: workers('That 80 or 100 of a hundred of a limit are used, once a period.'),
    },
  },
  {
    title: 'Engine',
    about:
      'How rows become work. These are in the private schema `agentd`: the platform’s own roles read them, and nobody but the worker and its operators writes them.',
    tables: {
      'agentd.workers': workers('A worker process that lives or lived.'),
      'agentd.message_workspaces': workers(
        'Workspaces whose messages are embedded: how far that is, what it has cost, and why it waits.',
      ),
      'agentd.task_events': workers('What happened and has yet to be compared with triggers.'),
      'agentd.task_event_bursts': workers('How often events have started a task within the minute.'),
      'agentd.memory_outbox': workers(
        'Runs whose request and answer have yet to reach the memory of their agent, with the reason.',
      ),
      'agentd.message_queue': workers('Messages that are to be embedded, and those that can’t be.'),
      'agentd.sleepers': workers('A worker that sleeps until it is notified.'),
      'agentd.queue_settings': workers('How much of each queue a workspace may have at a time.'),
      'agentd.queue_controls': note(
        'A paused queue, or one workspace of it.',
        'the commands of operators',
        '',
      ),
      'agentd.job_runs': workers('An attempt of a job.'),
      'agentd.provider_states': workers(
        'How a provider’s token endpoint is: failures, blocked until when, alarm.',
      ),
      'agentd.rescued_tokens': workers('A token that came and could not be written into its row. Sealed.'),
      'agentd.vault_owners': workers('Whose a secret of the Vault is; without the secret.'),
      'agentd.rate_limits': workers('What providers of models have said of their limits.'),
      'agentd.rate_limit_lines': workers('Calls that wait for their turn under a limit.'),
      'agentd.vector_stores': workers(
        'A place outside this database that vectors are copied to: a datastore as it is, or as it was before it went.',
      ),
      'agentd.vector_outbox': workers(
        'A source whose vectors are to be sent to such a place, or deleted there.',
      ),
      'agentd.vector_copies': workers('A source whose vectors are there.'),
      'agentd.zep_graphs': workers('A graph of GetZep’s that was made for such a place and a workspace.'),
      'agentd.graph_episodes': workers('A passage in such a graph, by the id that GetZep gave it.'),
      'agentd.mcp_refreshes': workers(
        'A connection to an MCP server: when its tools are looked at next, and by whom now.',
      ),
      'agentd.mcp_removed_tools': workers('A tool that its server no longer offers.'),
      'agentd.budget_counters': workers('What a monthly budget has used and set aside.'),
      'agentd.budget_reservations': workers('What is set aside for a call under way.'),
      'agentd.usage_reservations': workers(''),
      'agentd.usage_rollup_state': workers('How far usage events are summed up.'),
      'agentd.usage_deltas': workers('Sums of new events on their way into the sums of their workspace.'),
      'agentd.usage_corrections': workers(''),
      'agentd.usage_by_second': workers(''),
      'agentd.usage_recuts': workers(''),
      'agentd.usage_period_locks': workers(''),
      'agentd.usage_drifts': workers(''),
      'agentd.conversation_calls': workers(''),
      'agentd.member_calls': workers(''),
      'agentd.workspace_plans': workers(''),
      'agentd.model_prices': workers(''),
      'agentd.dashboard_refreshes': workers(
        'When the figures of dashboards were computed, and how long it took.',
      ),
      'agentd.locks': workers(''),
      'agentd.workspace_doors': workers(''),
      'agentd.embedding_migrations': note('', 'all but the request', 'the commands of operators'),
      'agentd.audit_log': workers('What people and operators did: cancel, approve, retry, pause, redrive.'),
      'agentd.maintenance_tasks': workers(''),
      'agentd.maintenance_log': workers(''),
      'agentd.closed_workspaces': workers(''),
      'agentd.retention_overrides': note('', '–', 'all, as service_role'),
      'agentd.retired_partitions': workers(''),
      'agentd.stored_objects': workers(''),
      'agentd.signup_failures': workers(''),
      'agentd.platform_objects': note('', 'the migrations', ''),
    },
  },
];
