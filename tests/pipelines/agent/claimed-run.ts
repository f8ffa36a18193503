/** A claimed run as the pipelines get it, with what a test wants to be different. */
import type { ClaimedAgent, ClaimedRun } from '../../../src/db/runs.ts';

export const agent: ClaimedAgent = {
  name: 'Ada',
  instructions: 'Answer briefly.',
  assistant_instructions: null,
  goals: [],
  capabilities: {},
  temperature: 0.7,
  max_tokens: 1000,
  context_window_size: 4000,
  persona: null,
  has_knowledge: false,
};

export function claimedRun(changes: Partial<ClaimedRun> = {}): ClaimedRun {
  return {
    id: '00000000-0000-4000-8000-000000000001',
    workspace_id: '00000000-0000-4000-8000-000000000002',
    task_id: null,
    agent_id: '00000000-0000-4000-8000-000000000003',
    user_id: null,
    lease_epoch: 1,
    journal_seq: 0,
    claims_without_progress: 1,
    trigger: 'manual',
    scheduled_for: null,
    steps: [
      {
        id: null,
        order: 1,
        name: 'only',
        instructions: 'Do it.',
        include_previous_context: false,
        max_retries: null,
        timeout_seconds: null,
      },
    ],
    settings: {
      task_name: 'Report',
      instructions: 'Write the report.',
      selected_tools: [],
      timeout_seconds: 900,
      max_retries: 0,
      target_conversation_id: null,
      target_channel_id: null,
    },
    input: {},
    turns: 0,
    tool_calls: 0,
    elapsed_ms: 0,
    agent,
    model: {
      id: null,
      provider: 'openai',
      model: 'gpt-4.1-mini',
      context_window: null,
      input_cost_per_1k: null,
      output_cost_per_1k: null,
    },
    credentials: { agent: [], workspace: [] },
    journal: { steps: [], llm: [], tools: [] },
    ...changes,
  };
}
