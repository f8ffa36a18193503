/**
 * Every number that agentd exports, on a registry of its own. docs/metrics.md explains each one; a test keeps the
 * two equal.
 *
 * Labels are closed sets: no workspace, run or task ids, and names that tenants choose (tools, models) are counted
 * under `other` beyond a bound. One series per tenant would make the scrape, and the bill for storing it, grow with the
 * customers; those questions are answered by the tables.
 */
import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import { type CredentialMetrics, credentialMetrics } from './credential-metrics.ts';
import { type DocumentMetrics, documentMetrics } from './document-metrics.ts';
import { type MaintenanceMetrics, maintenanceMetrics } from './maintenance-metrics.ts';
import { type McpMetrics, mcpMetrics } from './mcp-metrics.ts';
import { type ProcessGauges, processGauges } from './process-gauges.ts';
import { type QueueGauges, queueGauges } from './queue-gauges.ts';

/** The process's metrics. All methods are synchronous and never throw. */
export type Metrics = {
  readonly registry: Registry;
  readonly jobs: {
    started(queue: string): void;
    settled(queue: string, outcome: string, seconds: number): void;
    /** Handlers busy in this process now. */
    running(queue: string, count: number): void;
  };
  readonly consumer: {
    /** One fetch that brought `jobs` jobs. */
    fetched(queue: string, jobs: number): void;
    /** One statement that settled `jobs` jobs. */
    settledBatch(queue: string, jobs: number): void;
    /** Jobs claimed and not yet started in this process now. */
    buffered(queue: string, count: number): void;
    /** Why the consumer looked for work: `notify` or `poll`. */
    woken(queue: string, cause: string): void;
    /** Leases that another process took over while this one worked. */
    lost(queue: string, jobs: number): void;
  };
  readonly runs: {
    finished(status: string, reasonCode: string | null, seconds: number): void;
  };
  readonly schedule: {
    /** Runs inserted by one batch; lateness of the oldest of them, in seconds after its scheduled instant. */
    inserted(count: number, latenessSeconds: number): void;
    skipped(count: number): void;
  };
  readonly modelCalls: {
    finished(
      provider: string,
      model: string,
      outcome: string,
      seconds: number,
      promptTokens: number,
      completionTokens: number,
      costMicros: number,
    ): void;
    /** A run went on with its agent's next model, because of what this one answered. */
    fellBack(provider: string, outcome: string): void;
  };
  readonly rateLimits: {
    /** A call waits for its turn: `held` in its slot, or `released`, the run without one. */
    waited(provider: string, how: 'held' | 'released', seconds: number): void;
  };
  readonly toolCalls: { finished(tool: string, outcome: string, seconds: number): void };
  /** A try to compute a dashboard's view anew: `refreshed` or `failed`. */
  readonly dashboards: { refreshed(view: string, outcome: 'refreshed' | 'failed', seconds: number): void };
  /** The roll-up of usage. */
  readonly usage: {
    gathered(events: number, seconds: number): void;
    folded(seconds: number): void;
    /** From the recording of the oldest event of a pass to its being in the sums. */
    lag(seconds: number): void;
    /** Sums that differed from the events. */
    drifted(sums: number): void;
  };
  readonly documents: DocumentMetrics;
  readonly mcp: McpMetrics;
  readonly maintenance: MaintenanceMetrics;
  readonly credentials: CredentialMetrics;
  /** Messages of workspaces that have them embedded. */
  readonly messages: { settled(outcome: 'embedded' | 'refused', count: number): void };
  /** Events that may start tasks: what one look at them has done. */
  readonly taskEvents: {
    count(done: {
      settled: number;
      fired: number;
      suppressed: number;
      postponed: number;
      lost: number;
    }): void;
  };
  /** Memories of agents: what asking and telling them came to. */
  readonly memory: {
    recalled(outcome: 'found' | 'nothing' | 'failed' | 'resting'): void;
    sent(outcome: 'sent' | 'postponed' | 'lost'): void;
  };
  readonly databaseErrors: { inc(where: string): void };
  /** Spans of OpenTelemetry traces: `sent` or `dropped`. */
  readonly traces: { spans(outcome: string, count: number): void };
  /** Read from the database at each scrape; written by the probes. */
  readonly queues: QueueGauges;
  /** Read from the process at each scrape; written by the probes. */
  readonly process: ProcessGauges;
};

