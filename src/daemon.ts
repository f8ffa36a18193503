/** Builds the parts, starts them, drains them: the one place that knows them all. */
import { randomUUID } from 'node:crypto';
import { hostname } from 'node:os';
import { PgBoss } from 'pg-boss';
import type { Logger } from 'pino';
import { type Clock, systemClock } from './clock.ts';
import type { Config } from './config.ts';
import { bossOptions } from './db/boss.ts';
import { type BudgetRequest, reserveBudgets } from './db/budgets.ts';
import { connectDatabase } from './db/connect.ts';
import {
  type ConnectionLimits,
  type Database,
  openDatabase,
  type Queryable,
  WORKER_LIMITS,
} from './db/database.ts';
import { DatabaseTime } from './db/database-time.ts';
import { admitArrivals, wakeUp } from './db/jobs.ts';
import { databaseTasks } from './db/maintenance-tasks.ts';
import {
  DatabaseStateError,
  migrateUp,
  migrationStatus,
  newestMigration,
  requireUsableServer,
} from './db/migrate.ts';
import { detectPooling } from './db/pooler.ts';
import { learnLimit, PLACES_AHEAD, type PlaceAsked, takePlaces } from './db/rate-limits.ts';
import { loadRetention } from './db/retention-rules.ts';
import {
  isLockTimeout,
  isRefusal,
  isStatementTimeout,
  isTransient,
  LONGEST_DELAY_MS,
  retryTransient,
} from './db/retry.ts';
import { runEnding } from './db/run-ending.ts';
import {
  type Checkpoint,
  type CheckpointResult,
  claimRuns,
  renewLeases,
  writeCheckpoints,
} from './db/runs.ts';
import { secretReferences } from './db/secret-references.ts';
import { storedObjectTask } from './db/stored-objects.ts';
import { reachedLimits } from './db/usage-limits.ts';
import { saveWorker, type WorkerRow } from './db/workers.ts';
import {
  type CredentialParts,
  type DocumentParts,
  type McpParts,
  openCredentialParts,
  openDocumentParts,
  openMcpParts,
  taskRunJob,
} from './jobs/index.ts';
import type { ModelDeps } from './pipelines/agent/credentials.ts';
import { AgentMemory } from './pipelines/agent/memory.ts';
import { RateLimiter } from './pipelines/agent/rate-limiter.ts';
import type { ToolSource } from './pipelines/agent/tools.ts';
import { builtInToolNames, builtInTools } from './pipelines/agent/tools-builtin.ts';
import { type McpToolSource, mcpTools } from './pipelines/agent/tools-mcp.ts';
import { EmbeddingLanes } from './pipelines/ingest/embed.ts';
import { mcpSettings } from './pipelines/mcp/connection-settings.ts';
import type { RefreshSignal } from './pipelines/oauth/attempt.ts';
import type { PastFailures } from './providers/failing-buckets.ts';
import { loadModelCatalog } from './providers/model-catalog.ts';
import { ObjectRemover } from './providers/object-remover.ts';
import { openStorage } from './providers/object-storage.ts';
import { Batcher } from './queue/batcher.ts';
import { Consumer, type ConsumerSignal } from './queue/consumer.ts';
import { Leases } from './queue/leases.ts';
import { CHANNELS, Listener } from './queue/listener.ts';
import { columnSecretStore, parseKeyRing } from './secrets.ts';
import { credentialSchedule } from './services/credential-schedule.ts';
import { dashboards } from './services/dashboards.ts';
import { embeddingMigrations } from './services/embedding-migrations.ts';
import { heartbeat } from './services/heartbeat.ts';
import { lostRuns } from './services/lost-runs.ts';
import { maintenance } from './services/maintenance.ts';
import { memorySync } from './services/memory-sync.ts';
import { MESSAGE_EMBEDDING, messageEmbedding } from './services/message-embedding.ts';
import { reconciler } from './services/reconciler.ts';
import { type SchedulerSignal, scheduler } from './services/scheduler.ts';
import { TASK_EVENTS, taskEvents } from './services/task-events.ts';
import { usageLimits } from './services/usage-limits.ts';
import { usageRollup } from './services/usage-rollup.ts';
import { vectorSync } from './services/vector-sync.ts';
import { createMetrics, type Metrics } from './telemetry/metrics.ts';
import { type Probes, startProbes } from './telemetry/probes.ts';
import { startTracing, type Tracing } from './telemetry/traces.ts';
import { version } from './version.ts';

