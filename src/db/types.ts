// Generated from the catalog by: npm run db:generate. Do not edit.
import type { ColumnType } from "kysely";

export type AccountToolInstallationStatusEnum = "active" | "deprovisioned" | "deprovisioning" | "error" | "pending" | "provisioning";

export type AgentStatus = "draft" | "live";

export type AppRole = "MANAGER" | "OWNER" | "VIEWER";

export type AssignmentType = "context" | "knowledge_base" | "reference" | "sop" | "training" | "training_data";

export type BusinessDomain = "finance" | "healthcare" | "hospitality" | "other" | "realestate" | "retail";

export type CallStatus = "completed" | "denied" | "failed" | "started" | "unknown" | "waiting";

export type ConnectionStatus = "active" | "error" | "expired" | "revoked";

export type CredentialType = "api_key" | "oauth";

export type DatastoreType = "getzep" | "pgvector" | "pinecone" | "postgres";

export type FallbackPolicy = "apologize" | "escalate" | "retry" | "transfer";

export type Generated<T> = T extends ColumnType<infer S, infer I, infer U>
  ? ColumnType<S, I | undefined, U>
  : ColumnType<T, T | undefined, T>;

export type Json = JsonValue;

export type JsonArray = JsonValue[];

export type JsonObject = {
  [x: string]: JsonValue | undefined;
};

export type JsonPrimitive = boolean | number | string | null;

export type JsonValue = JsonArray | JsonObject | JsonPrimitive;

export type KnowledgeType = "PDF" | "TEXT" | "URL";

export type MessageType = "event" | "file" | "system" | "text" | "tool_call" | "tool_result";

export type Numeric = ColumnType<string, number | string, number | string>;

export type PersonaTone = "casual" | "formal" | "friendly" | "professional";

export type ProcessingLogStatus = "completed" | "failed" | "skipped" | "started";

export type ProcessingStatus = "archived" | "completed" | "failed" | "processing" | "uploaded";

export type ProviderType = "api_key" | "oauth" | "smtp";

export type RunStatus = "cancelled" | "completed" | "failed" | "queued" | "running" | "skipped" | "waiting";

export type RunTrigger = "catch_up" | "event" | "manual" | "retry" | "schedule";

export type SubscriptionStatus = "active" | "canceled" | "past_due" | "paused" | "trialing" | "unpaid";

export type TaskStatus = "active" | "cancelled" | "completed" | "failed" | "paused";

export type TaskStepStatus = "completed" | "failed" | "pending" | "running" | "skipped";

export type TaskType = "event_based" | "scheduled";

export type TeamConnectionType = "collaborates_with" | "custom" | "reports_to" | "supports";

export type Timestamp = ColumnType<Date, Date | string, Date | string>;

export type WorkspaceMemberRole = "manager" | "member" | "owner" | "viewer";

export interface AccountToolEnvironments {
  created_at: Generated<Timestamp>;
  do_droplet_id: number | null;
  do_droplet_name: string | null;
  environment_name: Generated<string>;
  id: Generated<string>;
  image_slug: Generated<string>;
  region_slug: Generated<string>;
  size_slug: Generated<string>;
  status_on_toolbox: Generated<AccountToolInstallationStatusEnum>;
  updated_at: Generated<Timestamp>;
  user_id: string;
}

export interface AgentActivity {
  agent_id: string | null;
  average_duration_ms: number | null;
  cost_micros: number | null;
  day: Timestamp | null;
  refreshed_at: Timestamp | null;
  runs_completed: number | null;
  runs_failed: number | null;
  tokens: number | null;
  tool_calls: number | null;
  turns: number | null;
  workspace_id: string | null;
}

export interface AgentApiConnections {
  agent_id: string;
  api_connection_id: string;
  created_at: Generated<Timestamp>;
  external_id: string | null;
  id: Generated<string>;
  updated_at: Generated<Timestamp>;
}

export interface AgentdAgentActivity {
  agent_id: string | null;
  average_duration_ms: number | null;
  cost_micros: number | null;
  day: Timestamp | null;
  runs_completed: number | null;
  runs_failed: number | null;
  tokens: number | null;
  tool_calls: number | null;
  turns: number | null;
  workspace_id: string | null;
}

export interface AgentDatastores {
  agent_id: string;
  created_at: Generated<Timestamp>;
  datastore_id: string;
  id: Generated<string>;
  is_active: Generated<boolean>;
}

export interface AgentdAuditLog {
  action: string;
  actor: string | null;
  actor_role: Generated<string>;
  at: Generated<Timestamp>;
  details: Generated<Json>;
  id: Generated<number>;
  object_id: string | null;
  object_type: string;
  workspace_id: string | null;
}

export interface AgentdBudgetCounters {
  active_ms: Generated<number>;
  budget_id: string;
  cost_micros: Generated<number>;
  month: Timestamp;
  reserved_cost_micros: Generated<number>;
  reserved_tokens: Generated<number>;
  reserved_tool_calls: Generated<number>;
  reserved_turns: Generated<number>;
  tokens: Generated<number>;
  tool_calls: Generated<number>;
  turns: Generated<number>;
}

export interface AgentdBudgetReservations {
  budget_id: string;
  call_key: string;
  cost_micros: number;
  month: Timestamp;
  run_id: string;
  tokens: number;
  tool_calls: number;
  turns: number;
}

export interface AgentdClosedWorkspaces {
  closed_at: Generated<Timestamp>;
  counters: Generated<Json>;
  id: Generated<number>;
  invoices: Generated<Json>;
  owner_user_id: string;
  periods: Generated<Json>;
  subscriptions: Generated<Json>;
  workspace_id: string;
}

export interface AgentdConversationCalls {
  since: Timestamp;
  workspace_id: string;
}

export interface AgentdDashboardRefreshes {
  failures: Generated<number>;
  last_error: string | null;
  refreshed_at: Timestamp;
  started_at: Timestamp | null;
  took_ms: Generated<number>;
  view_name: string;
}

export interface AgentdEmbeddingMigrations {
  attempts: Generated<number>;
  chunks: number;
  cost_micros: Generated<number>;
  dimensions: number;
  done_chunks: Generated<number>;
  embedded_tokens: Generated<number>;
  /**
   * In millionths of a US dollar, when it was asked for; null: the model has no price in config/embeddings.json.
   */
  expected_cost_micros: number | null;
  failures: Generated<number>;
  finished_at: Timestamp | null;
  from_dimensions: number | null;
  from_model: string | null;
  id: Generated<string>;
  last_batch: string | null;
  lease_epoch: Generated<number>;
  lease_expires_at: Timestamp | null;
  model: string;
  pinned_dimensions: number | null;
  /**
   * What its documents are embedded with since its last move was complete; null: what the configuration says.
   */
  pinned_model: string | null;
  reason: string | null;
  reason_code: string | null;
  refused_chunks: Generated<number>;
  requested_at: Generated<Timestamp>;
  requested_by: string | null;
  retry_at: Timestamp | null;
  started_at: Timestamp | null;
  status: string;
  switched_at: Timestamp | null;
  tokens: number;
  worked_at: Timestamp | null;
  worker_id: string | null;
  workspace_id: string;
}

export interface AgentdFailingCredentials {
  connection_name: string | null;
  connection_status: ConnectionStatus | null;
  credential_id: string | null;
  needs_person: boolean | null;
  next_refresh_at: Timestamp | null;
  provider: string | null;
  reason: string | null;
  reason_code: string | null;
  refresh_failures: number | null;
  token_expires_at: Timestamp | null;
  user_id: string | null;
  workspace_id: string | null;
}

export interface AgentdGraphEpisodes {
  asked_at: Generated<Timestamp>;
  batch: string;
  chunk_index: number;
  episode_id: string | null;
  generation: number;
  is_refused: Generated<boolean>;
  part: number;
  source_id: string;
  store_id: string;
  workspace_id: string;
}

