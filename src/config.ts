/**
 * Environment and config/*.json → one typed, frozen object, or a clear error.
 *
 * Every variable is validated when the process starts; nothing else in the project reads `process.env`.
 */
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { z } from 'zod';

/** How pg-boss treats a queue's jobs and how many of them this process works at once. */
export type QueueConfig = {
  /** Handlers running at once in one process. */
  readonly concurrency: number;
  /** Attempts after the first before a job goes to the dead letters. */
  readonly retryLimit: number;
  /** First delay of the exponential backoff, in seconds. */
  readonly retryDelaySeconds: number;
  readonly retryDelayMaxSeconds: number;
  /** After this many seconds pg-boss takes an active job for lost. */
  readonly expireSeconds: number;
  /** Heartbeat interval in seconds (at least 10), or null where the work has a lease of its own. */
  readonly heartbeatSeconds: number | null;
  /** How long finished jobs stay in pg-boss; their history is in `agentd.job_runs`. */
  readonly deleteAfterSeconds: number;
  /** Jobs of one workspace that may run at once unless its plan says otherwise. */
  readonly workspaceCeiling: number;
  /** Jobs of one workspace that may wait inside pg-boss beside the running ones; 0 makes the ceiling strict. */
  readonly workspaceBuffer: number;
};

/** Where and which OpenTelemetry traces go. */
export type TracesConfig = {
  /** The whole URL of an OTLP/HTTP receiver for traces. */
  readonly url: string;
  /** Secrets: a vendor's key is one of them. */
  readonly headers: Readonly<Record<string, string>>;
  readonly serviceName: string;
  readonly sampler: {
    readonly name: (typeof SAMPLERS)[number];
    /** Share of the traces, 0 to 1; only with a sampler by ratio. */
    readonly ratio: number;
  };
};

/** What the operator says of tool servers (MCP). */
export type McpConfig = {
  /** Commands that connections may name as `stdio:NAME`; none unless listed. */
  readonly stdio: Readonly<
    Record<
      string,
      {
        readonly command: string;
        readonly args: readonly string[];
        /** All of the command's environment, beside a PATH. */
        readonly env: Readonly<Record<string, string>>;
        readonly cwd?: string | undefined;
      }
    >
  >;
  /** Origins such as `https://tools.example.com`, or `stdio:NAME`, whose tools are believed what they say of themselves. */
  readonly trusted: readonly string[];
};

const SAMPLERS = [
  'always_on',
  'always_off',
  'traceidratio',
  'parentbased_always_on',
  'parentbased_always_off',
  'parentbased_traceidratio',
] as const;

/** Everything that is in force for one process. Immutable. */
export type Config = {
  /** Null means the embedded database. */
  readonly databaseUrl: string | null;
  readonly dataDir: string;
  readonly embeddedPort: number;
  readonly autoMigrate: boolean;
  readonly openai: { readonly apiKey: string | null; readonly baseUrl: string | null };
  readonly embedding: { readonly model: string; readonly dimensions: number };
  /** As given; providers/secrets.ts parses them. */
  readonly encryption: {
    readonly ENCRYPTION_KEY?: string | undefined;
    readonly ENCRYPTION_KEYS?: string | undefined;
  };
  readonly storageUrl: string;
  /** As given; providers/object-storage.ts signs with them. */
  readonly storageKeys: {
    readonly AWS_ACCESS_KEY_ID?: string | undefined;
    readonly AWS_SECRET_ACCESS_KEY?: string | undefined;
    readonly AWS_SESSION_TOKEN?: string | undefined;
    readonly AWS_REGION?: string | undefined;
  };
  /** Pinecone's control plane; null: its own. */
  readonly pineconeUrl: string | null;
  /** Zep's API, without its path; null: its own. */
  readonly zepUrl: string | null;
  readonly queues: Readonly<Record<string, QueueConfig>>;
  /** Documents that are read at once, each in a thread of its own. */
  readonly documentThreads: number;
  readonly http: { readonly host: string; readonly port: number };
  readonly allowedPrivateHosts: readonly string[];
  /** Minutes between looks at the tools of a connection whose server gives no hint. */
  readonly mcpRefreshMinutes: number;
  /** Servers of tools for agents. */
  readonly mcp: McpConfig;
  readonly drainSeconds: number;
  readonly logLevel: string;
  /** Null: no traces. */
  readonly traces: TracesConfig | null;
};

