/**
 * A small pool of threads that read documents, so that the daemon's own thread never waits for one.
 *
 * A thread is started when there is none, or when a document has waited for some time and fewer than `threads` exist: each is memory, and
 * learns anew to be fast. It reads one document at a time, and ends when it has been idle for `idleMs`. A document's deadline, its abort, a
 * crash or running out of memory end the thread and fail that document alone: the next one gets a new thread. Passages come in slices that are
 * asked for one by one, since a message of 2,000 of them would be tens of milliseconds of copying on the thread that receives it.
 */
import { isMarkedAsUntransferable, Worker } from 'node:worker_threads';
import { type Clock, systemClock, type Timer } from '../../clock.ts';
import type { ThreadEnd } from '../../telemetry/document-metrics.ts';
import type { ChunkOptions } from './chunk.ts';
import {
  type DocumentChunk,
  DocumentError,
  type DocumentHints,
  type DocumentLimits,
  type ProcessedDocument,
} from './document.ts';
import { timedOut, tooLarge } from './extract/failures.ts';
import type { PdfEngineName } from './extract/pdf-engine.ts';
import type { ProcessRequest, ThreadAnswer } from './worker-protocol.ts';

export type DocumentWorkersOptions = {
  readonly clock?: Clock;
  /** Documents that are read at once, 1 unless told. */
  readonly threads?: number;
  /** Milliseconds after which a thread without work ends. */
  readonly idleMs?: number;
  readonly pdfEngine?: PdfEngineName;
  /** Megabytes of JavaScript objects that a thread may hold; PDFium's own memory is bounded apart from it. */
  readonly heapMb?: number;
  /** Megabytes that the process may grow by while documents are read, whatever of it grows. */
  readonly growthMb?: number;
  /** A thread was ended in the middle of a document: told why. */
  readonly onKilled?: (reason: ThreadEnd) => void;
};

/**
 * What the process may grow by while threads read, all together: its heap, PDFium's half gigabyte, the file, and room. Buffers are not part of a
 * thread's heap, and nobody else bounds them: pdf.js inflates a stream as a whole, and 3 MB of a file became 5 GB.
 */
const GROWTH_MB = 2560;
/** How often that is looked at, in milliseconds; a second of inflating is some hundred megabytes. */
const LOOK_MS = 200;
/** So long a thread may take to say what it holds, in milliseconds. It is asked in the midst of its work, and usually takes a few. */
const ANSWER_MS = 1_000;
/** A thread's heap. The text of 20 million characters, its lines and its passages take about half of it. */
const HEAP_MB = 1536;
const IDLE_MS = 30_000;
/** So long a document waits for the threads that there are, in milliseconds: most are read in less. */
const PATIENCE_MS = 200;
/** A thread is replaced after as many documents: pdf.js keeps memory that it should not. */
const DOCUMENTS_PER_THREAD = 200;

type Job = {
  readonly bytes: Uint8Array;
  readonly hints: DocumentHints;
  readonly limits: DocumentLimits;
  readonly chunking: ChunkOptions;
  /** When it came, by the clock's `elapsed`. */
  readonly since: number;
  readonly resolve: (document: ProcessedDocument) => void;
  readonly reject: (error: unknown) => void;
  /** Takes the job's listener off its signal. */
  readonly forget: () => void;
};

type Thread = {
  readonly worker: Worker;
  job: Job | null;
  deadline: Timer | null;
  idle: Timer | null;
  documents: number;
  /** Settles when it is gone; null while it is not ending. */
  ended: Promise<unknown> | null;
  facts: { readonly facts: Omit<ProcessedDocument, 'chunks'>; readonly chunkCount: number } | null;
  chunks: DocumentChunk[];
};

/** Runs from the sources and from the build: the thread's file is the neighbour with the same ending as this one. */
const THREAD_FILE = new URL(
  `./worker-thread${import.meta.url.endsWith('.ts') ? '.ts' : '.js'}`,
  import.meta.url,
);