export interface AgentDiscordConnections {
  agent_id: string;
  channel_id: string | null;
  created_at: Generated<Timestamp>;
  discord_app_id: string | null;
  discord_public_key: string | null;
  guild_id: string;
  id: Generated<string>;
  inactivity_timeout_ms: Generated<number>;
  is_enabled: Generated<boolean>;
  updated_at: Generated<Timestamp>;
  worker_status: Generated<string>;
}

export interface AgentdJobRuns {
  attempt: number;
  duration_ms: number;
  error: Json | null;
  finished_at: Generated<Timestamp>;
  id: Generated<number>;
  job_id: string;
  outcome: string;
  queue: string;
  started_at: Generated<Timestamp>;
  worker_id: string;
  workspace_id: string | null;
}

export interface AgentdLateTasks {
  late_seconds: number | null;
  name: string | null;
  next_run_at: Timestamp | null;
  task_id: string | null;
  workspace_id: string | null;
}

export interface AgentdLocks {
  name: string;
}

export interface AgentdMaintenanceLog {
  batches: Generated<number>;
  busy_ms: Generated<number>;
  /**
   * What was given back, where it is known without counting: months and stored objects.
   */
  bytes: number | null;
  error: string | null;
  finished_at: Timestamp | null;
  /**
   * Rows that were due and somebody held: the next pass meets them again.
   */
  held: Generated<number>;
  id: Generated<number>;
  name: string;
  outcome: Generated<string>;
  rows: Generated<number>;
  started_at: Generated<Timestamp>;
  worker_id: string;
}

export interface AgentdMaintenanceTasks {
  due_at: Generated<Timestamp>;
  failures: Generated<number>;
  last_error: string | null;
  lease_epoch: Generated<number>;
  lease_expires_at: Timestamp | null;
  name: string;
  pass_id: number | null;
  place: Json | null;
  succeeded_at: Timestamp | null;
  worker_id: string | null;
}

export interface AgentdMcpRefreshes {
  due_at: Generated<Timestamp>;
  failures: Generated<number>;
  id: string;
  job_id: string | null;
  lease_epoch: Generated<number>;
  lease_expires_at: Timestamp | null;
  lost_claims: Generated<number>;
  seq: Generated<number>;
  started_at: Timestamp | null;
  wanted_at: Timestamp | null;
  why: string;
  worker_id: string | null;
  workspace_id: string;
}

export interface AgentdMcpRemovedTools {
  connection_id: string;
  pinned_hash: string;
  removed_at: Timestamp;
  tool_name: string;
}

export interface AgentdMemberCalls {
  called_at: Generated<Timestamp>;
  id: Generated<number>;
  looked_at: Generated<Timestamp>;
  row_key: string | null;
  workspace_id: string;
}

export interface AgentdMemoryOutbox {
  attempts: Generated<number>;
  created_at: Generated<Timestamp>;
  datastore_id: string;
  due_at: Generated<Timestamp>;
  reason: string | null;
  reason_code: string | null;
  run_id: string;
  workspace_id: string;
}

export interface AgentdMessageQueue {
  attempts: Generated<number>;
  failed_at: Timestamp | null;
  first_failed_at: Timestamp | null;
  kind: string;
  message_id: string;
  reason: string | null;
  reason_code: string | null;
  seq: Generated<number>;
  version: Generated<number>;
  workspace_id: string;
}

export interface AgentdMessageWorkspaces {
  batch_size: Generated<number>;
  cost_micros: Generated<number>;
  created_at: Generated<Timestamp>;
  failures: Generated<number>;
  id: string;
  is_wanted: Generated<boolean>;
  lease_epoch: Generated<number>;
  lease_expires_at: Timestamp | null;
  messages: Generated<number>;
  models: Generated<Json>;
  reason: string | null;
  reason_code: string | null;
  /**
   * Not before this moment. Null: at once; infinity: an operator has paused it.
   */
  retry_at: Timestamp | null;
  succeeded_at: Timestamp | null;
  tokens: Generated<number>;
  walk_after: string | null;
  walk_at: Timestamp | null;
  walk_container: string | null;
  /**
   * Null: every older message has been seen.
   */
  walk_kind: Generated<string | null>;
  walk_message: string | null;
  walk_since: Timestamp | null;
  walk_skipped: Generated<boolean>;
  worker_id: string | null;
}

export interface AgentdModelPrices {
  input_cost_per_1k: Numeric;
  model: string;
  output_cost_per_1k: Numeric;
  provider: string;
  valid_from: Timestamp;
}

export interface AgentdPlatformObjects {
  created_at: Generated<Timestamp>;
  kind: string;
  name: string;
}

export interface AgentdProviderAlarms {
  alarm_since: Timestamp | null;
  blocked_until: Timestamp | null;
  failures: number | null;
  is_misconfigured: boolean | null;
  provider: string | null;
  reason: string | null;
  reason_code: string | null;
  service_provider_id: string | null;
  updated_at: Timestamp | null;
}

export interface AgentdProviderStates {
  alarm_since: Timestamp | null;
  blocked_until: Timestamp | null;
  failures: Generated<number>;
  reason: string | null;
  reason_code: string | null;
  service_provider_id: string;
  updated_at: Generated<Timestamp>;
}

export interface AgentdQueueControls {
  id: Generated<number>;
  paused_at: Generated<Timestamp>;
  paused_by: string | null;
  queue: string;
  reason: string | null;
  workspace_id: string | null;
}

export interface AgentdQueueHealth {
  active: number | null;
  dead: number | null;
  delayed: number | null;
  oldest_ready_seconds: number | null;
  paused: boolean | null;
  queue: string | null;
  ready: number | null;
  waiting_room: number | null;
  workers: number | null;
}

export interface AgentdQueueSettings {
  queue: string;
  workspace_buffer: number;
  workspace_ceiling: number;
}

export interface AgentdRateLimitLines {
  key: string;
  last_at: Timestamp;
  waiting: number;
  workspace_id: string;
}

export interface AgentdRateLimits {
  blocked_until: Timestamp | null;
  /**
   * SHA-256 of base URL, API key and model.
   */
  key: string;
  requests_at: Timestamp | null;
  requests_limit: number | null;
  requests_per_second: number | null;
  said_at: Timestamp | null;
  said_given: number | null;
  said_left: number | null;
  tokens_at: Timestamp | null;
  tokens_factor: Generated<number>;
  tokens_given: Generated<number>;
  tokens_limit: number | null;
  tokens_per_second: number | null;
  updated_at: Generated<Timestamp>;
}

export interface AgentdRecentFailures {
  current_step: number | null;
  finished_at: Timestamp | null;
  reason: string | null;
  reason_code: string | null;
  run_id: string | null;
  task_id: string | null;
  task_name: string | null;
  workspace_id: string | null;
}

export interface AgentdRescuedTokens {
  access_token: string;
  created_at: Generated<Timestamp>;
  credential_id: string;
  expires_at: Timestamp | null;
  from_version: number;
  id: Generated<string>;
  refresh_token: string | null;
  workspace_id: string;
}

export interface AgentdRetentionOverrides {
  keep_days: number | null;
  rule: string;
  updated_at: Generated<Timestamp>;
  workspace_id: string;
}

export interface AgentdRetiredPartitions {
  parent: string;
  retired_before: Timestamp;
  updated_at: Generated<Timestamp>;
}

export interface AgentdSignupFailures {
  created_at: Generated<Timestamp>;
  error_code: string;
  error_message: string;
  id: Generated<number>;
  user_id: string;
}

export interface AgentdSleepers {
  queue: string;
  since: Generated<Timestamp>;
  worker_id: string;
}

export interface AgentdStoredObjects {
  bucket: string;
  created_at: Generated<Timestamp>;
  orphaned_at: Timestamp | null;
  path: string;
  /**
   * It could not be removed: when that is tried again.
   */
  retry_at: Timestamp | null;
}

export interface AgentdStuckWork {
  id: string | null;
  kind: string | null;
  problem: string | null;
  since: Timestamp | null;
  workspace_id: string | null;
}

export interface AgentdTaskEventBursts {
  minute: Timestamp;
  runs: number;
  task_id: string;
}