/** Raised for every mistake in the configuration at once; the command line exits with 2. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
  readonly problems: readonly string[];
  constructor(problems: readonly string[]) {
    super(`The configuration is not usable:\n${problems.map((p) => `  - ${p}`).join('\n')}`);
    this.problems = problems;
  }
}

const queueSchema = z.strictObject({
  concurrency: z.int().min(1).max(1000),
  retryLimit: z.int().min(0),
  retryDelaySeconds: z.int().min(0),
  retryDelayMaxSeconds: z.int().min(1),
  expireSeconds: z.int().min(1),
  heartbeatSeconds: z.int().min(10).nullable(),
  deleteAfterSeconds: z.int().min(1),
  workspaceCeiling: z.int().min(1),
  workspaceBuffer: z.int().min(0),
});

/** The folder with the JSON configuration, beside the sources or the build. */
export const configDir = join(dirname(fileURLToPath(import.meta.url)), '..', 'config');

/** Reads and validates one file of config/. Throws ConfigError naming the file and the field. */
export function readConfigFile<T>(name: string, schema: z.ZodType<T>): T {
  const path = join(configDir, name);
  let data: unknown;
  try {
    data = JSON.parse(readFileSync(path, 'utf8'));
  } catch (error) {
    throw new ConfigError([`config/${name} can't be read: ${(error as Error).message}`]);
  }
  const result = schema.safeParse(data);
  if (!result.success) {
    throw new ConfigError(
      result.error.issues.map((i) => `config/${name}, ${i.path.join('.')}: ${i.message}`),
    );
  }
  return result.data;
}

type Env = Readonly<Record<string, string | undefined>>;

/**
 * Builds the configuration from the environment given (normally `process.env`).
 *
 * Throws ConfigError listing every problem. Empty variables count as absent. No value of a secret
 * variable is ever part of a message.
 */