export class DocumentWorkers {
  readonly #clock: Clock;
  readonly #maxThreads: number;
  readonly #idleMs: number;
  readonly #pdfEngine: PdfEngineName;
  readonly #heapMb: number;
  readonly #growthBytes: number;
  readonly #onKilled: (reason: ThreadEnd) => void;
  readonly #threads = new Set<Thread>();
  readonly #queue: Job[] = [];
  #isStopped = false;
  /** Until the first that waits has waited long enough. */
  #patience: Timer | null = null;
  /** The next look at the process's memory. */
  #look: Timer | null = null;
  /** The least that the process has had since there was no thread, in bytes. */
  #leastRss = Number.POSITIVE_INFINITY;

  constructor(options: DocumentWorkersOptions = {}) {
    this.#clock = options.clock ?? systemClock;
    this.#maxThreads = options.threads ?? 1;
    this.#idleMs = options.idleMs ?? IDLE_MS;
    this.#pdfEngine = options.pdfEngine ?? 'pdfium';
    this.#heapMb = options.heapMb ?? HEAP_MB;
    this.#growthBytes = (options.growthMb ?? GROWTH_MB) * 1024 * 1024;
    this.#onKilled = options.onKilled ?? (() => {});
  }

  /** Threads that are alive. */
  get threads(): number {
    return this.#threads.size;
  }

