/**
 * One refresh of an OAuth token (RFC 6749, 6), and what the many kinds of answers mean.
 *
 * Tolerant in what it reads: 200 with an error, 201, form-encoded bodies, numbers as text, a missing or odd token_type. Strict in what it
 * concludes: only a provider that says that the grant is gone makes a user connect again.
 */
import { GuardedCallError, type GuardedCaller } from './guarded-call.ts';
import { header } from './guarded-headers.ts';
import type { OAuthProvider } from './oauth-providers.ts';
import { retryAfterMs } from './retry-after.ts';

/** A provider answers within so many milliseconds. Shorter than the lease of a refresh. */
export const TOKEN_TIMEOUT_MS = 20_000;
const MAX_ANSWER_BYTES = 256 * 1024;
/** Longer ones are no tokens. */
const MAX_TOKEN_LENGTH = 64 * 1024;
const LONGEST_LIFETIME_SECONDS = 366 * 86_400;

export type TokenRequest = {
  readonly endpoint: string;
  readonly clientId: string;
  /** Null for public clients. */
  readonly clientSecret: string | null;
  readonly refreshToken: string;
  readonly scopes: readonly string[];
  /** What is special about the provider; null: nothing is known. */
  readonly provider: OAuthProvider | null;
  /** The row's own word on these, where it has one. */
  readonly clientAuth?: 'body' | 'basic';
  /** What the token is for (RFC 8707), where the row says. */
  readonly resource?: string;
  readonly timeoutMs?: number;
};

export type TokenAnswer = {
  readonly accessToken: string;
  /** Null: the old one stays in force. */
  readonly refreshToken: string | null;
  /** Counted from the request's start; null where nobody says. */
  readonly lifetimeSeconds: number | null;
  readonly scopes: readonly string[] | null;
};

/**
 * What a refresh failed of.
 * - `grant`: the refresh token is not, or no longer, good.
 * - `client`: the provider does not know our client, or not its secret: nothing is wrong with the user's credential.
 * - `transient`: later it may succeed.
 */
export class TokenError extends Error {
  override readonly name = 'TokenError';
  readonly kind: 'grant' | 'client' | 'transient';
  readonly status: number | null;
  /** Whether the provider may have carried the refresh out, and its answer was lost. */
  readonly isOutcomeUnknown: boolean;
  readonly retryAfterMs: number | null;
  /** Whether it is the endpoint that has a problem, and not this request: others would fare no better. */
  readonly isEndpoint: boolean;
  constructor(
    kind: TokenError['kind'],
    message: string,
    more: { status?: number; isOutcomeUnknown?: boolean; retryAfterMs?: number | null; cause?: unknown } = {},
  ) {
    super(message, { cause: more.cause });
    this.kind = kind;
    this.status = more.status ?? null;
    this.isOutcomeUnknown = more.isOutcomeUnknown ?? false;
    this.retryAfterMs = more.retryAfterMs ?? null;
    this.isEndpoint =
      kind === 'transient' &&
      (this.status === null || [408, 429].includes(this.status) || this.status >= 500);
  }
}

/** Asks for a new access token, once. Throws TokenError, or the signal's reason. No message holds a token or a secret. */
export async function refreshToken(
  caller: GuardedCaller,
  request: TokenRequest,
  signal: AbortSignal,
): Promise<TokenAnswer> {
  const where = URL.canParse(request.endpoint) ? new URL(request.endpoint).origin : 'the token endpoint';
  let answer: Awaited<ReturnType<GuardedCaller['call']>>;
  try {
    answer = await caller.call(request.endpoint, {
      method: 'POST',
      ...encoded(request),
      signal,
      timeoutMs: request.timeoutMs ?? TOKEN_TIMEOUT_MS,
      maxBytes: MAX_ANSWER_BYTES,
    });
  } catch (error) {
    if (!(error instanceof GuardedCallError)) throw error;
    if (error.code === 'blocked_address') {
      throw new TokenError('client', `The provider's token endpoint may not be called: ${error.message}`, {
        cause: error,
      });
    }
    throw new TokenError('transient', error.message, {
      isOutcomeUnknown: error.mayHaveArrived,
      cause: error,
    });
  }
  const fields = parsed(answer.text);
  const status = answer.status;
  const token = text(fields?.access_token, MAX_TOKEN_LENGTH);
  const isGood = status >= 200 && status < 300;
  const word = errorWord(fields);
  if (isGood && token !== null && word === null) {
    return {
      accessToken: token,
      refreshToken: text(fields?.refresh_token, MAX_TOKEN_LENGTH),
      lifetimeSeconds: lifetime(fields),
      scopes: scopes(fields?.scope),
    };
  }
  const wait = retryAfterMs({ get: (name) => header(answer.headers, name) }, Date.now());
  throw judged(request.provider, where, status, spoken(word, request), isGood, wait);
}