export function loadConfig(env: Env = process.env): Config {
  const problems: string[] = [];
  const text = (name: string): string | null => env[name]?.trim() || null;
  const int = (name: string, fallback: number, min: number, max: number): number => {
    const raw = text(name);
    if (raw === null) return fallback;
    const value = Number(raw);
    if (Number.isInteger(value) && value >= min && value <= max) return value;
    problems.push(`${name} must be a whole number from ${min} to ${max}, not '${raw}'.`);
    return fallback;
  };
  const bool = (name: string, fallback: boolean): boolean => {
    const raw = text(name)?.toLowerCase();
    if (raw === undefined) return fallback;
    if (['true', '1', 'yes', 'on'].includes(raw)) return true;
    if (['false', '0', 'no', 'off'].includes(raw)) return false;
    problems.push(`${name} must be true or false, not '${raw}'.`);
    return fallback;
  };
  const url = (name: string, protocols: readonly string[]): string | null => {
    const raw = text(name);
    if (raw === null) return null;
    const protocol = URL.canParse(raw) ? new URL(raw).protocol : null;
    if (protocol !== null && protocols.includes(protocol)) return raw;
    problems.push(`${name} must be a URL that starts with ${protocols.map((p) => `${p}//`).join(' or ')}.`);
    return null;
  };

  const databaseUrl = url('DATABASE_URL', ['postgres:', 'postgresql:']);
  const dataDir = resolve(text('AGENTD_DATA_DIR') ?? '.agentd');
  const logLevel = text('AGENTD_LOG_LEVEL') ?? 'info';
  if (!['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'].includes(logLevel)) {
    problems.push(
      `AGENTD_LOG_LEVEL must be trace, debug, info, warn, error, fatal or silent, not '${logLevel}'.`,
    );
  }

  let queues: Record<string, QueueConfig> = {};
  try {
    queues = readConfigFile('queues.json', z.record(z.string(), queueSchema));
    queues = selectQueues(queues, text('AGENTD_QUEUES'), problems);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    problems.push(...error.problems);
  }

  const config: Config = {
    databaseUrl,
    dataDir,
    embeddedPort: int('AGENTD_EMBEDDED_PORT', 54329, 0, 65535),
    autoMigrate: bool('AGENTD_AUTO_MIGRATE', databaseUrl === null),
    openai: { apiKey: text('OPENAI_API_KEY'), baseUrl: url('OPENAI_BASE_URL', ['http:', 'https:']) },
    embedding: {
      model: text('AGENTD_EMBEDDING_MODEL') ?? 'text-embedding-3-small',
      dimensions: int('AGENTD_EMBEDDING_DIMENSIONS', 1536, 1, 4000),
    },
    encryption: {
      ENCRYPTION_KEY: text('ENCRYPTION_KEY') ?? undefined,
      ENCRYPTION_KEYS: text('ENCRYPTION_KEYS') ?? undefined,
    },
    storageUrl: url('AGENTD_STORAGE_URL', ['file:', 's3:']) ?? pathToFileURL(join(dataDir, 'storage')).href,
    storageKeys: {
      AWS_ACCESS_KEY_ID: text('AWS_ACCESS_KEY_ID') ?? undefined,
      AWS_SECRET_ACCESS_KEY: text('AWS_SECRET_ACCESS_KEY') ?? undefined,
      AWS_SESSION_TOKEN: text('AWS_SESSION_TOKEN') ?? undefined,
      AWS_REGION: text('AWS_REGION') ?? undefined,
    },
    pineconeUrl: url('AGENTD_PINECONE_URL', ['http:', 'https:']),
    zepUrl: url('AGENTD_ZEP_URL', ['http:', 'https:']),
    queues,
    documentThreads: int('AGENTD_DOCUMENT_THREADS', Math.min(availableParallelism(), 4), 1, 64),
    http: {
      host: text('AGENTD_HTTP_HOST') ?? '127.0.0.1',
      port: int('AGENTD_HTTP_PORT', 9464, 0, 65535),
    },
    allowedPrivateHosts: (text('AGENTD_ALLOWED_PRIVATE_HOSTS') ?? '')
      .split(',')
      .map((h) => h.trim())
      .filter(Boolean),
    mcpRefreshMinutes: int('AGENTD_MCP_REFRESH_MINUTES', 60, 1, 1440),
    mcp: mcpConfig(text, problems),
    drainSeconds: int('AGENTD_DRAIN_SECONDS', 30, 0, 3600),
    logLevel,
    traces: tracesConfig(text, url, bool, problems),
  };
  if (problems.length > 0) throw new ConfigError(problems);
  return deepFreeze(config);
}

const stdioSchema = z.record(
  z.string().regex(/^[a-z0-9][a-z0-9_-]{0,62}$/, 'names are made of a-z, 0-9, _ and -'),
  z.strictObject({
    command: z.string().min(1),
    args: z.array(z.string()).default([]),
    env: z.record(z.string(), z.string()).default({}),
    cwd: z.string().min(1).optional(),
  }),
);

/** AGENTD_MCP_STDIO is JSON, or the path of a file with it. No message repeats a value: arguments and variables hold secrets. */
function mcpConfig(text: (name: string) => string | null, problems: string[]): McpConfig {
  const given = text('AGENTD_MCP_STDIO');
  let stdio: McpConfig['stdio'] = {};
  if (given !== null) {
    try {
      const parsed = stdioSchema.safeParse(
        JSON.parse(given.startsWith('{') ? given : readFileSync(given, 'utf8')),
      );
      if (parsed.success) stdio = parsed.data;
      else {
        for (const { path, message } of parsed.error.issues)
          problems.push(`AGENTD_MCP_STDIO, ${path.join('.')}: ${message}.`);
      }
    } catch {
      problems.push(
        'AGENTD_MCP_STDIO must be JSON like {"NAME": {"command": "…", "args": []}}, or the path of a file with it.',
      );
    }
  }
  const trusted = (text('AGENTD_MCP_TRUSTED') ?? '')
    .split(',')
    .map((each) => each.trim().replace(/\/$/, ''))
    .filter(Boolean);
  for (const each of trusted) {
    const isOrigin = /^https?:/.test(each) && URL.canParse(each) && new URL(each).origin === each;
    if (!isOrigin && !/^stdio:[a-z0-9_-]+$/.test(each)) {
      problems.push(
        `AGENTD_MCP_TRUSTED names '${each}', which is no origin such as https://tools.example.com, and not stdio:NAME.`,
      );
    }
  }
  return { stdio, trusted };
}

/** The variables of OpenTelemetry that agentd obeys, by the names and meanings of its specification. */
function tracesConfig(
  text: (name: string) => string | null,
  url: (name: string, protocols: readonly string[]) => string | null,
  bool: (name: string, fallback: boolean) => boolean,
  problems: string[],
): TracesConfig | null {
  const base = url('OTEL_EXPORTER_OTLP_ENDPOINT', ['http:', 'https:']);
  const own = url('OTEL_EXPORTER_OTLP_TRACES_ENDPOINT', ['http:', 'https:']);
  const isDisabled = bool('OTEL_SDK_DISABLED', false);
  const headers: Record<string, string> = {};
  for (const name of ['OTEL_EXPORTER_OTLP_HEADERS', 'OTEL_EXPORTER_OTLP_TRACES_HEADERS']) {
    const pairs = headerPairs(text(name));
    if (pairs === null) problems.push(`${name} must be a list like name=value,name=value, percent-encoded.`);
    else Object.assign(headers, pairs);
  }
  const protocolName = text('OTEL_EXPORTER_OTLP_TRACES_PROTOCOL')
    ? 'OTEL_EXPORTER_OTLP_TRACES_PROTOCOL'
    : 'OTEL_EXPORTER_OTLP_PROTOCOL';
  // Receivers of OTLP over HTTP take both forms at one address; the one over gRPC takes neither.
  if (!['http/json', 'http/protobuf', null].includes(text(protocolName))) {
    problems.push(
      `${protocolName} must be http/json: agentd speaks OTLP over HTTP, not '${text(protocolName)}'.`,
    );
  }
  const given = text('OTEL_TRACES_SAMPLER') ?? 'parentbased_always_on';
  const name = SAMPLERS.find((sampler) => sampler === given);
  if (!name) problems.push(`OTEL_TRACES_SAMPLER must be one of ${SAMPLERS.join(', ')}, not '${given}'.`);
  const share = text('OTEL_TRACES_SAMPLER_ARG');
  const ratio = Number(share ?? '1');
  if (!(ratio >= 0 && ratio <= 1)) {
    problems.push(`OTEL_TRACES_SAMPLER_ARG must be a number from 0 to 1, not '${share}'.`);
  }
  if (isDisabled || !name || (own ?? base) === null) return null;
  return {
    url: own ?? appendPath(base ?? '', 'v1/traces'),
    headers,
    serviceName: text('OTEL_SERVICE_NAME') ?? 'agentd',
    sampler: { name, ratio },
  };
}

function appendPath(base: string, path: string): string {
  const whole = new URL(base);
  whole.pathname = `${whole.pathname.replace(/\/$/, '')}/${path}`;
  return whole.toString();
}

/** Null for what is no list of headers, or holds what HTTP does not allow in one. */
function headerPairs(list: string | null): Record<string, string> | null {
  const headers: Record<string, string> = {};
  for (const part of (list ?? '').split(',').filter((each) => each.trim() !== '')) {
    const at = part.indexOf('=');
    try {
      const name = decodeURIComponent(part.slice(0, Math.max(at, 0)).trim());
      const value = decodeURIComponent(part.slice(at + 1).trim());
      if (!/^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(name) || !/^[\t\x20-\x7e]*$/.test(value)) return null;
      headers[name.toLowerCase()] = value;
    } catch {
      return null;
    }
  }
  return headers;
}

/** `task-run=32,document-ingest` keeps the named queues, with the concurrency given or the file's. */
function selectQueues(
  all: Record<string, QueueConfig>,
  selection: string | null,
  problems: string[],
): Record<string, QueueConfig> {
  if (selection === null) return all;
  const chosen: Record<string, QueueConfig> = {};
  for (const part of selection
    .split(',')
    .map((p) => p.trim())
    .filter(Boolean)) {
    const [name = '', count] = part.split('=');
    const queue = all[name];
    if (!queue) {
      problems.push(
        `AGENTD_QUEUES names '${name}', which is no queue. Known: ${Object.keys(all).join(', ')}.`,
      );
      continue;
    }
    const concurrency = count === undefined ? queue.concurrency : Number(count);
    if (!Number.isInteger(concurrency) || concurrency < 1 || concurrency > 1000) {
      problems.push(
        `AGENTD_QUEUES: the concurrency of ${name} must be a whole number from 1 to 1000, not '${count}'.`,
      );
      continue;
    }
    chosen[name] = { ...queue, concurrency };
  }
  return chosen;
}

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const inner of Object.values(value)) deepFreeze(inner);
  }
  return value;
}