export interface AgentdTaskEvents {
  attempts: Generated<number>;
  data: Json | null;
  due_at: Generated<Timestamp>;
  id: Generated<number>;
  kind: string;
  occurred_at: Generated<Timestamp>;
  subject_id: string;
  trigger_id: string | null;
  workspace_id: string;
}

export interface AgentdUsageByAgent {
  agent_id: string | null;
  cost_micros: number | null;
  day: Timestamp | null;
  events: number | null;
  metric: string | null;
  quantity: number | null;
  workspace_id: string | null;
}

export interface AgentdUsageByModel {
  cached_tokens: Numeric | null;
  completion_tokens: Numeric | null;
  cost_micros: number | null;
  day: Timestamp | null;
  events: number | null;
  metric: string | null;
  model: string | null;
  prompt_tokens: Numeric | null;
  provider: string | null;
  quantity: number | null;
  workspace_id: string | null;
}

export interface AgentdUsageBySecond {
  workspace_id: string;
}

export interface AgentdUsageCorrections {
  booked_at: Timestamp;
  cost_micros: number;
  created_at: Generated<Timestamp>;
  events: number;
  id: Generated<number>;
  metric: string;
  occurred_at: Timestamp;
  quantity: number;
  workspace_id: string;
}

export interface AgentdUsageDeltas {
  at: Timestamp;
  cost_micros: number;
  events: number;
  id: Generated<number>;
  in_counter: boolean;
  metric: string;
  quantity: number;
  workspace_id: string;
}

export interface AgentdUsageDrifts {
  at: Timestamp;
  expected: Numeric;
  found: Numeric;
  found_at: Generated<Timestamp>;
  id: Generated<number>;
  level: string;
  metric: string;
  repaired_at: Timestamp | null;
  workspace_id: string;
}

export interface AgentdUsagePeriodLocks {
  changes: Generated<number>;
  workspace_id: string;
}

export interface AgentdUsageRecuts {
  id: Generated<number>;
  requested_at: Generated<Timestamp>;
  workspace_id: string;
}

export interface AgentdUsageReservations {
  created_at: Generated<Timestamp>;
  metric: string;
  month: Timestamp;
  quantity: number;
  reservation_key: string;
  workspace_id: string;
}

export interface AgentdUsageRollup {
  events_rolled: number | null;
  is_restored: boolean | null;
  last_duration_ms: number | null;
  last_run_at: Timestamp | null;
  open_drifts: number | null;
  seconds_since: Numeric | null;
  waiting_deltas: number | null;
  waiting_recuts: number | null;
  waiting_workspaces: number | null;
}

export interface AgentdUsageRollupState {
  events_rolled: Generated<number>;
  last_duration_ms: number | null;
  last_run_at: Timestamp | null;
  name: string;
  rebuilds: Generated<number>;
  server_id: number | null;
  snapshot: string;
}

export interface AgentdVaultOwners {
  created_at: Generated<Timestamp>;
  owner_id: Generated<string>;
  secret_id: string;
}

export interface AgentdVectorCopies {
  chunks: number;
  dimensions: number | null;
  generation: number;
  model: string | null;
  source_id: string;
  store_id: string;
  synced_at: Generated<Timestamp>;
  workspace_id: string;
}

export interface AgentdVectorOutbox {
  attempts: Generated<number>;
  claimed_at: Timestamp | null;
  created_at: Generated<Timestamp>;
  generation: number | null;
  op: string;
  reason: string | null;
  reason_code: string | null;
  removal_place: Json | null;
  request: Generated<number>;
  retry_at: Timestamp | null;
  sent_to: Generated<number>;
  source_id: string;
  store_id: string;
  turn_at: Generated<Timestamp>;
  workspace_id: string;
}

export interface AgentdVectorStores {
  attempts: Generated<number>;
  config: Json | null;
  created_at: Generated<Timestamp>;
  datastore_id: string;
  extra_vectors: Generated<number>;
  id: Generated<string>;
  kind: Generated<string>;
  lease_epoch: Generated<number>;
  leased_until: Timestamp | null;
  /**
   * That were in the ledger and not in the store, in the last comparison that found any.
   */
  missing_vectors: Generated<number>;
  /**
   * Why nothing is sent at present, and what to do about it.
   */
  reason: string | null;
  reason_code: string | null;
  reconcile_at: Generated<Timestamp>;
  reconcile_place: Json | null;
  reconciled_at: Timestamp | null;
  rest_until: Timestamp | null;
  retired_at: Timestamp | null;
  worked_at: Timestamp | null;
  worker_id: string | null;
  workspace_id: string;
}

export interface AgentdWorkerHealth {
  alive: boolean | null;
  hostname: string | null;
  id: string | null;
  last_seen_at: Timestamp | null;
  pid: number | null;
  queues: Json | null;
  running: number | null;
  silent_seconds: number | null;
  started_at: Timestamp | null;
  state: string | null;
  version: string | null;
}

export interface AgentdWorkers {
  hostname: string;
  id: string;
  last_seen_at: Generated<Timestamp>;
  pid: number;
  queues: Generated<Json>;
  running: Generated<number>;
  started_at: Generated<Timestamp>;
  state: Generated<string>;
  stopped_at: Timestamp | null;
  version: string;
}

export interface AgentdWorkspaceActivity {
  completed_last_hour: number | null;
  cost_micros_last_hour: Numeric | null;
  failed_last_hour: number | null;
  name: string | null;
  queued: number | null;
  running: number | null;
  tokens_last_hour: Numeric | null;
  waiting: number | null;
  waiting_room: number | null;
  workspace_id: string | null;
}

export interface AgentdWorkspaceDoors {
  workspace_id: string;
}

export interface AgentdWorkspaceOverview {
  active_tasks: number | null;
  agents: number | null;
  conversations: number | null;
  knowledge_chunks: number | null;
  knowledge_sources: number | null;
  live_agents: number | null;
  media: number | null;
  members: number | null;
  messages: number | null;
  runs_cancelled: number | null;
  runs_completed: number | null;
  runs_failed: number | null;
  runs_skipped: number | null;
  workspace_id: string | null;
}

export interface AgentdWorkspacePlans {
  changes_at: Timestamp | null;
  workspace_id: string;
}

export interface AgentdZepGraphs {
  created_at: Generated<Timestamp>;
  store_id: string;
  workspace_id: string;
}

export interface AgentFeedback {
  comment: string | null;
  created_at: Generated<Timestamp>;
  external_id: string | null;
  id: Generated<string>;
  message_id: string;
  /**
   * 1 is a thumb up, 0 a thumb down.
   */
  rating: number;
  user_id: string;
}

export interface AgentIntegrationPermissions {
  agent_id: string;
  allowed_scopes: Generated<Json>;
  connection_id: string;
  created_at: Generated<Timestamp>;
  id: Generated<string>;
  is_active: Generated<boolean>;
  permission_level: Generated<string>;
  updated_at: Generated<Timestamp>;
}

export interface AgentLogs {
  agent_id: string;
  id: Generated<string>;
  input: string | null;
  metadata: Generated<Json>;
  output: string | null;
  timestamp: Generated<Timestamp>;
  user_id: string | null;
  workspace_id: string;
}

export interface AgentMcpConnections {
  agent_id: string;
  /**
   * The header that carries auth_secret where auth_type is header.
   */
  auth_header: string | null;
  auth_secret: string | null;
  auth_type: Generated<string>;
  change_policy: Generated<string>;
  connection_name: string;
  created_at: Generated<Timestamp>;
  /**
   * Whose access token is sent where auth_type is oauth; of the same workspace.
   */
  credential_id: string | null;
  id: Generated<string>;
  is_active: Generated<boolean>;
  last_refreshed_at: Timestamp | null;
  /**
   * The server whose timeout, retries, backoff and priority are honoured; null means the defaults.
   */
  mcp_server_id: string | null;
  next_refresh_at: Timestamp | null;
  /**
   * Why the last look at its tools failed, and what to do about it. The tools seen before stay.
   */
  reason: string | null;
  reason_code: string | null;
  refresh_failures: Generated<number>;
  server_info: Json | null;
  server_url: string;
  tools_listed: number | null;
  tools_usable: number | null;
  updated_at: Generated<Timestamp>;
}

