/**
 * Keeps `concurrency` handlers of one queue busy.
 *
 * Modes
 *
 * - **awake**: work is waiting, or may be. Jobs are fetched as slots (and the buffer) empty; when a fetch
 *   comes back short there is no more, and the consumer falls asleep.
 * - **asleep**: slots are free and nothing waits. A row in agentd.sleepers says so; the next insert takes it
 *   away and notifies. After writing it the consumer polls once more, because an insert may have committed
 *   between, and again a moment later, for a transaction that was under way. A notification, or the slow
 *   poll, fetches again, and a short fetch writes the row again.
 * - **draining**: nothing is fetched; running handlers are waited for, then told to stop and handed back.
 *
 * The buffer holds claimed jobs that have no slot yet, so that a slot never waits for a fetch. It is as
 * large as what the handlers finish in BUFFER_MS, and empty where jobs are long: a claimed job must not wait. When no
 * handler comes back for BUFFER_PATIENCE_MS, what they took before says nothing, and the buffer is handed back.
 */
import type { PgBoss } from 'pg-boss';
import type { Logger } from 'pino';
import type { Clock, Timer } from '../clock.ts';
import type { QueueConfig } from '../config.ts';
import { settledIds } from '../db/boss.ts';
import type { Database } from '../db/database.ts';
import { fallAsleep, type JobRun, wakeUp } from '../db/jobs.ts';
import { retryTransient } from '../db/retry.ts';
import type { Metrics } from '../telemetry/metrics.ts';
import { Batcher } from './batcher.ts';
import { JobAborted, PermanentError } from './errors.ts';
import type { Job } from './job.ts';
import { type FetchedJob, type Outcome, type Settlement, settle } from './settlement.ts';

/** Finished jobs are about to be settled, or were. */
export type ConsumerSignal = 'settle_sent' | 'settle_answered';

export type ConsumerOptions = {
  readonly job: Job;
  readonly config: QueueConfig;
  readonly db: Database;
  readonly boss: PgBoss;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly workerId: string;
  /** Longest wait between fetches in milliseconds; the guarantee behind notifications. */
  readonly pollMs?: number;
  /** For tests. */
  readonly signal?: (at: ConsumerSignal) => void;
};

const BUFFER_MS = 25;
const BUFFER_PATIENCE_MS = 250;
const SETTLE_MS = 25;
const POLL_MS = 1_000;
/** After falling asleep: long enough for a transaction that was under way to commit. */
const LOOK_AGAIN_MS = 30;
/** Without notifications across sessions the poll is what picks work up. */
const EMBEDDED_POLL_MS = 250;
/** Jobs that take longer than this on average are not buffered. */
const SHORT_JOB_MS = 1_000;

type Running = {
  readonly job: FetchedJob;
  readonly controller: AbortController;
  /** `wanted`: it would lend its slot, but as many are lent as may be. */
  slot: 'own' | 'wanted' | 'lent';
};

export class Consumer {
  readonly queue: string;
  readonly #options: ConsumerOptions;
  readonly #pollMs: number;
  readonly #running = new Map<string, Running>();
  readonly #settler: Batcher<Settlement, JobRun['outcome']>;
  #buffer: FetchedJob[] = [];
  #mode: 'awake' | 'asleep' | 'draining' = 'awake';
  #fetching: Promise<void> | null = null;
  #fetchAgain = false;
  #lookAgain = false;
  #paused = false;
  #poll: Timer | null = null;
  #heartbeat: Timer | null = null;
  /** Moving average of a handler's duration in ms; null until one has finished. */
  #averageMs: number | null = null;
  /** Of the running jobs, those that have lent their slots. */
  #lent = 0;
  /** When a handler finished last. */
  #finishedAt = 0;
  #stranded: Timer | null = null;
  #stop = new AbortController();
  #idle: (() => void)[] = [];