  /**
   * Extracts and chunks. The bytes are handed to the thread where they fill their buffer: the caller's view of them is empty afterwards.
   * Documents beyond the number of threads wait in order; the deadline of `limits` counts from when a thread takes the document.
   *
   * @throws DocumentError; the signal's reason when it is aborted
   */
  process(
    bytes: Uint8Array,
    hints: DocumentHints,
    limits: DocumentLimits,
    chunking: ChunkOptions,
    signal?: AbortSignal,
  ): Promise<ProcessedDocument> {
    return new Promise((resolve, reject) => {
      if (this.#isStopped) return reject(new Error('The document workers are stopped.'));
      if (signal?.aborted) return reject(signal.reason);
      const abort = (): void => this.#abort(job, signal?.reason);
      const forget = (): void => signal?.removeEventListener('abort', abort);
      const since = this.#clock.elapsed();
      const job: Job = { bytes, hints, limits, chunking, since, resolve, reject, forget };
      signal?.addEventListener('abort', abort, { once: true });
      this.#queue.push(job);
      this.#dispatch();
    });
  }

  /** Ends every thread; documents that are being read or wait are rejected. */
  async stop(): Promise<void> {
    this.#isStopped = true;
    this.#patience?.cancel();
    this.#look?.cancel();
    const stopped = new Error('The document workers are stopped.');
    for (const job of this.#queue.splice(0)) settle(job, () => job.reject(stopped));
    const threads = [...this.#threads];
    await Promise.all(threads.map((thread) => thread.ended ?? this.#end(thread, stopped)));
  }

  #dispatch(): void {
    while (this.#queue.length > 0) {
      const thread =
        [...this.#threads].find((candidate) => candidate.job === null && !candidate.ended) ?? this.#another();
      if (!thread) return;
      const job = this.#queue.shift();
      if (job) this.#assign(thread, job);
    }
  }

  /** A new thread, if the first that waits has waited long enough for one. Else it is looked at again when it has. */
  #another(): Thread | null {
    if (this.#threads.size >= this.#maxThreads) return null;
    const waited = this.#clock.elapsed() - (this.#queue[0]?.since ?? 0);
    if (this.#threads.size === 0 || waited >= PATIENCE_MS) return this.#start();
    this.#patience ??= this.#clock.after(PATIENCE_MS - waited, () => {
      this.#patience = null;
      this.#dispatch();
    });
    return null;
  }

  #start(): Thread {
    if (this.#threads.size === 0) this.#leastRss = process.memoryUsage.rss();
    const worker = new Worker(THREAD_FILE, {
      // short-lived objects are most of what it makes: more room for them is memory and no speed
      resourceLimits: { maxOldGenerationSizeMb: this.#heapMb, maxYoungGenerationSizeMb: 16 },
      // it needs no setting, and a fault of a parser shall find no key
      env: {},
      execArgv: [],
      stdout: true,
      stderr: true,
    });
    // what parsers print about a file is not for the log; unread, it would be kept
    worker.stdout.resume();
    worker.stderr.resume();
    const thread: Thread = {
      worker,
      job: null,
      deadline: null,
      idle: null,
      documents: 0,
      ended: null,
      facts: null,
      chunks: [],
    };
    worker.on('message', (message: ThreadAnswer) => this.#receive(thread, message));
    worker.on('error', (error) => void this.#end(thread, crash(error, this.#heapMb)));
    worker.on('exit', (code) => void this.#end(thread, crash(new Error(`exit code ${code}`), this.#heapMb)));
    this.#threads.add(thread);
    return thread;
  }

  #assign(thread: Thread, job: Job): void {
    thread.idle?.cancel();
    thread.idle = null;
    thread.job = job;
    thread.documents++;
    thread.worker.ref();
    const { timeoutMs } = job.limits;
    thread.deadline = this.#clock.after(timeoutMs, () => void this.#end(thread, timedOut(timeoutMs)));
    this.#watch();
    const bytes = ownBytes(job.bytes);
    const { hints, limits, chunking } = job;
    const request: ProcessRequest = {
      kind: 'process',
      bytes,
      hints,
      limits,
      chunking,
      pdfEngine: this.#pdfEngine,
    };
    thread.worker.postMessage(request, [bytes.buffer as ArrayBuffer]);
  }

  /** Looks at the process's memory now and then while anything is read. */
  #watch(): void {
    this.#look ??= this.#clock.after(LOOK_MS, () => {
      this.#relieve()
        .catch(() => {})
        .finally(() => {
          this.#look = null;
          if ([...this.#threads].some(({ job }) => job !== null)) this.#watch();
        });
    });
  }

  /** Whether the process has grown too much since there was no thread, or since it was smallest. */
  #isTooLarge(): boolean {
    const rss = process.memoryUsage.rss();
    this.#leastRss = Math.min(this.#leastRss, rss);
    return rss - this.#leastRss > this.#growthBytes;
  }

  /**
   * Ends one thing that holds memory when there is too much of it, and leaves the rest to the next look: threads that only keep what they had,
   * then the thread that holds the most. What the others read is not to blame for it.
   */
  async #relieve(): Promise<void> {
    const threads = [...this.#threads];
    // one that is ending gives its memory back
    if (!this.#isTooLarge() || threads.some(({ ended }) => ended)) return;
    const idle = threads.filter(({ job }) => job === null);
    if (idle.length > 0) {
      await Promise.all(idle.map((thread) => this.#end(thread, null)));
      return;
    }
    const held = await Promise.all(
      threads.map(async (thread) => ({ thread, job: thread.job, bytes: await this.#bytesOf(thread) })),
    );
    // one of them may have died, or been read, while they were asked: then it is no longer what it was
    if (
      !this.#isTooLarge() ||
      held.some(({ thread, job, bytes }) => bytes === null || thread.ended || thread.job !== job)
    )
      return;
    const size = ({ bytes }: { bytes: number | null }): number => bytes ?? 0;
    const largest = held.reduce((most, each) => (size(each) > size(most) ? each : most));
    const isProven =
      threads.length === 1 || (Number.isFinite(largest.bytes) && size(largest) > this.#growthBytes);
    const most = Math.round(this.#growthBytes / 1024 / 1024);
    await this.#end(largest.thread, isProven ? grewTooMuch(most) : grewTogether(most));
  }

  /**
   * What a thread holds: objects, buffers, and PDFium's memory. Infinite of one that does not say so in time: it does not come to itself. Null of
   * one that starts or dies.
   */
  async #bytesOf({ worker }: Thread): Promise<number | null> {
    let timer: Timer | null = null;
    const late = new Promise<number>((resolve) => {
      timer = this.#clock.after(ANSWER_MS, () => resolve(Number.POSITIVE_INFINITY));
    });
    const said = worker.getHeapStatistics().then(
      (heap) => heap.total_heap_size + heap.external_memory + heap.malloced_memory,
      () => null,
    );
    return Promise.race([said, late]).finally(() => timer?.cancel());
  }

  #receive(thread: Thread, message: ThreadAnswer): void {
    const { job } = thread;
    if (!job) return;
    if (message.kind === 'failed') {
      const error = new DocumentError(message.code, message.message, { transient: message.isTransient });
      this.#release(thread);
      settle(job, () => job.reject(error));
      this.#dispatch();
      return;
    }
    if (message.kind === 'done') thread.facts = message;
    else thread.chunks.push(...message.chunks);
    const { facts, chunks } = thread;
    if (!facts) return;
    if (chunks.length < facts.chunkCount) {
      // after whatever else the loop has to do: slices of a large document do not follow each other at once
      setImmediate(() => thread.worker.postMessage({ kind: 'more' }));
      return;
    }
    this.#release(thread);
    settle(job, () => job.resolve({ ...facts.facts, chunks }));
    this.#dispatch();
  }

  /** The thread is free, or has read enough. */
  #release(thread: Thread): void {
    thread.deadline?.cancel();
    thread.deadline = null;
    thread.job = null;
    thread.facts = null;
    thread.chunks = [];
    if (thread.documents >= DOCUMENTS_PER_THREAD) {
      void this.#end(thread, null);
      return;
    }
    thread.worker.unref();
    thread.idle = this.#clock.after(this.#idleMs, () => void this.#end(thread, null));
  }

  /**
   * Ends a thread, whatever it is doing, and fails its document. Once only: a crash is an error and an exit. It counts until it is gone:
   * the next thread starts when this one's memory is given back.
   */
  async #end(thread: Thread, reason: unknown): Promise<void> {
    if (thread.ended) return;
    thread.deadline?.cancel();
    thread.idle?.cancel();
    const { job } = thread;
    thread.job = null;
    thread.ended = thread.worker.terminate();
    if (job && !this.#isStopped) this.#onKilled(killedBy(reason));
    if (job) settle(job, () => job.reject(reason));
    await thread.ended;
    this.#threads.delete(thread);
    if (!this.#isStopped) this.#dispatch();
  }

  #abort(job: Job, reason: unknown): void {
    const place = this.#queue.indexOf(job);
    if (place >= 0) {
      this.#queue.splice(place, 1);
      settle(job, () => job.reject(reason));
      return;
    }
    for (const thread of this.#threads) if (thread.job === job) void this.#end(thread, reason);
  }
}

const grewTooMuch = (megabytes: number): DocumentError =>
  tooLarge(`Reading the document takes more than ${megabytes} MB of memory`);

/** It was the largest, but might have been read alone. */
const grewTogether = (megabytes: number): DocumentError =>
  new DocumentError(
    'too_large',
    `Reading the document and others beside it took more than ${megabytes} MB of memory, and this one the largest part of it. It is tried again; if it goes on, split it and upload its parts.`,
    { transient: true },
  );

function killedBy(reason: unknown): ThreadEnd {
  if (!(reason instanceof DocumentError)) return 'aborted';
  if (reason.code === 'timeout') return 'timeout';
  return reason.code === 'too_large' ? 'memory' : 'crash';
}

function settle(job: Job, how: () => void): void {
  job.forget();
  how();
}

/** Bytes whose buffer is theirs alone; others (slices, Node's pooled buffers) are copied. */
function ownBytes(bytes: Uint8Array): Uint8Array {
  const { buffer } = bytes;
  const isWhole = bytes.byteOffset === 0 && bytes.byteLength === buffer.byteLength;
  return isWhole && buffer instanceof ArrayBuffer && !isMarkedAsUntransferable(buffer)
    ? bytes
    : new Uint8Array(bytes);
}

function crash(error: unknown, heapMb: number): DocumentError {
  const { code, message } = (error ?? {}) as { code?: string; message?: string };
  if (code === 'ERR_WORKER_OUT_OF_MEMORY')
    return tooLarge(`Reading the document takes more than ${heapMb} MB of memory`);
  return new DocumentError(
    'worker_crashed',
    `The thread that read the document died (${String(message).slice(0, 200)}). It is tried again; if it goes on, upload the document in another form.`,
    { transient: true, cause: error },
  );
}