export interface AgentMediaAssignments {
  agent_id: string;
  assigned_by_user_id: string | null;
  assignment_type: Generated<AssignmentType>;
  created_at: Generated<Timestamp>;
  id: Generated<string>;
  media_id: string;
}

export interface AgentMessages {
  agent_id: string;
  content: string;
  conversation_id: string;
  created_at: Generated<Timestamp>;
  embedding: string | null;
  embedding_dimensions: number | null;
  /**
   * The model of an embedding that the worker wrote; null for one that an application wrote.
   */
  embedding_model: string | null;
  external_id: string | null;
  id: Generated<string>;
  metadata: Json | null;
  role: string;
  /**
   * The run that said it. No foreign key: a message outlives the retention of runs.
   */
  run_id: string | null;
  user_id: string;
  workspace_id: string;
}

export interface Agents {
  approval_policy: Generated<string>;
  assistant_instructions: string | null;
  avatar_url: string | null;
  capabilities: Generated<Json>;
  channels: Generated<string[]>;
  context_window_size: Generated<number>;
  created_at: Generated<Timestamp>;
  description: string | null;
  discord_bot_key: string | null;
  discord_bot_token_id: string | null;
  discord_channel: string | null;
  discord_user_id: string | null;
  domain: Generated<BusinessDomain>;
  external_id: string | null;
  /**
   * Models to use, in this order, while the agent's own is down: ids as in llm_models.model_id, or provider/id.
   */
  fallback_models: Generated<string[]>;
  goals: Generated<string[]>;
  id: Generated<string>;
  instructions: Generated<string | null>;
  is_active: Generated<boolean>;
  is_public: Generated<boolean>;
  llm_model_id: string | null;
  max_tokens: Generated<number | null>;
  /**
   * The model where llm_model_id is null.
   */
  model: Generated<string>;
  name: string;
  persona_id: string | null;
  secret_form: string | null;
  /**
   * A draft agent's scheduled and event tasks do not run; their runs are recorded as skipped.
   */
  status: Generated<AgentStatus>;
  temperature: Generated<Numeric>;
  type: Generated<string>;
  updated_at: Generated<Timestamp>;
  user_id: string;
  workspace_id: string;
}

export interface AgentTaskEventTriggers {
  conditions: Generated<Json>;
  config: Generated<Json>;
  cooldown_seconds: Generated<number>;
  created_at: Generated<Timestamp>;
  id: Generated<string>;
  is_active: Generated<boolean>;
  last_suppressed_at: Timestamp | null;
  last_suppressed_code: string | null;
  last_suppressed_reason: string | null;
  last_triggered_at: Timestamp | null;
  name: string | null;
  /**
   * Events that met the conditions and started nothing: cooldown, dates, depth or burst. The last one with its reason.
   */
  suppressed_count: Generated<number>;
  task_id: string;
  trigger_count: Generated<number>;
  trigger_type: string;
  updated_at: Generated<Timestamp>;
  workspace_id: string;
}

export interface AgentTasks {
  agent_id: string;
  approval_policy: Generated<string>;
  created_at: Generated<Timestamp>;
  cron_expression: string | null;
  description: string | null;
  end_date: Timestamp | null;
  failures_since: Timestamp | null;
  id: Generated<string>;
  instructions: Generated<string>;
  is_multi_step: Generated<boolean>;
  last_run_at: Timestamp | null;
  max_executions: number | null;
  max_retries: Generated<number>;
  misfire_policy: Generated<string>;
  name: string;
  next_run_at: Timestamp | null;
  overlap_policy: Generated<string>;
  pause_after_failures: Generated<number | null>;
  reason: string | null;
  reason_code: string | null;
  selected_tools: Generated<Json>;
  start_date: Timestamp | null;
  status: Generated<TaskStatus>;
  step_count: Generated<number>;
  target_channel_id: string | null;
  /**
   * Where answers are written. A conversation that does not exist is made; the id of a chat channel of the workspace means that channel.
   */
  target_conversation_id: string | null;
  task_type: Generated<TaskType>;
  timeout_seconds: Generated<number>;
  timezone: Generated<string>;
  total_executions: Generated<number>;
  updated_at: Generated<Timestamp>;
  user_id: string;
  workspace_id: string;
}

export interface AgentWebWidgetConfig {
  agent_id: string;
  allowed_domains: Generated<string[]>;
  created_at: Generated<Timestamp>;
  id: Generated<string>;
  position: Generated<string>;
  primary_color: string | null;
  updated_at: Generated<Timestamp>;
  welcome_message: string | null;
}

export interface ApiConnections {
  api_key: string;
  created_at: Generated<Timestamp>;
  external_id: string | null;
  id: Generated<string>;
  metadata: Json | null;
  name: string;
  secret_form: string | null;
  service: string;
  updated_at: Generated<Timestamp>;
  user_id: string;
  workspace_id: string;
}

export interface AuthUsers {
  created_at: Generated<Timestamp>;
  email: string | null;
  encrypted_password: string | null;
  id: Generated<string>;
  raw_app_meta_data: Generated<Json>;
  raw_user_meta_data: Generated<Json>;
  updated_at: Generated<Timestamp>;
}

export interface BillingInvoices {
  amount: Numeric;
  created_at: Generated<Timestamp>;
  currency: Generated<string>;
  id: Generated<string>;
  invoice_url: string | null;
  /**
   * paid, pending or failed.
   */
  status: string;
  stripe_invoice_id: string | null;
  workspace_id: string;
}

export interface Budgets {
  agent_id: string | null;
  created_at: Generated<Timestamp>;
  id: Generated<string>;
  is_active: Generated<boolean>;
  max_cost_micros: number | null;
  max_seconds: number | null;
  max_tokens: number | null;
  max_tool_calls: number | null;
  max_turns: number | null;
  period: Generated<string>;
  task_id: string | null;
  updated_at: Generated<Timestamp>;
  when_exhausted: Generated<string>;
  workspace_id: string;
}

export interface ChannelConfigs {
  agent_id: string;
  channel: string;
  config: Generated<Json>;
  created_at: Generated<Timestamp>;
  enabled: Generated<boolean>;
  id: Generated<string>;
  updated_at: Generated<Timestamp>;
  workspace_id: string;
}

export interface ChatChannels {
  created_at: Generated<Timestamp>;
  created_by_user_id: string | null;
  description: string | null;
  id: Generated<string>;
  is_public: Generated<boolean>;
  last_message_at: Timestamp | null;
  name: string;
  room_id: string | null;
  topic: string | null;
  workspace_id: string;
}

export interface ChatMessages {
  channel_id: string;
  content: string;
  created_at: Generated<Timestamp>;
  embedding: string | null;
  embedding_dimensions: number | null;
  /**
   * The model of an embedding that the worker wrote; null for one that an application wrote.
   */
  embedding_model: string | null;
  id: Generated<string>;
  message_type: Generated<MessageType>;
  metadata: Generated<Json>;
  /**
   * The run that said it. No foreign key: a message outlives the retention of runs.
   */
  run_id: string | null;
  sender_agent_id: string | null;
  sender_user_id: string | null;
  workspace_id: string;
}

export interface ChatRoomMembers {
  added_at: Generated<Timestamp>;
  agent_id: string | null;
  id: Generated<string>;
  member_id: Generated<string | null>;
  member_type: Generated<string | null>;
  room_id: string;
  team_id: string | null;
  user_id: string | null;
  workspace_id: string;
}

export interface ChatRooms {
  created_at: Generated<Timestamp>;
  id: Generated<string>;
  name: string;
  owner_user_id: string;
  workspace_id: string;
}

export interface ChatSessions {
  agent_id: string;
  channel: Generated<string>;
  created_at: Generated<Timestamp>;
  ended_at: Timestamp | null;
  id: Generated<string>;
  internal_notes: string | null;
  messages: Generated<Json>;
  started_at: Generated<Timestamp>;
  /**
   * active, completed or escalated.
   */
  status: Generated<string>;
  workspace_id: string;
}