function encoded(request: TokenRequest): { headers: Record<string, string>; body: string } {
  const { provider, clientId, clientSecret } = request;
  const fields: Record<string, string> = {
    grant_type: 'refresh_token',
    refresh_token: request.refreshToken,
  };
  const headers: Record<string, string> = { accept: 'application/json' };
  const isBasic = (request.clientAuth ?? provider?.clientAuth) === 'basic' && clientSecret !== null;
  if (isBasic) {
    // RFC 6749 2.3.1: both are form-encoded before they are joined
    const pair = [clientId, clientSecret].map((part) => encodeURIComponent(part).replaceAll('%20', '+'));
    headers.authorization = `Basic ${Buffer.from(pair.join(':')).toString('base64')}`;
  } else {
    fields.client_id = clientId;
    if (clientSecret !== null) fields.client_secret = clientSecret;
  }
  if (request.resource !== undefined) fields.resource = request.resource;
  if (provider?.sendScope && request.scopes.length > 0) fields.scope = request.scopes.join(' ');
  if (provider?.body === 'json') {
    headers['content-type'] = 'application/json';
    return { headers, body: JSON.stringify(fields) };
  }
  headers['content-type'] = 'application/x-www-form-urlencoded';
  return { headers, body: new URLSearchParams(fields).toString() };
}

type Fields = Readonly<Record<string, unknown>>;

/** JSON, or a form, whatever the header says; null: neither. */
function parsed(body: string): Fields | null {
  try {
    const value: unknown = JSON.parse(body);
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Fields;
    return null;
  } catch {
    if (!/^[\w.~%+-]+=/.test(body.trim()) || body.includes('<')) return null;
    return Object.fromEntries(new URLSearchParams(body.trim()));
  }
}

function text(value: unknown, longest: number): string | null {
  return typeof value === 'string' && value.length > 0 && value.length <= longest ? value : null;
}

/** `expires_in` as number or text, of a plausible length. */
function lifetime(fields: Fields | null): number | null {
  const value = fields?.expires_in;
  const seconds = typeof value === 'string' && value.trim() !== '' ? Number(value) : value;
  if (typeof seconds !== 'number' || !Number.isFinite(seconds) || seconds <= 0) return null;
  return Math.min(Math.floor(seconds), LONGEST_LIFETIME_SECONDS);
}

function scopes(value: unknown): string[] | null {
  return typeof value === 'string' ? value.split(/[\s,]+/).filter((scope) => scope !== '') : null;
}

/** A word that repeats what we sent is none: it would bring a secret into a message. */
function spoken(word: string | null, { refreshToken, clientSecret }: TokenRequest): string | null {
  if (word === null) return null;
  const secrets = [refreshToken, clientSecret ?? ''].filter((secret) => secret.length >= 8);
  return secrets.some(
    (secret) => word.includes(secret.slice(0, 8)) || (word.length >= 8 && secret.includes(word)),
  )
    ? 'unreadable'
    : word;
}

/** The provider's word for what is wrong, where it has one: `error`, or `status` or `code` as some have it. */
function errorWord(fields: Fields | null): string | null {
  if (fields === null) return null;
  const given = fields.error;
  const nested = typeof given === 'object' && given !== null ? (given as Fields) : null;
  const isRefusal = fields.ok === false || fields.access_token === undefined;
  return (
    text(given, 200) ??
    text(nested?.code, 200) ??
    text(nested?.type, 200) ??
    (isRefusal ? (text(fields.status, 200) ?? text(fields.code, 200)) : null) ??
    (fields.ok === false ? 'not ok' : null)
  );
}

// the scopes are those of the row, which its owner writes: a wrong one is no alarm of the provider's
const GRANT_GONE: ReadonlySet<string> = new Set(['invalid_grant', 'invalid_scope']);
const CLIENT_WRONG: ReadonlySet<string> = new Set([
  'invalid_client',
  'unauthorized_client',
  'unsupported_grant_type',
]);

function judged(
  provider: OAuthProvider | null,
  where: string,
  status: number,
  word: string | null,
  isGood: boolean,
  wait: number | null,
): TokenError {
  const shown = word === null ? '' : ` (${word.replaceAll(/[^\w .:-]/g, '?').slice(0, 60)})`;
  const said = `${where} answered ${status}${shown}`;
  const later = (why: string): TokenError =>
    new TokenError('transient', `${said}: ${why}`, {
      status,
      // one that can't be understood, or of a gateway, may be the answer to a refresh that was carried out
      isOutcomeUnknown: (isGood && word === null) || status >= 500,
      retryAfterMs: wait,
    });
  if (status === 429) return later('it asks to come later.');
  if (status >= 500 || status === 408) return later('it has a problem of its own.');
  const is = (kind: keyof OAuthProvider['errors']): boolean =>
    word !== null && (provider?.errors[kind].includes(word) ?? false);
  if (is('transient')) return later('it has a problem of its own.');
  if (is('reauth') || (word !== null && GRANT_GONE.has(word)))
    return new TokenError('grant', `${said}: the connection has to be made again.`, { status });
  if (is('client') || (word !== null && CLIENT_WRONG.has(word)) || status === 401 || status === 403) {
    return new TokenError(
      'client',
      `${said}: it does not accept this platform's client. Check client_id and client_secret of the provider's configuration.`,
      { status },
    );
  }
  if (status === 404 || (status >= 300 && status < 400)) {
    return new TokenError(
      'client',
      `${said}: that is no token endpoint. Check the provider's token_endpoint.`,
      {
        status,
      },
    );
  }
  return later('the answer is not understood.');
}