  constructor(options: ConsumerOptions) {
    this.#options = options;
    this.queue = options.job.queue;
    this.#pollMs = options.pollMs ?? (options.db.embedded ? EMBEDDED_POLL_MS : POLL_MS);
    const { db, boss, clock, workerId, config, job, metrics, log } = options;
    const context = {
      db,
      boss,
      queue: this.queue,
      retryLimit: config.retryLimit,
      workerId,
      keyOf: job.key,
    };
    this.#settler = new Batcher(
      async (batch) => {
        const send = (): Promise<JobRun['outcome'][]> => {
          const answer = settle(context, batch);
          options.signal?.('settle_sent');
          return answer;
        };
        const outcomes = await retryTransient(send, {
          clock,
          onRetry: (error) => {
            metrics.databaseErrors.inc('settle');
            log.warn({ event: 'settle_retry', err: error }, 'could not settle jobs, trying again');
          },
        });
        options.signal?.('settle_answered');
        metrics.consumer.settledBatch(this.queue, batch.length);
        return outcomes;
      },
      { maxItems: 500, maxConcurrent: 1, delayMs: SETTLE_MS },
    );
  }

  /** Handlers running now. */
  get running(): number {
    return this.#running.size;
  }

  start(): void {
    this.#pump();
    const seconds = this.#options.config.heartbeatSeconds;
    if (seconds !== null) this.#beat((seconds * 1000) / 3);
  }

  /** Looks for work now. Calls during a fetch cause one more fetch, not many. */
  wake(): void {
    this.#options.metrics.consumer.woken(this.queue, 'notify');
    // Whoever notified has taken our row.
    if (this.#mode === 'asleep') this.#mode = 'awake';
    this.#pump();
  }

  /** An operator's pause: nothing more is fetched or begun; what runs goes on. */
  setPaused(paused: boolean): void {
    const changed = this.#paused !== paused;
    this.#paused = paused;
    if (!changed) return;
    const { log } = this.#options;
    if (paused) {
      log.info({ event: 'queue_paused', queue: this.queue }, 'an operator paused the queue');
      this.#handBackBuffer();
      return;
    }
    log.info({ event: 'queue_resumed', queue: this.queue }, 'an operator let the queue go on');
    this.#pump();
  }

  /** Stops one running job, if this process has it. */
  abort(jobId: string, code: JobAborted['code']): void {
    this.#running.get(jobId)?.controller.abort(new JobAborted(code));
  }

  /**
   * Ends the consumer: nothing is fetched any more, running handlers get `patienceMs`, then their signal
   * fires and their jobs are handed back. Resolves when everything is settled.
   */
  async drain(patienceMs: number): Promise<void> {
    this.#mode = 'draining';
    this.#poll?.cancel();
    const timer = this.#options.clock.after(patienceMs, () => {
      // a database that is away must not keep the drain from telling the handlers
      this.#stop.abort(new JobAborted('drain'));
      for (const { controller } of this.#running.values()) controller.abort(new JobAborted('drain'));
    });
    await this.#fetching;
    this.#stranded?.cancel();
    this.#handBackBuffer();
    await wakeUp(this.#options.db, this.queue, this.#options.workerId).catch(() => {
      // A row too many costs an insert a notification; the reconciler sweeps it up.
    });
    if (this.#running.size > 0) await new Promise<void>((resolve) => this.#idle.push(resolve));
    timer.cancel();
    this.#heartbeat?.cancel();
    await this.#settler.drained();
    this.#stop.abort(new JobAborted('drain'));
  }

  #pump(): void {
    if (this.#mode === 'draining' || this.#paused) return;
    if (this.#fetching) {
      this.#fetchAgain = true;
      return;
    }
    const wanted = this.#wanted();
    if (wanted <= 0) {
      // Full: the slot that becomes free next has to look.
      if (this.#mode === 'asleep') this.#mode = 'awake';
      return;
    }
    this.#poll?.cancel();
    this.#fetching = this.#fetch(wanted).finally(() => {
      this.#fetching = null;
      const again = this.#fetchAgain;
      this.#fetchAgain = false;
      if (again) this.#pump();
      else if (this.#mode !== 'draining') this.#schedulePoll();
    });
  }

  /** Free slots plus what the buffer lacks; 0 while the buffer is more than half full. */
  #wanted(): number {
    const target = this.#bufferTarget();
    const free = this.#free();
    if (free <= 0 && this.#buffer.length > target / 2) return 0;
    return Math.max(free + target - this.#buffer.length, 0);
  }

  /** Slots that no job has, those that were lent among them. */
  #free(): number {
    return this.#options.config.concurrency + this.#lent - this.#running.size;
  }

  #bufferTarget(): number {
    if (this.#averageMs === null || this.#averageMs > SHORT_JOB_MS || this.#isStuck()) return 0;
    const { concurrency } = this.#options.config;
    return Math.min(concurrency, Math.ceil((BUFFER_MS * concurrency) / Math.max(this.#averageMs, 1)));
  }

  #isStuck(): boolean {
    return this.#options.clock.elapsed() - this.#finishedAt > BUFFER_PATIENCE_MS;
  }

  /** Hands the buffer back when no handler makes room for it: another process may have a slot. */
  #watchBuffer(): void {
    if (this.#stranded) return;
    this.#stranded = this.#options.clock.after(BUFFER_PATIENCE_MS, () => {
      this.#stranded = null;
      if (this.#isStuck()) this.#handBackBuffer();
      else if (this.#buffer.length > 0) this.#watchBuffer();
    });
  }

  #handBackBuffer(): void {
    for (const job of this.#buffer.splice(0)) this.#settleLater(job, handBack, 0);
    this.#options.metrics.consumer.buffered(this.queue, 0);
  }

  async #fetch(wanted: number): Promise<void> {
    const { log, metrics } = this.#options;
    try {
      if (this.#mode === 'asleep') await this.#admit();
      const found = await this.#take(wanted);
      if (this.#mode === 'draining') return;
      if (found >= wanted) this.#mode = 'awake';
      else if (this.#mode === 'awake' || found > 0) await this.#fallAsleep();
    } catch (error) {
      if (this.#stop.signal.aborted) return;
      metrics.databaseErrors.inc('fetch');
      log.error({ event: 'fetch_failed', queue: this.queue, err: error }, 'could not fetch jobs');
    }
  }

  /** Fetches at most so many jobs and starts or buffers them. Waits for a database that is away. */
  async #take(wanted: number): Promise<number> {
    const jobs = await this.#patiently(() =>
      this.#options.boss.fetch<Record<string, unknown>>(this.queue, { batchSize: wanted }),
    );
    this.#accept(jobs);
    return jobs.length;
  }

  async #admit(): Promise<void> {
    const { admit } = this.#options.job;
    if (admit) await this.#patiently(admit);
  }

  #patiently<T>(work: () => Promise<T>): Promise<T> {
    const { clock, log, metrics } = this.#options;
    return retryTransient(work, {
      clock,
      signal: this.#stop.signal,
      onRetry: (error) => {
        metrics.databaseErrors.inc('fetch');
        log.warn(
          { event: 'fetch_retry', queue: this.queue, err: error },
          'could not fetch jobs, trying again',
        );
      },
    });
  }

  async #fallAsleep(): Promise<void> {
    const { db, workerId } = this.#options;
    await this.#patiently(() => fallAsleep(db, this.queue, workerId));
    if (this.#mode === 'draining') return;
    this.#mode = 'asleep';
    this.#lookAgain = !db.embedded;
    // what was committed before the row was, was not told to us
    await this.#admit();
    const free = this.#wanted();
    if (free > 0 && (await this.#take(free)) >= free && !this.#isDraining()) this.#mode = 'awake';
  }

  /** Asked after a wait, in which the mode may have changed. */
  #isDraining(): boolean {
    return this.#mode === 'draining';
  }

  #schedulePoll(): void {
    this.#poll?.cancel();
    const jitter = 0.9 + Math.random() * 0.2;
    const delay = this.#lookAgain ? LOOK_AGAIN_MS : this.#pollMs;
    this.#lookAgain = false;
    this.#poll = this.#options.clock.after(delay * jitter, () => {
      this.#options.metrics.consumer.woken(this.queue, 'poll');
      this.#pump();
    });
  }

  #accept(jobs: readonly FetchedJob[]): void {
    const { metrics } = this.#options;
    metrics.consumer.fetched(this.queue, jobs.length);
    const mayBegin = this.#mode !== 'draining' && !this.#paused;
    for (const job of jobs) {
      if (mayBegin && this.#free() > 0) this.#begin(job);
      else this.#buffer.push(job);
    }
    metrics.consumer.buffered(this.queue, this.#buffer.length);
    if (!mayBegin) this.#handBackBuffer();
    else if (this.#buffer.length > 0) this.#watchBuffer();
  }

  #begin(job: FetchedJob): void {
    const controller = new AbortController();
    const running: Running = { job, controller, slot: 'own' };
    this.#running.set(job.id, running);
    const { metrics } = this.#options;
    metrics.jobs.started(this.queue);
    metrics.jobs.running(this.queue, this.#running.size);
    const started = performance.now();
    void this.#handle(running).then((outcome) => {
      const duration = performance.now() - started;
      this.#averageMs = this.#averageMs === null ? duration : this.#averageMs * 0.95 + duration * 0.05;
      this.#running.delete(job.id);
      if (running.slot === 'lent') this.#takeBack();
      // no slot became free with one that was lent
      else this.#finishedAt = this.#options.clock.elapsed();
      metrics.jobs.running(this.queue, this.#running.size);
      this.#settleLater(job, outcome, duration);
      this.#beginNext();
      if (this.#running.size === 0) {
        this.#settler.hurry();
        for (const resolve of this.#idle.splice(0)) resolve();
      }
    });
  }

  /** What has been waiting for a slot, if there is one. */
  #beginNext(): void {
    const next = this.#mode === 'draining' || this.#free() <= 0 ? undefined : this.#buffer.shift();
    this.#options.metrics.consumer.buffered(this.queue, this.#buffer.length);
    if (next) this.#begin(next);
    // Asleep there is nothing to fetch: a notification or the poll would have told.
    if (this.#mode === 'awake') this.#pump();
  }

  #lend(running: Running): void {
    if (running.slot === 'lent' || this.#running.get(running.job.id) !== running) return;
    running.slot = 'wanted';
    if (this.#lent >= this.#options.job.lends) return;
    running.slot = 'lent';
    this.#lent++;
    this.#beginNext();
  }

  /** A job that had lent its slot is over: another that would lend its own does. */
  #takeBack(): void {
    this.#lent--;
    for (const running of this.#running.values()) {
      if (running.slot !== 'wanted') continue;
      this.#lend(running);
      return;
    }
  }

  async #handle(running: Running): Promise<Outcome> {
    const { log } = this.#options;
    const { job, controller } = running;
    try {
      const answer = await this.#options.job.handle(job.data, {
        signal: controller.signal,
        job: { id: job.id, attempt: job.retryCount + 1 },
        log,
        lendSlot: () => this.#lend(running),
      });
      return answer ? { kind: 'again', afterMs: answer.afterMs, why: 'snoozed' } : { kind: 'completed' };
    } catch (error) {
      if (error instanceof JobAborted && error.code === 'drain') return handBack;
      if (error instanceof JobAborted && error.code !== 'deadline') return { kind: 'completed' };
      const failure = error instanceof Error ? error : new Error(String(error));
      log.error({ event: 'job_failed', queue: this.queue, job_id: job.id, err: failure }, 'a job failed');
      const code = (failure as { code?: unknown }).code;
      return {
        kind: 'failed',
        permanent: failure instanceof PermanentError,
        code: typeof code === 'string' ? code : failure.name,
        message: failure.message,
      };
    }
  }

  #settleLater(job: FetchedJob, outcome: Outcome, durationMs: number): void {
    const { metrics, log } = this.#options;
    this.#settler.add({ job, outcome, durationMs }).then(
      (settled) => metrics.jobs.settled(this.queue, settled, durationMs / 1000),
      (error: unknown) => {
        // pg-boss takes the job for lost when it expires and has it done again; nothing is silently dropped.
        metrics.databaseErrors.inc('settle');
        log.error(
          { event: 'settle_failed', queue: this.queue, job_id: job.id, err: error },
          'could not settle a job',
        );
      },
    );
  }

  #beat(everyMs: number): void {
    this.#heartbeat = this.#options.clock.after(everyMs, () => {
      const held = [...[...this.#running.values()].map((r) => r.job), ...this.#buffer];
      const done =
        held.length === 0
          ? Promise.resolve()
          : this.#options.boss
              .touch(
                this.queue,
                held.map((job) => ({ id: job.id, retryCount: job.retryCount })),
              )
              .then((answer) => {
                const kept = new Set(settledIds(answer));
                const lost = held.filter((job) => !kept.has(job.id));
                if (lost.length > 0) this.#options.metrics.consumer.lost(this.queue, lost.length);
                for (const job of lost) this.abort(job.id, 'lease_lost');
              });
      done
        .catch((error: unknown) => {
          this.#options.metrics.databaseErrors.inc('heartbeat');
          this.#options.log.warn(
            { event: 'heartbeat_failed', queue: this.queue, err: error },
            'could not send heartbeats of jobs',
          );
        })
        .finally(() => {
          if (!this.#stop.signal.aborted) this.#beat(everyMs);
        });
    });
  }
}

const handBack: Outcome = { kind: 'again', afterMs: 0, why: 'handed_back' };