export interface Conversations {
  agent_id: string | null;
  created_at: Generated<Timestamp>;
  external_id: string | null;
  id: Generated<string>;
  title: string | null;
  updated_at: Generated<Timestamp>;
  user_id: string | null;
  workspace_id: string;
}

export interface CredentialRefreshLog {
  attempt: Generated<number>;
  created_at: Generated<Timestamp>;
  credential_id: string;
  duration_ms: number | null;
  error_message: string | null;
  http_status: number | null;
  id: Generated<string>;
  job_id: string | null;
  new_expires_at: Timestamp | null;
  old_expires_at: Timestamp | null;
  outcome: string;
}

export interface Datastores {
  config: Generated<Json>;
  created_at: Generated<Timestamp>;
  description: string | null;
  id: Generated<string>;
  max_results: Generated<number>;
  name: string;
  similarity_metric: Generated<string>;
  similarity_threshold: Generated<number>;
  type: DatastoreType;
  updated_at: Generated<Timestamp>;
  user_id: string;
  workspace_id: string;
}

export interface IntegrationCapabilities {
  capability_key: string;
  created_at: Generated<Timestamp>;
  display_label: string;
  display_order: Generated<number>;
  id: Generated<string>;
  integration_id: string;
  updated_at: Generated<Timestamp>;
}

export interface IntegrationEvents {
  agent_id: string | null;
  event_type: string;
  external_id: string | null;
  id: Generated<string>;
  payload: Generated<Json>;
  received_at: Generated<Timestamp>;
  source: string;
  workspace_id: string;
}

export interface Integrations {
  created_at: Generated<Timestamp>;
  credential_id: string | null;
  credentials: Generated<Json>;
  id: Generated<string>;
  settings: Generated<Json>;
  type: string;
  updated_at: Generated<Timestamp>;
  user_agent_id: string;
}

export interface KnowledgeChunks {
  char_end: number | null;
  char_start: number | null;
  chunk_index: number;
  content: string;
  content_sha256: string | null;
  /**
   * Configuration "simple": the language of a text is not known, and stemming in the wrong one loses matches.
   */
  content_tsv: Generated<string | null>;
  created_at: Generated<Timestamp>;
  /**
   * What stands before content when it is embedded: its headings, and the header row of its table.
   */
  embed_prefix: string | null;
  embedding: string | null;
  /**
   * The sign of each dimension of the embedding, by which a search sorts out what it need not compare.
   */
  embedding_bits: Generated<string | null>;
  embedding_key: Buffer | null;
  embedding_model: string | null;
  generation: number;
  heading_path: Generated<string[]>;
  id: Generated<string>;
  metadata: Generated<Json>;
  page: number | null;
  source_id: string;
  token_count: number | null;
  workspace_id: string;
}

export interface KnowledgeSources {
  agent_id: string | null;
  attempts: Generated<number>;
  character_count: number | null;
  chunk_count: Generated<number>;
  content: string | null;
  content_sha256: string | null;
  /**
   * What its embeddings have cost, in millionths of a US dollar.
   */
  cost_micros: Generated<number>;
  created_at: Generated<Timestamp>;
  datastore_id: string | null;
  embedded_tokens: Generated<number>;
  embedding_dimensions: number | null;
  embedding_model: string | null;
  etag: string | null;
  /**
   * The generation of chunks that is searched. A new one is written beside it and takes its place in one update.
   */
  generation: Generated<number>;
  id: Generated<string>;
  is_automatic: Generated<boolean>;
  job_id: string | null;
  last_ingested_at: Timestamp | null;
  last_modified: string | null;
  lease_epoch: Generated<number>;
  lease_expires_at: Timestamp | null;
  lost_claims: Generated<number>;
  media_id: string | null;
  name: string;
  next_refresh_at: Timestamp | null;
  page_count: number | null;
  processing_status: Generated<ProcessingStatus>;
  reason: string | null;
  reason_code: string | null;
  refresh_interval: ColumnType<unknown, string, string> | null;
  request: Generated<number>;
  retry_at: Timestamp | null;
  seq: Generated<number>;
  stored_batch: string | null;
  stored_chunks: number | null;
  title: string | null;
  /**
   * Tokens of the chunks that are searched.
   */
  token_count: number | null;
  type: KnowledgeType;
  updated_at: Generated<Timestamp>;
  url: string | null;
  worker_id: string | null;
  workspace_id: string;
}

export interface Leads {
  agent_id: string | null;
  channel: string | null;
  created_at: Generated<Timestamp>;
  email: string | null;
  id: Generated<string>;
  metadata: Generated<Json>;
  name: string | null;
  phone: string | null;
  session_id: string | null;
  workspace_id: string;
}

export interface LlmCalls {
  agent_id: string | null;
  attempt: Generated<number>;
  cached_tokens: Generated<number>;
  completion_tokens: Generated<number>;
  cost_micros: Generated<number>;
  created_at: Generated<Timestamp>;
  credential_source: string | null;
  error_code: string | null;
  error_message: string | null;
  failures: Generated<number>;
  /**
   * Which models this call was given up on before it was made of this one, and why.
   */
  fallback_reason: string | null;
  finish_reason: string | null;
  finished_at: Timestamp | null;
  id: Generated<string>;
  idempotency_key: string;
  latency_ms: number | null;
  left_out: Json | null;
  llm_model_id: string | null;
  model: string | null;
  prompt_tokens: Generated<number>;
  provider: string | null;
  response: Json | null;
  run_id: string;
  status: Generated<CallStatus>;
  step_order: number;
  /**
   * While the call waits for a rate limit: from when it may be made (place), or may ask before newcomers (return).
   */
  ticket_at: Timestamp | null;
  ticket_kind: string | null;
  turn: number;
  workspace_id: string;
}

export interface LlmModels {
  context_window: number | null;
  created_at: Generated<Timestamp>;
  id: Generated<string>;
  input_cost_per_1k: Generated<Numeric>;
  is_default: Generated<boolean>;
  model_id: string;
  name: string;
  output_cost_per_1k: Generated<Numeric>;
  provider: string;
}

export interface McpConfigurations {
  agent_id: string;
  created_at: Generated<Timestamp>;
  id: Generated<string>;
  is_enabled: Generated<boolean>;
  updated_at: Generated<Timestamp>;
}

export interface McpRefreshLog {
  connection_id: string;
  created_at: Generated<Timestamp>;
  details: Generated<Json>;
  duration_ms: number | null;
  error_message: string | null;
  id: Generated<string>;
  job_id: string | null;
  status: string;
  tools_added: Generated<number>;
  tools_changed: Generated<number>;
  tools_removed: Generated<number>;
}

export interface McpServers {
  capabilities: Generated<Json>;
  config_id: string;
  created_at: Generated<Timestamp>;
  endpoint_url: string;
  id: Generated<string>;
  is_active: Generated<boolean>;
  max_retries: Generated<number>;
  name: string;
  /**
   * Servers are asked in descending order of it.
   */
  priority: Generated<number>;
  retry_backoff_ms: Generated<number>;
  timeout_ms: Generated<number>;
  updated_at: Generated<Timestamp>;
  vault_api_key_id: string | null;
}

export interface McpToolsCache {
  connection_id: string;
  created_at: Generated<Timestamp>;
  function_name: string | null;
  id: Generated<string>;
  is_quarantined: Generated<boolean>;
  last_updated: Generated<Timestamp>;
  /**
   * The function as chat completions take it.
   */
  openai_schema: Json | null;
  /**
   * The schema_hash that was seen first, or accepted last.
   */
  pinned_hash: string | null;
  reason: string | null;
  reason_code: string | null;
  row_hash: string | null;
  /**
   * Of the whole tool as its server described it; compared again when the tool is called.
   */
  schema_hash: string | null;
  seen_at: Timestamp | null;
  tool_name: string;
  /**
   * The tool as its server described it.
   */
  tool_schema: Json;
}