/** How long a claim of a run holds without a sign of life, in seconds; a takeover waits for it. */
const LEASE_SECONDS = 15;
/** One model call may take this long, in milliseconds; the run's and the step's own limits are shorter or not. */
const MODEL_CALL_TIMEOUT_MS = 10 * 60_000;
/** How often pg-boss deletes finished jobs. */
const BOSS_MAINTENANCE_SECONDS = 600;
/** What a tenant makes expensive, such as a search, has connections and limits of its own. */
const READ_LIMITS: ConnectionLimits = { lockMs: 1_000, statementMs: 5_000, answerMs: 10_000 };
const READ_CONNECTIONS = 4;
/**
 * Requests for messages that one key has in flight, and the longest wait for a limit, in milliseconds: who waits longer does so in the row,
 * and another workspace has the slot.
 */
const MESSAGE_LANES = { maxInFlight: 4, patienceMs: 2_000 } as const;
/** After a drain's patience, handlers get this long to come back from their abort, in milliseconds. */
const ABORT_GRACE_MS = 5_000;

export type DaemonOptions = {
  readonly logger: Logger;
  readonly clock?: Clock;
  /** More tools beside the built-in ones. */
  readonly toolSources?: readonly ToolSource[];
  /** Replaces the client of model providers, for benchmarks. */
  readonly createModelClient?: NonNullable<ModelDeps['createClient']>;
  /** Leaves the HTTP probes out. */
  readonly probes?: boolean;
  readonly leaseSeconds?: number;
  /** How often stores of vectors are looked at where no notification comes through, in milliseconds; for tests. */
  readonly storeLookMs?: number;
  /** Replaces limits of the database's connections, for tests. */
  readonly databaseLimits?: Partial<ConnectionLimits>;
  /** For tests: told, on the spot, that the daemon is at a place where a process may die. */
  readonly testSignal?: (at: TestSignal) => void;
};

/** Places in the life of a daemon. Checkpoints and settlements are sent, and then answered. */
export type TestSignal =
  | 'claimed'
  | 'checkpoint_sent'
  | 'checkpoint_answered'
  | ConsumerSignal
  | RefreshSignal
  | SchedulerSignal;

/** A running daemon. */
export type Daemon = {
  readonly workerId: string;
  readonly db: Database;
  readonly metrics: Metrics;
  /** Where the probes are; null if they were left out. */
  readonly probesUrl: string | null;
  /** Drains: stops fetching, waits for what runs, hands back the rest. Safe to call more than once. */
  stop(): Promise<void>;
  /** Resolves when the daemon has stopped. */
  readonly stopped: Promise<void>;
};

/**
 * Starts a daemon: migrates if the configuration says so, then works every configured queue.
 *
 * Throws ConfigError, ConnectionFailed, DatabaseStateError or ProbesError; nothing is left running then.
 */
