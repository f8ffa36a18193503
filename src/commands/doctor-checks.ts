/** The checks that need no database, and what a check is. */
import type { Config } from '../config.ts';
import { maskedUrl } from '../db/connect.ts';
import { askModelEndpoint, DEFAULT_BASE_URL } from '../providers/model-endpoint.ts';
import { parseKeyRing, SecretError } from '../secrets.ts';
import { maskText } from '../telemetry/redact.ts';

/** `skip`: could not be asked, because of an earlier answer or of the kind of database. */
export type CheckStatus = 'ok' | 'warn' | 'fail' | 'skip';

export type Check = {
  readonly name: string;
  readonly status: CheckStatus;
  readonly message: string;
  /** What to do; null when there is nothing to do. */
  readonly next_step: string | null;
  /** What was found, one by one, where it is more than one thing. */
  readonly details?: readonly Detail[];
};

/** One of the things that a check found. */
export type Detail = {
  readonly object: string;
  readonly problem: string;
  /** Null where the check's own next step is all. */
  readonly next_step: string | null;
};

/** Makes a check's answer. */
export function check(
  name: string,
  status: CheckStatus,
  message: string,
  nextStep: string | null = null,
  details: readonly Detail[] = [],
): Check {
  const made = { name, status, message: maskText(message), next_step: nextStep };
  return details.length === 0 ? made : { ...made, details };
}

const MODEL_DEADLINE_MS = 5_000;

/** Whether the default model endpoint answers and takes the key. */
export async function checkModel(config: Config): Promise<Check> {
  const name = 'model endpoint';
  const baseUrl = config.openai.baseUrl ?? DEFAULT_BASE_URL;
  if (config.openai.apiKey === null) {
    return check(
      name,
      'warn',
      'OPENAI_API_KEY is not set: only agents and workspaces with a key of their own can run.',
      'Set OPENAI_API_KEY (and OPENAI_BASE_URL for another provider), or store keys with the workspaces.',
    );
  }
  const { status, detail } = await askModelEndpoint(baseUrl, config.openai.apiKey, MODEL_DEADLINE_MS);
  const where = maskedUrl(baseUrl);
  if (status === null) {
    return check(
      name,
      'fail',
      `${where} does not answer: ${detail}.`,
      'Check OPENAI_BASE_URL and the network.',
    );
  }
  if (status === 401 || status === 403) {
    return check(name, 'fail', `${where} refuses the key (HTTP ${status}).`, 'Replace OPENAI_API_KEY.');
  }
  if (status === 404 || status === 405) {
    return check(
      name,
      'warn',
      `${where} answers, but lists no models (HTTP ${status}), so the key is untested.`,
      'Nothing, if the endpoint is known to have no list; else check OPENAI_BASE_URL: it usually ends in /v1.',
    );
  }
  if (status >= 300) {
    return check(
      name,
      'warn',
      `${where} answers HTTP ${[status, detail].join(' ').trim()}.`,
      'Try again; then check OPENAI_BASE_URL.',
    );
  }
  return check(name, 'ok', `${where} answers and takes the key.`);
}

/** Whether secrets can be sealed and opened. */
export function checkKeys(config: Config): Check {
  const name = 'encryption keys';
  try {
    const ring = parseKeyRing(config.encryption);
    const [sealing] = ring;
    if (!sealing) {
      return check(
        name,
        'warn',
        'ENCRYPTION_KEYS and ENCRYPTION_KEY are not set: no stored secret can be sealed or opened.',
        'Set ENCRYPTION_KEY to 32 random bytes in hex, for example from: openssl rand -hex 32',
      );
    }
    return check(name, 'ok', `${ring.length === 1 ? '1 key' : `${ring.length} keys`}; ${sealing.kid} seals.`);
  } catch (error) {
    if (error instanceof SecretError) return check(name, 'fail', error.message, error.nextStep);
    throw error;
  }
}

/** What is in force, by the variable that sets it; secrets are only said to be set. */
export function configInForce(config: Config): Readonly<Record<string, string>> {
  const secret = (value: string | null): string => (value === null ? 'not set' : 'set');
  return {
    DATABASE_URL:
      config.databaseUrl === null
        ? `embedded, port ${config.embeddedPort}`
        : maskText(maskedUrl(config.databaseUrl)),
    AGENTD_DATA_DIR: config.dataDir,
    AGENTD_AUTO_MIGRATE: String(config.autoMigrate),
    OPENAI_API_KEY: secret(config.openai.apiKey),
    OPENAI_BASE_URL: maskedUrl(config.openai.baseUrl ?? DEFAULT_BASE_URL),
    AGENTD_EMBEDDING_MODEL: config.embedding.model,
    AGENTD_EMBEDDING_DIMENSIONS: String(config.embedding.dimensions),
    'ENCRYPTION_KEYS, ENCRYPTION_KEY': secret(
      config.encryption.ENCRYPTION_KEYS ?? config.encryption.ENCRYPTION_KEY ?? null,
    ),
    AGENTD_STORAGE_URL: maskText(maskedUrl(config.storageUrl)),
    'AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY': secret(
      config.storageKeys.AWS_ACCESS_KEY_ID && config.storageKeys.AWS_SECRET_ACCESS_KEY ? 'both' : null,
    ),
    AWS_SESSION_TOKEN: secret(config.storageKeys.AWS_SESSION_TOKEN ?? null),
    AWS_REGION: config.storageKeys.AWS_REGION ?? 'none',
    AGENTD_QUEUES: Object.entries(config.queues)
      .map(([name, queue]) => `${name}=${queue.concurrency}`)
      .join(','),
    AGENTD_DOCUMENT_THREADS: String(config.documentThreads),
    'AGENTD_HTTP_HOST, AGENTD_HTTP_PORT': `${config.http.host}:${config.http.port}`,
    AGENTD_ALLOWED_PRIVATE_HOSTS: config.allowedPrivateHosts.join(', ') || 'none',
    AGENTD_DRAIN_SECONDS: String(config.drainSeconds),
    AGENTD_LOG_LEVEL: config.logLevel,
    'OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT':
      config.traces === null ? 'off' : maskText(maskedUrl(config.traces.url)),
    OTEL_EXPORTER_OTLP_HEADERS: secret(Object.keys(config.traces?.headers ?? {})[0] ?? null),
    OTEL_SERVICE_NAME: config.traces?.serviceName ?? 'off',
    'OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG':
      config.traces === null ? 'off' : `${config.traces.sampler.name}, ${config.traces.sampler.ratio}`,
  };
}