export interface MediaLibrary {
  assigned_agents_count: Generated<number>;
  bucket: Generated<string>;
  category: string | null;
  chunk_count: Generated<number>;
  content_sha256: string | null;
  cost_micros: Generated<number>;
  created_at: Generated<Timestamp>;
  description: string | null;
  display_name: string | null;
  file_name: string;
  file_size: number | null;
  file_type: string | null;
  file_url: string | null;
  id: Generated<string>;
  is_archived: Generated<boolean>;
  processing_status: Generated<ProcessingStatus>;
  reason: string | null;
  /**
   * Why processing failed, as a word; reason is the sentence.
   */
  reason_code: string | null;
  storage_path: string | null;
  tags: Generated<string[]>;
  token_count: number | null;
  updated_at: Generated<Timestamp>;
  user_id: string;
  workspace_id: string;
}

export interface MediaProcessingLogs {
  attempt: Generated<number>;
  created_at: Generated<Timestamp>;
  details: Generated<Json>;
  duration_ms: number | null;
  id: Generated<string>;
  job_id: string | null;
  media_id: string | null;
  /**
   * upload, text_extraction, chunking, embedding or indexing.
   */
  processing_step: string;
  source_id: string | null;
  status: ProcessingLogStatus;
}

export interface Personas {
  created_at: Generated<Timestamp>;
  escalation_policy: Generated<FallbackPolicy>;
  fallback_message: string | null;
  greeting: string | null;
  id: Generated<string>;
  name: string;
  tone: Generated<PersonaTone>;
  updated_at: Generated<Timestamp>;
  workspace_id: string;
}

export interface PricingPlans {
  /**
   * A month; null and -1 both mean unlimited, as in the other limits.
   */
  conversation_limit: number | null;
  created_at: Generated<Timestamp>;
  description: string | null;
  features: Generated<Json>;
  /**
   * How many days a subscription goes on that is past_due, or whose trial is over, before its workspace falls back to the default plan.
   */
  grace_days: Generated<number>;
  id: Generated<string>;
  /**
   * The plan of every workspace without a live subscription.
   */
  is_default: Generated<boolean>;
  /**
   * What a run does whose workspace has used its tokens: wait for the next period or a larger plan, or fail. settings.limit_policy of the workspace goes before.
   */
  limit_policy: Generated<string>;
  message_limit: number | null;
  name: string;
  price_monthly: Generated<Numeric>;
  price_yearly: Numeric | null;
  stripe_price_id: string | null;
  token_limit: number | null;
  updated_at: Generated<Timestamp>;
  /**
   * What usage is summed up by: calendar months in the workspace's time zone, or the periods of its subscription.
   */
  usage_period: Generated<string>;
}

export interface Profiles {
  avatar_url: string | null;
  created_at: Generated<Timestamp>;
  first_name: string | null;
  full_name: string | null;
  id: string;
  /**
   * Made at sign-up and changed by nobody yet; an application that inserts the profile itself replaces it.
   */
  is_automatic: Generated<boolean>;
  last_name: string | null;
  updated_at: Generated<Timestamp>;
  username: string | null;
  /**
   * The workspace that the user looks at now. It grants nothing: no policy reads it.
   */
  workspace_id: string | null;
}

export interface Roles {
  created_at: Generated<Timestamp>;
  description: string | null;
  id: Generated<string>;
  name: string;
}

export interface ServiceProviders {
  authorization_endpoint: string | null;
  configuration_metadata: Generated<Json>;
  created_at: Generated<Timestamp>;
  display_name: string;
  id: Generated<string>;
  is_active: Generated<boolean>;
  name: string;
  provider_type: ProviderType;
  scopes_supported: Generated<Json>;
  token_endpoint: string | null;
  updated_at: Generated<Timestamp>;
}

export interface TaskRuns {
  active_ms: Generated<number>;
  agent_id: string | null;
  claims_without_progress: Generated<number>;
  completion_tokens: Generated<number>;
  cost_micros: Generated<number>;
  created_at: Generated<Timestamp>;
  current_step: Generated<number>;
  /**
   * The event that started it: an event starts a task once.
   */
  event_key: string | null;
  finished_at: Timestamp | null;
  id: Generated<string>;
  input: Generated<Json>;
  is_parked: Generated<boolean>;
  is_serial: Generated<boolean>;
  job_id: string | null;
  journal_seq: Generated<number>;
  lease_epoch: Generated<number>;
  lease_expires_at: Timestamp | null;
  output: Json | null;
  paused_at: Timestamp | null;
  prompt_tokens: Generated<number>;
  reason: string | null;
  reason_code: string | null;
  retry_of_run_id: string | null;
  scheduled_for: Timestamp | null;
  seq: Generated<number>;
  settings: Json;
  started_at: Timestamp | null;
  status: Generated<RunStatus>;
  steps: Json;
  /**
   * When what its calls were told and answered was removed; the run and its result are kept.
   */
  stripped_at: Timestamp | null;
  task_id: string | null;
  tool_calls: Generated<number>;
  traceparent: string | null;
  trigger: Generated<RunTrigger>;
  turns: Generated<number>;
  user_id: string | null;
  waited_ms: Generated<number>;
  wake_at: Timestamp | null;
  worker_id: string | null;
  workspace_id: string;
}

export interface TaskStepRuns {
  attempt: Generated<number>;
  context: Json | null;
  created_at: Generated<Timestamp>;
  duration_ms: number | null;
  error_message: string | null;
  finished_at: Timestamp | null;
  id: Generated<string>;
  reason_code: string | null;
  result: Json | null;
  run_id: string;
  started_at: Timestamp | null;
  status: Generated<TaskStepStatus>;
  step_id: string | null;
  step_name: string;
  step_order: number;
  workspace_id: string;
}

export interface TaskSteps {
  created_at: Generated<Timestamp>;
  error_message: string | null;
  execution_completed_at: Timestamp | null;
  execution_duration_ms: number | null;
  execution_result: Json | null;
  execution_started_at: Timestamp | null;
  id: Generated<string>;
  include_previous_context: Generated<boolean>;
  instructions: Generated<string>;
  max_retries: number | null;
  on_failure: Generated<string>;
  retry_count: Generated<number>;
  status: Generated<TaskStepStatus>;
  step_name: string;
  step_order: number;
  task_id: string;
  timeout_seconds: number | null;
  updated_at: Generated<Timestamp>;
}

export interface TeamCanvasLayouts {
  connections: Generated<Json>;
  created_at: Generated<Timestamp>;
  id: Generated<string>;
  positions: Generated<Json>;
  updated_at: Generated<Timestamp>;
  user_id: string;
  view_settings: Generated<Json>;
  workspace_id: string;
}

export interface TeamConnections {
  color: string | null;
  connection_type: TeamConnectionType;
  created_at: Generated<Timestamp>;
  created_by_user_id: string | null;
  from_team_id: string;
  id: Generated<string>;
  label: string | null;
  style: string | null;
  to_team_id: string;
  workspace_id: string;
}

export interface TeamMembers {
  agent_id: string;
  created_at: Generated<Timestamp>;
  id: Generated<string>;
  joined_at: Generated<Timestamp>;
  reports_to_agent_id: string | null;
  reports_to_user: Generated<boolean>;
  team_id: string;
  team_role: Generated<string>;
  team_role_description: string | null;
  workspace_id: string;
}

export interface Teams {
  created_at: Generated<Timestamp>;
  description: string | null;
  id: Generated<string>;
  name: string;
  owner_user_id: string;
  updated_at: Generated<Timestamp>;
  workspace_id: string;
}

export interface ToolCalls {
  agent_id: string | null;
  approved: boolean | null;
  arguments: Generated<Json>;
  call_index: number;
  connection_id: string | null;
  created_at: Generated<Timestamp>;
  credential_id: string | null;
  decided_at: Timestamp | null;
  decided_by: string | null;
  decision_reason: string | null;
  duration_ms: number | null;
  effect: string;
  error_code: string | null;
  error_message: string | null;
  finished_at: Timestamp | null;
  id: Generated<string>;
  idempotency_key: string;
  provider_call_id: string;
  result: Json | null;
  run_id: string;
  source: string;
  status: Generated<CallStatus>;
  step_order: number;
  tool_name: string;
  turn: number;
  workspace_id: string;
}