export async function startDaemon(config: Config, options: DaemonOptions): Promise<Daemon> {
  const { logger: log } = options;
  const clock = options.clock ?? systemClock;
  const metrics = createMetrics({ builtInTools: builtInToolNames });
  const catalog = loadModelCatalog();
  const retention = loadRetention();
  const columns = columnSecretStore(parseKeyRing(config.encryption));
  const workerId = `${hostname()}-${process.pid}-${randomUUID().slice(0, 8)}`;

  const connection = await connectDatabase(config, {
    max: 12,
    limits: { ...WORKER_LIMITS, ...options.databaseLimits },
    applicationName: `agentd ${workerId}`,
    onError: (error) => {
      metrics.databaseErrors.inc('pool');
      log.warn({ event: 'database_connection_lost', err: error }, 'an idle connection was lost');
    },
  });
  const { db } = connection;
  const reads = openDatabase({
    url: db.url,
    embedded: db.embedded,
    max: READ_CONNECTIONS,
    applicationName: `agentd reads ${workerId}`,
    limits: { ...READ_LIMITS, ...options.databaseLimits },
    onError: () => metrics.databaseErrors.inc('pool'),
  });
  let boss: PgBoss | null = null;
  let probes: Probes | null = null;
  let tracing: Tracing | null = null;
  let documents: DocumentParts | null = null;
  let credentials: CredentialParts | null = null;
  let mcp: McpParts | null = null;
  let serverTools: McpToolSource | null = null;
  try {
    await requireUsableServer(db);
    if (!db.embedded) await requireSessions(db.url, log);
    if (config.autoMigrate) await migrate(db, config);
    else await requireMigrated(db);

    const leaseSeconds = options.leaseSeconds ?? LEASE_SECONDS;
    const claims = new Batcher(
      (ids: string[]) =>
        retryTransient(() => claimRuns(db, ids, workerId, leaseSeconds), {
          clock,
          onRetry: retried('claim'),
        }),
      { maxItems: 32, maxConcurrent: 2, again: lockedAgain },
    );
    const leases = new Leases({
      clock,
      log,
      leaseMs: leaseSeconds * 1000,
      everyMs: (leaseSeconds * 1000) / 3,
      renew: (held) => renewLeases(db, held, leaseSeconds),
    });
    const checkpoints = new Batcher<Checkpoint, CheckpointResult>(
      async (items) => {
        let sentAt = 0;
        const write = (): Promise<CheckpointResult[]> => {
          sentAt = clock.elapsed();
          const answer = writeCheckpoints(db, items, leaseSeconds);
          options.testSignal?.('checkpoint_sent');
          return answer;
        };
        const results = await retryTransient(write, {
          clock,
          onRetry: retried('checkpoint'),
          // Everything that is not about the content is waited out: what it holds has been paid for.
          retryIf: (error) => !isRefusal(error) && !isLockTimeout(error),
        });
        options.testSignal?.('checkpoint_answered');
        for (const item of items) leases.confirm(item.run, item.epoch, sentAt);
        return results;
      },
      { maxItems: 100, maxConcurrent: 2, again: lockedAgain },
    );
    const reservations = new Batcher(
      (items: BudgetRequest[]) =>
        retryTransient(() => reserveBudgets(db, items), {
          clock,
          onRetry: retried('reserve'),
          // one tenant's slow counter is sorted out of the batch
          retryIf: (error) => isTransient(error) && !isStatementTimeout(error),
        }),
      { maxItems: 32, maxConcurrent: 2, again: lockedAgain },
    );
    const limits = new Batcher(
      (ids: string[]) =>
        retryTransient(() => reachedLimits(db, ids), { clock, onRetry: retried('reached_limits') }),
      { maxItems: 100, maxConcurrent: 2 },
    );
    const places = new Batcher((items: PlaceAsked[]) => takePlaces(db, items, PLACES_AHEAD), {
      maxItems: 100,
      maxConcurrent: 1,
    });
    function retried(where: string): (error: Error) => void {
      return (error) => {
        metrics.databaseErrors.inc(where);
        log.warn({ event: 'database_retry', where, err: error }, 'the database did not answer, trying again');
      };
    }

    const time = new DatabaseTime(clock, {
      gapMs: leaseSeconds * 500,
      onStep: (ms) =>
        log.warn({ event: 'database_clock_set', by_ms: ms }, 'the clock of the database was set'),
    });
    boss = new PgBoss({
      ...bossOptions(db),
      supervise: true,
      // finished jobs go when their time has come, not once a day: a day's worth is one long statement
      maintenanceIntervalSeconds: BOSS_MAINTENANCE_SECONDS,
    });
    boss.on('error', (error) => {
      metrics.databaseErrors.inc('pg-boss');
      log.warn({ event: 'boss_error', err: error }, 'pg-boss reported an error');
    });
    boss.on('warning', (warning) => log.debug({ event: 'boss_warning', warning }, 'pg-boss warns'));
    await boss.start();

    // A run that only reads does not fail because the database restarts; a read that takes too long does not go on.
    const patient: Queryable = {
      query: (statement, values) =>
        retryTransient(() => reads.query(statement, values), {
          clock,
          onRetry: retried('read'),
          retryIf: (error) => isTransient(error) && !isStatementTimeout(error),
        }),
    };
    const secrets = secretReferences({ db: patient, columns });
    const traces = await startTracing({
      config: config.traces,
      workerId,
      version,
      log,
      elapsed: () => clock.elapsed(),
      ending: (runId) => runEnding(db, runId),
      onOutcome: (outcome, spans) => metrics.traces.spans(outcome, spans),
    });
    tracing = traces;
    const limiter = new RateLimiter({
      clock,
      log,
      takePlace: (asked) => places.add(asked),
      learn: (learnt) => learnLimit(db, learnt),
    });
    // workers that live have by then written what they hold
    const isSteady = (): boolean => time.isSteady(Math.max(leaseSeconds * 500, LONGEST_DELAY_MS + 500));
    credentials = openCredentialParts({
      config,
      db,
      clock,
      isSteady,
      log,
      secrets: columns,
      metrics: metrics.credentials,
      onRetry: retried('credential'),
      ...(options.testSignal ? { signal: options.testSignal } : {}),
    });
    documents = openDocumentParts({
      config,
      db,
      clock,
      log,
      secrets,
      limiter,
      workerId,
      leaseSeconds,
      onRetry: retried('document'),
      metrics: metrics.documents,
    });
    mcp = openMcpParts({
      config,
      db,
      clock,
      log,
      secrets,
      freshToken: credentials.freshToken,
      workerId,
      leaseSeconds,
      onRetry: retried('mcp'),
      metrics: metrics.mcp,
    });
    const { settings } = mcp;
    const tools = mcpTools({
      db: patient,
      writes: db,
      clock,
      log,
      limiter,
      settings: (connection, signal, wanted) => mcpSettings(settings, connection, signal, wanted),
      trusted: config.mcp.trusted,
    });
    serverTools = tools;
    const jobs = [
      documents.job,
      mcp.job,
      credentials.job,
      taskRunJob({
        db: patient,
        clock,
        metrics,
        log,
        leases,
        claim: async (runId) => {
          const claimed = await claims.add(runId);
          if (!('refused' in claimed)) options.testSignal?.('claimed');
          return claimed;
        },
        admit: () => admitArrivals(db),
        writeCheckpoint: (checkpoint) => checkpoints.add(checkpoint),
        reserveBudget: (request) => reservations.add(request),
        askLimit: (workspace) => limits.add(workspace),
        limiter,
        ...(traces ? { observe: (run) => traces.run(run) } : {}),
        models: {
          catalog,
          secrets,
          environment: config.openai,
          callTimeoutMs: MODEL_CALL_TIMEOUT_MS,
          ...(options.createModelClient ? { createClient: options.createModelClient } : {}),
        },
        queries: documents.queries,
        memory: new AgentMemory({
          clock,
          log,
          zeps: documents.stores.getzep,
          onRecall: (outcome) => metrics.memory.recalled(outcome),
        }),
        toolSources: [
          builtInTools({ db: patient, now: () => time.now(), queries: documents.queries }),
          tools,
          ...(options.toolSources ?? []),
        ],
      }),
    ];
    const started = boss;
    const signal = options.testSignal ? { signal: options.testSignal } : {};
    const consumers = jobs.flatMap((job) => {
      const queue = config.queues[job.queue];
      return queue
        ? [new Consumer({ job, config: queue, db, boss: started, clock, log, metrics, workerId, ...signal })]
        : [];
    });

    const state = { draining: false, version, requiredMigration: newestMigration };
    const row = (): WorkerRow => ({
      id: workerId,
      hostname: hostname(),
      pid: process.pid,
      version,
      queues: Object.fromEntries(consumers.map((c) => [c.queue, config.queues[c.queue]?.concurrency ?? 0])),
      state: state.draining ? 'draining' : 'running',
      running: consumers.reduce((sum, c) => sum + c.running, 0),
    });
    const schedule = scheduler({ db, clock, log, metrics, ...signal });
    const repair = reconciler({ db, clock, log, metrics, time, leaseMs: leaseSeconds * 1000 });
    const lost = lostRuns({ db, clock, log, metrics, leases });
    const due = credentialSchedule({ db, clock, log, metrics, isSteady });
    const figures = dashboards({ db, clock, log, metrics });
    const usage = usageRollup({ db, clock, log, metrics });
    const allowances = usageLimits({ db, clock, log, metrics });
    const tidying = maintenance({
      db,
      clock,
      log,
      metrics,
      workerId,
      tasks: [
        ...databaseTasks(retention),
        storedObjectTask(
          retention.storedObjectsGraceDays,
          (past) =>
            new ObjectRemover(
              openStorage(config.storageUrl, config.storageKeys),
              past as PastFailures | null,
            ),
        ),
      ],
    });
    const messages = messageEmbedding({
      db,
      clock,
      log,
      metrics,
      leaseSeconds,
      workerId,
      chooseEmbedder: documents.chooseEmbedder,
      lanes: new EmbeddingLanes(
        { clock, limiter, onRequest: metrics.documents.embeddingRequest },
        MESSAGE_LANES,
      ),
      drainMs: config.drainSeconds * 1000,
    });
    const events = taskEvents({ db, clock, log, metrics, workerId });
    const memories = memorySync({
      db,
      clock,
      log,
      metrics,
      zeps: documents.stores.getzep,
      ...(options.storeLookMs === undefined ? {} : { lookMs: options.storeLookMs }),
    });
    const vectors = vectorSync({
      db,
      clock,
      log,
      metrics,
      stores: documents.stores,
      workerId,
      ...(options.storeLookMs === undefined ? {} : { lookMs: options.storeLookMs }),
    });
    const moves =
      config.queues['document-ingest'] === undefined
        ? null
        : embeddingMigrations({
            ...documents.moves,
            db,
            clock,
            log,
            metrics,
            time,
            workerId,
            leaseSeconds,
            onRetry: retried('embedding-migration'),
            ownModel: config.embedding,
          });
    const alive = heartbeat({
      db,
      clock,
      log,
      metrics,
      worker: row,
      time,
      onPaused: (queues) => {
        for (const consumer of consumers) consumer.setPaused(queues.has(consumer.queue));
      },
    });
    const listener = new Listener({
      url: db.url,
      clock,
      log,
      onNotification: (channel, payload) => {
        if (channel === CHANNELS.wake && payload === 'vector-sync') vectors.wake();
        else if (channel === CHANNELS.wake && payload === MESSAGE_EMBEDDING) messages.wake();
        else if (channel === CHANNELS.wake && payload === TASK_EVENTS) events.wake();
        else if (channel === CHANNELS.wake) {
          consumers.find((c) => c.queue === payload)?.wake();
          if (payload === 'credential-refresh') due.wake();
        } else if (channel === CHANNELS.cancel) lost.wake();
        else if (channel === CHANNELS.control) alive.wake();
        else schedule.wake();
      },
      // something may have been said while nobody listened
      onConnect: () => {
        for (const consumer of consumers) consumer.wake();
        schedule.wake();
        alive.wake();
        vectors.wake();
        messages.wake();
        events.wake();
        leases.renewNow();
        documents?.leases.renewNow();
        mcp?.leases.renewNow();
      },
    });

    if (options.probes !== false) {
      probes = await startProbes({ ...config.http, metrics, state, db, logger: log });
    }
    await time.read(() => saveWorker(db, row()));
    if (!db.embedded) await listener.start();
    leases.start();
    documents.leases.start();
    mcp.leases.start();
    for (const service of [
      schedule,
      repair,
      alive,
      lost,
      figures,
      usage,
      allowances,
      due,
      vectors,
      messages,
      events,
      memories,
      tidying,
    ])
      service.start();
    moves?.start();
    for (const consumer of consumers) consumer.start();
    log.info(
      {
        event: 'started',
        worker: workerId,
        version,
        queues: row().queues,
        embedded: db.embedded,
        probes: probes?.url ?? null,
      },
      'agentd is running',
    );

    let stopping: Promise<void> | null = null;
    const { promise: stopped, resolve: resolveStopped } = Promise.withResolvers<void>();
    const drain = async (): Promise<void> => {
      const drained = Promise.all(consumers.map((consumer) => consumer.drain(config.drainSeconds * 1000)));
      await moves?.stop();
      await Promise.all(
        [schedule, repair, figures, usage, allowances, due, vectors, messages, events, memories, tidying].map(
          (service) => service.stop(),
        ),
      );
      // the heartbeat goes on: a worker that drains is not dead
      alive.wake();
      await drained;
      await credentials?.drained();
      await Promise.all([alive, lost].map((service) => service.stop()));
      await listener.stop();
      await saveWorker(db, { ...row(), state: 'stopped', running: 0 });
      await Promise.all(consumers.map((c) => wakeUp(db, c.queue, workerId)));
      await started.stop({ graceful: false });
    };
    const stop = async (): Promise<void> => {
      state.draining = true;
      log.info({ event: 'draining', running: row().running }, 'stopping: waiting for what runs');
      // A database that is away, or a network that swallows everything, must not keep a process for ever: what it
      // holds is taken over when its lease lapses.
      const giveUp = Promise.withResolvers<void>();
      const patience = clock.after(config.drainSeconds * 1000 + ABORT_GRACE_MS, giveUp.resolve);
      const failed = (error: unknown): void =>
        log.warn({ event: 'stop_incomplete', err: error }, 'could not put everything in order');
      await Promise.race([drain().catch(failed), giveUp.promise]);
      patience.cancel();
      leases.stop();
      documents?.leases.stop();
      mcp?.leases.stop();
      const closing = Promise.withResolvers<void>();
      const last = clock.after(ABORT_GRACE_MS, closing.resolve);
      await Promise.race([
        Promise.all([
          listener.stop(),
          probes?.close(),
          tracing?.stop(),
          documents?.close(),
          credentials?.close(),
          serverTools?.close(),
          reads.close(),
          connection.close(),
        ]).catch(failed),
        closing.promise,
      ]);
      last.cancel();
      log.info({ event: 'stopped' }, 'agentd has stopped');
      resolveStopped();
    };
    return {
      workerId,
      db,
      metrics,
      probesUrl: probes?.url ?? null,
      stopped,
      stop() {
        stopping ??= stop();
        return stopping;
      },
    };
  } catch (error) {
    await probes?.close();
    await tracing?.stop();
    await documents?.close().catch(() => {});
    await credentials?.close().catch(() => {});
    await serverTools?.close().catch(() => {});
    await boss?.stop({ graceful: false }).catch(() => {});
    await reads.close().catch(() => {});
    await connection.close().catch(() => {});
    throw error;
  }
}