/** Options of {@link createMetrics}. */
export type MetricsOptions = {
  /** Tools with a series of their own; all others are `other`. */
  readonly builtInTools?: Iterable<string>;
  /** Distinct values at most of a label that tenants can influence. */
  readonly maxLabelValues?: number;
};

const SHORT = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600];
const LONG = [0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600];

/** Creates a registry with everything registered; nothing is global, so a test may make as many as it likes. */
export function createMetrics(options: MetricsOptions = {}): Metrics {
  const registry = new Registry();
  const registers = [registry];
  const builtIn = new Set(options.builtInTools ?? []);
  const max = options.maxLabelValues ?? 100;
  const modelLabel = boundedLabel(max);
  const providerLabel = boundedLabel(max);
  const reasonLabel = boundedLabel(max);
  const whereLabel = boundedLabel(max);
  // error codes of tools and providers come from outside as well
  const outcomeLabel = boundedLabel(max);

  const counter = <L extends string>(name: string, help: string, labelNames: readonly L[]) =>
    new Counter<L>({ name, help, labelNames: [...labelNames], registers });
  const gauge = <L extends string>(name: string, help: string, labelNames: readonly L[]) =>
    new Gauge<L>({ name, help, labelNames: [...labelNames], registers });
  const histogram = <L extends string>(
    name: string,
    help: string,
    labelNames: readonly L[],
    buckets: number[],
  ) => new Histogram<L>({ name, help, labelNames: [...labelNames], buckets, registers });

  const jobsStarted = counter('agentd_jobs_started_total', 'Jobs whose handler was started.', ['queue']);
  const jobs = counter('agentd_jobs_total', 'Job attempts settled, by outcome.', ['queue', 'outcome']);
  const jobSeconds = histogram(
    'agentd_job_duration_seconds',
    'Time in the handler.',
    ['queue', 'outcome'],
    SHORT,
  );
  const jobsRunning = gauge('agentd_jobs_running', 'Handlers under way in this process.', ['queue']);

  const fetches = counter('agentd_consumer_fetches_total', 'Fetches sent to the queue.', ['queue']);
  const fetched = counter('agentd_consumer_fetched_jobs_total', 'Jobs that fetches brought.', ['queue']);
  const settles = counter('agentd_consumer_settles_total', 'Statements that settled jobs.', ['queue']);
  const settled = counter('agentd_consumer_settled_jobs_total', 'Jobs that those statements settled.', [
    'queue',
  ]);
  const buffered = gauge('agentd_consumer_buffered_jobs', 'Jobs claimed and not yet started.', ['queue']);
  const wakes = counter('agentd_consumer_wakes_total', 'Looks for work, by cause.', ['queue', 'cause']);
  const lost = counter('agentd_consumer_lost_jobs_total', 'Jobs taken over while still worked on.', [
    'queue',
  ]);

  const runs = counter('agentd_runs_total', 'Runs ended, by status and reason code.', [
    'status',
    'reason_code',
  ]);
  const runSeconds = histogram(
    'agentd_run_duration_seconds',
    'From start to end of a run.',
    ['status'],
    LONG,
  );

  // An increase is seen only of a series that is there: these must not begin with their first failure.
  for (const reason_code of ['internal_error', 'worker_crashed', 'journal_refused']) {
    runs.inc({ status: 'failed', reason_code }, 0);
  }

  const inserted = counter('agentd_schedule_runs_inserted_total', 'Runs that the schedule inserted.', []);
  const skipped = counter('agentd_schedule_runs_skipped_total', 'Occurrences recorded as skipped.', []);
  const lateness = histogram(
    'agentd_schedule_lateness_seconds',
    'From the scheduled instant to the insert of its run, the latest of each batch.',
    [],
    SHORT,
  );

  const modelLabels = ['provider', 'model'] as const;
  const modelCalls = counter('agentd_model_calls_total', 'Model calls ended.', [...modelLabels, 'outcome']);
  const modelSeconds = histogram(
    'agentd_model_call_duration_seconds',
    'Time of a model call.',
    modelLabels,
    LONG,
  );
  const promptTokens = counter('agentd_model_prompt_tokens_total', 'Tokens sent to models.', modelLabels);
  const completionTokens = counter('agentd_model_completion_tokens_total', 'Tokens received.', modelLabels);
  const cost = counter('agentd_model_cost_micros_total', 'Cost in millionths of the currency.', modelLabels);

  const fallbacks = counter(
    'agentd_model_fallbacks_total',
    'Models that runs gave up on for the next of their agent, by what they answered.',
    ['provider', 'outcome'],
  );
  const limitWaits = counter(
    'agentd_rate_limit_waits_total',
    'Model calls that waited for their turn under a rate limit.',
    ['provider', 'how'],
  );
  const limitSeconds = histogram(
    'agentd_rate_limit_wait_seconds',
    'How long they waited, or were told to.',
    ['provider'],
    SHORT,
  );

  const toolCalls = counter('agentd_tool_calls_total', 'Tool calls ended.', ['tool', 'outcome']);
  const toolSeconds = histogram('agentd_tool_call_duration_seconds', 'Time of a tool call.', ['tool'], SHORT);

  const dashboardRefreshes = counter(
    'agentd_dashboard_refreshes_total',
    'Tries to compute the views of dashboards anew.',
    ['view', 'outcome'],
  );
  const messages = counter('agentd_messages_embedded_total', 'Messages that were embedded, or will not be.', [
    'outcome',
  ]);
  const taskEvents = counter(
    'agentd_task_events_total',
    'Events that may start tasks, and what became of them.',
    ['outcome'],
  );
  const recalls = counter('agentd_memory_recalls_total', 'Memories of agents that were asked.', ['outcome']);
  const remembered = counter('agentd_memory_runs_total', 'Runs on their way to a memory.', ['outcome']);
  const dashboardSeconds = histogram(
    'agentd_dashboard_refresh_seconds',
    'How long they took.',
    ['view'],
    SHORT,
  );

  const usageEvents = counter('agentd_usage_events_total', 'Events of usage that were summed up.', []);
  const usageSeconds = histogram(
    'agentd_usage_rollup_seconds',
    'Time of a step of the roll-up.',
    ['step'],
    SHORT,
  );
  const usageLag = histogram(
    'agentd_usage_lag_seconds',
    'From the oldest event of a pass to its sums.',
    [],
    SHORT,
  );
  const usageDrift = counter('agentd_usage_drift_total', 'Sums of usage that differed from the events.', []);

  const databaseErrors = counter('agentd_database_errors_total', 'Errors of the database, by place.', [
    'where',
  ]);

  const spans = counter('agentd_trace_spans_total', 'Spans of traces, by what became of them.', ['outcome']);

  return {
    registry,
    jobs: {
      started: (queue) => jobsStarted.inc({ queue }),
      settled(queue, outcome, seconds) {
        jobs.inc({ queue, outcome });
        jobSeconds.observe({ queue, outcome }, amount(seconds));
      },
      running: (queue, count) => jobsRunning.set({ queue }, amount(count)),
    },
    consumer: {
      fetched(queue, count) {
        fetches.inc({ queue });
        fetched.inc({ queue }, amount(count));
      },
      settledBatch(queue, count) {
        settles.inc({ queue });
        settled.inc({ queue }, amount(count));
      },
      buffered: (queue, count) => buffered.set({ queue }, amount(count)),
      woken: (queue, cause) => wakes.inc({ queue, cause }),
      lost: (queue, count) => lost.inc({ queue }, amount(count)),
    },
    runs: {
      finished(status, reasonCode, seconds) {
        runs.inc({ status, reason_code: reasonCode === null ? '' : reasonLabel(reasonCode) });
        runSeconds.observe({ status }, amount(seconds));
      },
    },
    schedule: {
      inserted(count, latenessSeconds) {
        inserted.inc(amount(count));
        if (count > 0) lateness.observe(amount(latenessSeconds));
      },
      skipped: (count) => skipped.inc(amount(count)),
    },
    modelCalls: {
      finished(rawProvider, rawModel, rawOutcome, seconds, prompt, completion, costMicros) {
        const outcome = outcomeLabel(rawOutcome);
        const labels = { provider: providerLabel(rawProvider), model: modelLabel(rawModel) };
        modelCalls.inc({ ...labels, outcome });
        modelSeconds.observe(labels, amount(seconds));
        promptTokens.inc(labels, amount(prompt));
        completionTokens.inc(labels, amount(completion));
        cost.inc(labels, amount(costMicros));
      },
      fellBack: (provider, outcome) =>
        fallbacks.inc({ provider: providerLabel(provider), outcome: outcomeLabel(outcome) }),
    },
    rateLimits: {
      waited(rawProvider, how, seconds) {
        const provider = providerLabel(rawProvider);
        limitWaits.inc({ provider, how });
        limitSeconds.observe({ provider }, amount(seconds));
      },
    },
    toolCalls: {
      finished(rawTool, rawOutcome, seconds) {
        const outcome = outcomeLabel(rawOutcome);
        const tool = builtIn.has(rawTool) ? rawTool : 'other';
        toolCalls.inc({ tool, outcome });
        toolSeconds.observe({ tool }, amount(seconds));
      },
    },
    dashboards: {
      refreshed(view, outcome, seconds) {
        dashboardRefreshes.inc({ view, outcome });
        dashboardSeconds.observe({ view }, amount(seconds));
      },
    },
    messages: { settled: (outcome, count) => messages.inc({ outcome }, amount(count)) },
    memory: {
      recalled: (outcome) => recalls.inc({ outcome }),
      sent: (outcome) => remembered.inc({ outcome }),
    },
    taskEvents: {
      count(done) {
        for (const outcome of ['settled', 'fired', 'suppressed', 'postponed', 'lost'] as const) {
          if (done[outcome] > 0) taskEvents.inc({ outcome }, amount(done[outcome]));
        }
      },
    },
    documents: documentMetrics(registry, () => boundedLabel(max), amount),
    maintenance: maintenanceMetrics(registry),
    mcp: mcpMetrics(registry, () => boundedLabel(max), amount),
    credentials: credentialMetrics(registry, () => boundedLabel(max), amount),
    usage: {
      gathered(events, seconds) {
        usageEvents.inc(amount(events));
        usageSeconds.observe({ step: 'gather' }, amount(seconds));
      },
      folded: (seconds) => usageSeconds.observe({ step: 'fold' }, amount(seconds)),
      lag: (seconds) => usageLag.observe(amount(seconds)),
      drifted: (sums) => usageDrift.inc(amount(sums)),
    },
    databaseErrors: { inc: (where) => databaseErrors.inc({ where: whereLabel(where) }) },
    traces: { spans: (outcome, count) => spans.inc({ outcome }, amount(count)) },
    queues: queueGauges(registry),
    process: processGauges(registry),
  };
}

/** The first `max` distinct values stand for themselves, the rest are `other`. */
function boundedLabel(max: number): (value: string) => string {
  const seen = new Set<string>();
  return (value) => {
    if (seen.has(value)) return value;
    if (seen.size >= max) return 'other';
    seen.add(value);
    return value;
  };
}

/** A measurement that prom-client accepts: a clock that went back, or a provider without counts, gives 0, not an error. */
function amount(value: number): number {
  return Number.isFinite(value) && value > 0 ? value : 0;
}