export interface ToolCatalog {
  category: string | null;
  created_at: Generated<Timestamp>;
  default_config: Generated<Json>;
  description: string | null;
  display_name: string;
  docker_image: string | null;
  id: Generated<string>;
  is_active: Generated<boolean>;
  name: string;
  resource_requirements: Generated<Json>;
  updated_at: Generated<Timestamp>;
}

export interface UsageByAgent {
  agent_id: string | null;
  cost_micros: number | null;
  day: Timestamp | null;
  events: number | null;
  metric: string | null;
  quantity: number | null;
  refreshed_at: Timestamp | null;
  workspace_id: string | null;
}

export interface UsageByModel {
  cached_tokens: Numeric | null;
  completion_tokens: Numeric | null;
  cost_micros: number | null;
  day: Timestamp | null;
  events: number | null;
  metric: string | null;
  model: string | null;
  prompt_tokens: Numeric | null;
  provider: string | null;
  quantity: number | null;
  refreshed_at: Timestamp | null;
  workspace_id: string | null;
}

export interface UsageEventKeys {
  idempotency_key: string;
  recorded_at: Generated<Timestamp>;
  workspace_id: string;
}

export interface UsageEvents {
  agent_id: string | null;
  /**
   * Millionths of a US dollar.
   */
  cost_micros: Generated<number>;
  dimensions: Generated<Json>;
  id: Generated<string>;
  idempotency_key: Generated<string>;
  metric: string;
  occurred_at: Generated<Timestamp>;
  quantity: Generated<number>;
  recorded_at: Generated<Timestamp>;
  run_id: string | null;
  workspace_id: string;
  /**
   * The writing transaction. What a roll-up has not seen is what its snapshot could not see; a rising id would miss those that committed late.
   */
  xid: Generated<string>;
}

export interface UsageQuarterHours {
  bucket: Timestamp;
  cost_micros: Generated<number>;
  events: Generated<number>;
  metric: string;
  quantity: Generated<number>;
  updated_at: Generated<Timestamp>;
  workspace_id: string;
}

export interface UsageWarnings {
  created_at: Generated<Timestamp>;
  id: Generated<string>;
  max_amount: number;
  metric: string;
  /**
   * The period, as in workspace_usage.
   */
  month: Timestamp;
  threshold: number;
  used_amount: number;
  workspace_id: string;
}

export interface UserAgents {
  agent_id: string;
  created_at: Generated<Timestamp>;
  id: Generated<string>;
  is_active: Generated<boolean>;
  settings: Generated<Json>;
  updated_at: Generated<Timestamp>;
  user_id: string;
}

export interface UserIntegrationCredentials {
  connection_metadata: Generated<Json>;
  connection_name: Generated<string>;
  connection_status: Generated<ConnectionStatus>;
  created_at: Generated<Timestamp>;
  credential_type: CredentialType;
  encrypted_access_token: string | null;
  encrypted_refresh_token: string | null;
  id: Generated<string>;
  is_refresh_due: Generated<boolean>;
  job_id: string | null;
  last_refreshed_at: Timestamp | null;
  next_refresh_at: Timestamp | null;
  reason: string | null;
  reason_code: string | null;
  refresh_failures: Generated<number>;
  refresh_lease_token: string | null;
  refresh_lease_until: Timestamp | null;
  refresh_request: Generated<number>;
  /**
   * Set before a refresh is sent, cleared when its answer is stored: a rotated token may be lost in between.
   */
  refresh_started_at: Timestamp | null;
  scopes_granted: Generated<Json>;
  service_provider_id: string;
  token_expires_at: Timestamp | null;
  /**
   * Rises with every stored token. A refresh stores its answer only over the version that it started from.
   */
  token_version: Generated<number>;
  updated_at: Generated<Timestamp>;
  user_id: string;
  vault_access_token_id: string | null;
  vault_refresh_token_id: string | null;
  workspace_id: string;
}

export interface UserPreferences {
  created_at: Generated<Timestamp>;
  notification_settings: Generated<Json>;
  theme: Generated<string>;
  timezone: Generated<string>;
  ui_preferences: Generated<Json>;
  updated_at: Generated<Timestamp>;
  user_id: string;
}

export interface UserRoles {
  created_at: Generated<Timestamp>;
  id: Generated<string>;
  /**
   * Written by the trigger on workspace_members; an application that inserts the same role itself replaces it.
   */
  is_mirrored: Generated<boolean>;
  role: AppRole | null;
  role_id: string | null;
  user_id: string;
  workspace_id: string | null;
}

export interface UserSecrets {
  created_at: Generated<Timestamp>;
  id: Generated<string>;
  updated_at: Generated<Timestamp>;
  user_id: string;
  vault_id: string;
  vault_item_id: string | null;
}

export interface UserTeamMemberships {
  id: Generated<string>;
  joined_at: Generated<Timestamp>;
  team_id: string;
  user_id: string;
}

export interface WorkspaceLlmConfig {
  api_key: string | null;
  created_at: Generated<Timestamp>;
  id: Generated<string>;
  is_active: Generated<boolean>;
  provider: string;
  secret_form: string | null;
  updated_at: Generated<Timestamp>;
  vault_api_key_id: string | null;
  workspace_id: string;
}

export interface WorkspaceMembers {
  agent_id: string | null;
  id: Generated<string>;
  /**
   * Written by a trigger; an application that inserts the same membership itself replaces it.
   */
  is_automatic: Generated<boolean>;
  joined_at: Generated<Timestamp>;
  role: Generated<WorkspaceMemberRole>;
  team_id: string | null;
  user_id: string | null;
  workspace_id: string;
}

export interface WorkspaceOverview {
  active_tasks: number | null;
  agents: number | null;
  conversations: number | null;
  knowledge_chunks: number | null;
  knowledge_sources: number | null;
  live_agents: number | null;
  media: number | null;
  members: number | null;
  messages: number | null;
  refreshed_at: Timestamp | null;
  runs_cancelled: number | null;
  runs_completed: number | null;
  runs_failed: number | null;
  runs_skipped: number | null;
  workspace_id: string | null;
}

export interface Workspaces {
  created_at: Generated<Timestamp>;
  description: string | null;
  id: Generated<string>;
  /**
   * The workspace made for its owner, into which rows without a workspace fall. It goes when its owner is deleted.
   */
  is_personal: Generated<boolean>;
  is_public: Generated<boolean>;
  name: string;
  owner_user_id: string;
  settings: Generated<Json>;
  slug: string;
  /**
   * IANA name; months of usage begin at its midnight.
   */
  timezone: Generated<string>;
  updated_at: Generated<Timestamp>;
}

export interface WorkspaceSubscriptions {
  created_at: Generated<Timestamp>;
  current_period_end: Timestamp | null;
  current_period_start: Generated<Timestamp>;
  end_date: Timestamp | null;
  id: Generated<string>;
  past_due_since: Timestamp | null;
  plan_id: string;
  status: Generated<SubscriptionStatus>;
  stripe_subscription_id: string | null;
  updated_at: Generated<Timestamp>;
  /**
   * Who pays, where the application subscribes users.
   */
  user_id: string | null;
  workspace_id: string;
}

export interface WorkspaceUsage {
  /**
   * What comes later for this period is a correction of the open one.
   */
  closed_at: Timestamp | null;
  conversations: Generated<number>;
  cost_micros: Generated<number>;
  created_at: Generated<Timestamp>;
  id: Generated<string>;
  messages: Generated<number>;
  /**
   * The first day of the month; of a subscription's period the day that it begins on.
   */
  month: Timestamp;
  period_end: Timestamp;
  period_kind: Generated<string>;
  period_start: Timestamp;
  rolled_up_at: Timestamp | null;
  task_runs: Generated<number>;
  tokens_used: Generated<number>;
  tool_calls: Generated<number>;
  updated_at: Generated<Timestamp>;
  workspace_id: string;
}