/** An item whose row somebody holds is tried again by itself. */
function lockedAgain(error: unknown): number | null {
  return isLockTimeout(error) ? WORKER_LIMITS.lockMs : null;
}

/** Throws DatabaseStateError behind a pooler on which statements would fail at random; warns of one that only costs time. */
async function requireSessions(url: string, log: Logger): Promise<void> {
  // What keeps the look from being made is met again, and said better, by whatever comes next.
  const pooling = await detectPooling(url).catch(() => 'direct');
  const advice =
    'Point DATABASE_URL at the server itself or at a pooler in session mode (on Supabase port 5432).';
  if (pooling === 'transactions without prepared statements') {
    throw new DatabaseStateError(
      `DATABASE_URL leads to a pooler in transaction mode that does not keep prepared statements. ${advice} ` +
        'PgBouncer 1.21 or newer with max_prepared_statements above 0 works too, later and slower.',
    );
  }
  if (pooling === 'transactions') {
    log.warn(
      { event: 'pooler_in_transaction_mode', next_step: advice },
      'behind a pooler in transaction mode no notification arrives: work is found by polling, later',
    );
  }
}

/** On a connection of its own, which may wait for locks: another daemon may be migrating. */
async function migrate(db: Database, config: Config): Promise<void> {
  const own = openDatabase({ url: db.url, embedded: db.embedded, max: 4, applicationName: 'agentd migrate' });
  try {
    await migrateUp(own, config.queues);
  } finally {
    await own.close();
  }
}

/** Without AGENTD_AUTO_MIGRATE the schema must be there. A newer one is fine: neighbours work on one schema. */
async function requireMigrated(db: Database): Promise<void> {
  const pending = (await migrationStatus(db)).filter((migration) => migration.appliedAt === null);
  if (pending.length > 0) {
    throw new DatabaseStateError(
      `The database lacks ${pending.length} migrations (${pending.map((m) => m.name).join(', ')}). ` +
        'Run agentd migrate up, or set AGENTD_AUTO_MIGRATE=true.',
    );
  }
}