export interface WorkspaceUsageCounters {
  /**
   * Where the period was cut: what is used from then on is not added to this counter, also by who knew the period as it was.
   */
  ends_at: Timestamp | null;
  /**
   * A grant with which used stays below this needs to know no more: 80 of a hundred of the limit, or any number where there is none.
   */
  limit_below: number | null;
  limit_from: Timestamp | null;
  /**
   * The plan that limits this counter between limit_from and limit_until; null: a grant finds it out. Written by the worker.
   */
  limit_plan_id: string | null;
  /**
   * The version of that plan's row that limit_below is of.
   */
  limit_plan_xmin: string | null;
  limit_until: Timestamp | null;
  metric: string;
  month: Timestamp;
  used: Generated<number>;
  workspace_id: string;
}

export interface DB {
  account_tool_environments: AccountToolEnvironments;
  agent_activity: AgentActivity;
  agent_api_connections: AgentApiConnections;
  agent_datastores: AgentDatastores;
  agent_discord_connections: AgentDiscordConnections;
  agent_feedback: AgentFeedback;
  agent_integration_permissions: AgentIntegrationPermissions;
  agent_logs: AgentLogs;
  agent_mcp_connections: AgentMcpConnections;
  agent_media_assignments: AgentMediaAssignments;
  agent_messages: AgentMessages;
  agent_task_event_triggers: AgentTaskEventTriggers;
  agent_tasks: AgentTasks;
  agent_web_widget_config: AgentWebWidgetConfig;
  "agentd.agent_activity": AgentdAgentActivity;
  "agentd.audit_log": AgentdAuditLog;
  "agentd.budget_counters": AgentdBudgetCounters;
  "agentd.budget_reservations": AgentdBudgetReservations;
  "agentd.closed_workspaces": AgentdClosedWorkspaces;
  "agentd.conversation_calls": AgentdConversationCalls;
  "agentd.dashboard_refreshes": AgentdDashboardRefreshes;
  "agentd.embedding_migrations": AgentdEmbeddingMigrations;
  "agentd.failing_credentials": AgentdFailingCredentials;
  "agentd.graph_episodes": AgentdGraphEpisodes;
  "agentd.job_runs": AgentdJobRuns;
  "agentd.late_tasks": AgentdLateTasks;
  "agentd.locks": AgentdLocks;
  "agentd.maintenance_log": AgentdMaintenanceLog;
  "agentd.maintenance_tasks": AgentdMaintenanceTasks;
  "agentd.mcp_refreshes": AgentdMcpRefreshes;
  "agentd.mcp_removed_tools": AgentdMcpRemovedTools;
  "agentd.member_calls": AgentdMemberCalls;
  "agentd.memory_outbox": AgentdMemoryOutbox;
  "agentd.message_queue": AgentdMessageQueue;
  "agentd.message_workspaces": AgentdMessageWorkspaces;
  "agentd.model_prices": AgentdModelPrices;
  "agentd.platform_objects": AgentdPlatformObjects;
  "agentd.provider_alarms": AgentdProviderAlarms;
  "agentd.provider_states": AgentdProviderStates;
  "agentd.queue_controls": AgentdQueueControls;
  "agentd.queue_health": AgentdQueueHealth;
  "agentd.queue_settings": AgentdQueueSettings;
  "agentd.rate_limit_lines": AgentdRateLimitLines;
  "agentd.rate_limits": AgentdRateLimits;
  "agentd.recent_failures": AgentdRecentFailures;
  "agentd.rescued_tokens": AgentdRescuedTokens;
  "agentd.retention_overrides": AgentdRetentionOverrides;
  "agentd.retired_partitions": AgentdRetiredPartitions;
  "agentd.signup_failures": AgentdSignupFailures;
  "agentd.sleepers": AgentdSleepers;
  "agentd.stored_objects": AgentdStoredObjects;
  "agentd.stuck_work": AgentdStuckWork;
  "agentd.task_event_bursts": AgentdTaskEventBursts;
  "agentd.task_events": AgentdTaskEvents;
  "agentd.usage_by_agent": AgentdUsageByAgent;
  "agentd.usage_by_model": AgentdUsageByModel;
  "agentd.usage_by_second": AgentdUsageBySecond;
  "agentd.usage_corrections": AgentdUsageCorrections;
  "agentd.usage_deltas": AgentdUsageDeltas;
  "agentd.usage_drifts": AgentdUsageDrifts;
  "agentd.usage_period_locks": AgentdUsagePeriodLocks;
  "agentd.usage_recuts": AgentdUsageRecuts;
  "agentd.usage_reservations": AgentdUsageReservations;
  "agentd.usage_rollup": AgentdUsageRollup;
  "agentd.usage_rollup_state": AgentdUsageRollupState;
  "agentd.vault_owners": AgentdVaultOwners;
  "agentd.vector_copies": AgentdVectorCopies;
  "agentd.vector_outbox": AgentdVectorOutbox;
  "agentd.vector_stores": AgentdVectorStores;
  "agentd.worker_health": AgentdWorkerHealth;
  "agentd.workers": AgentdWorkers;
  "agentd.workspace_activity": AgentdWorkspaceActivity;
  "agentd.workspace_doors": AgentdWorkspaceDoors;
  "agentd.workspace_overview": AgentdWorkspaceOverview;
  "agentd.workspace_plans": AgentdWorkspacePlans;
  "agentd.zep_graphs": AgentdZepGraphs;
  agents: Agents;
  api_connections: ApiConnections;
  "auth.users": AuthUsers;
  billing_invoices: BillingInvoices;
  budgets: Budgets;
  channel_configs: ChannelConfigs;
  chat_channels: ChatChannels;
  chat_messages: ChatMessages;
  chat_room_members: ChatRoomMembers;
  chat_rooms: ChatRooms;
  chat_sessions: ChatSessions;
  conversations: Conversations;
  credential_refresh_log: CredentialRefreshLog;
  datastores: Datastores;
  integration_capabilities: IntegrationCapabilities;
  integration_events: IntegrationEvents;
  integrations: Integrations;
  knowledge_chunks: KnowledgeChunks;
  knowledge_sources: KnowledgeSources;
  leads: Leads;
  llm_calls: LlmCalls;
  llm_models: LlmModels;
  mcp_configurations: McpConfigurations;
  mcp_refresh_log: McpRefreshLog;
  mcp_servers: McpServers;
  mcp_tools_cache: McpToolsCache;
  media_library: MediaLibrary;
  media_processing_logs: MediaProcessingLogs;
  personas: Personas;
  pricing_plans: PricingPlans;
  profiles: Profiles;
  roles: Roles;
  service_providers: ServiceProviders;
  task_runs: TaskRuns;
  task_step_runs: TaskStepRuns;
  task_steps: TaskSteps;
  team_canvas_layouts: TeamCanvasLayouts;
  team_connections: TeamConnections;
  team_members: TeamMembers;
  teams: Teams;
  tool_calls: ToolCalls;
  tool_catalog: ToolCatalog;
  usage_by_agent: UsageByAgent;
  usage_by_model: UsageByModel;
  usage_event_keys: UsageEventKeys;
  usage_events: UsageEvents;
  usage_quarter_hours: UsageQuarterHours;
  usage_warnings: UsageWarnings;
  user_agents: UserAgents;
  user_integration_credentials: UserIntegrationCredentials;
  user_preferences: UserPreferences;
  user_roles: UserRoles;
  user_secrets: UserSecrets;
  user_team_memberships: UserTeamMemberships;
  workspace_llm_config: WorkspaceLlmConfig;
  workspace_members: WorkspaceMembers;
  workspace_overview: WorkspaceOverview;
  workspace_subscriptions: WorkspaceSubscriptions;
  workspace_usage: WorkspaceUsage;
  workspace_usage_counters: WorkspaceUsageCounters;
  workspaces: Workspaces;
}
