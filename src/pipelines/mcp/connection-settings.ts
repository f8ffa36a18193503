/** From a connection's row to what a session with its server needs: limits, and headers with what the row's secrets hold. */
import type { Clock } from '../../clock.ts';
import type { McpConnection, McpServerRow } from '../../db/mcp.ts';
import { type AllowedHosts, isNamed } from '../../providers/guarded-address.ts';
import type { Resolve } from '../../providers/guarded-connect.ts';
import { originOf } from '../../providers/guarded-url.ts';
import type { McpEras } from '../../providers/mcp-eras.ts';
import type { McpSettings } from '../../providers/mcp-session.ts';
import type { StdioServer } from '../../providers/mcp-stdio.ts';
import { type SecretContext, SecretError, type SecretOpener } from '../../secrets.ts';

/** Bounds of what `mcp_servers` may say, in milliseconds. */
const TIMEOUT_MS = { none: 30_000, least: 1_000, most: 300_000 } as const;
const CONNECT_MS = 10_000;
const MAX_BYTES = 8 * 1024 * 1024;
const MAX_PAGES = 100;
/** A token that is used for one look or one call must not run out on the way. */
const TOKEN_MS = 60_000;
const TOKEN_WAIT_MS = 10_000;

export type FreshToken = (wanted: {
  readonly credentialId: string;
  readonly workspaceId: string;
  readonly minimumMs: number;
  readonly waitMs: number;
  readonly signal: AbortSignal;
  readonly refused?: string;
}) => Promise<{ readonly accessToken: string; readonly tokenType: string }>;

export type McpSettingsDeps = {
  readonly clock: Clock;
  readonly secrets: SecretOpener;
  /** Throws an error with code, message, nextStep, transient and retryAt. */
  readonly freshToken: FreshToken;
  readonly allowedPrivateHosts: AllowedHosts;
  /** Commands that the operator lists, by name. */
  readonly stdio?: Readonly<Record<string, StdioServer>>;
  /** What all sessions of the process know of servers together. */
  readonly eras?: McpEras;
  /** Instead of DNS, for tests. */
  readonly resolve?: Resolve;
};

/** A connection can't be used as it is: somebody has to do something. No message holds a secret. */
export class McpSettingsError extends Error {
  override readonly name = 'McpSettingsError';
  readonly code: string;
  readonly nextStep: string;
  readonly transient: boolean;
  readonly retryAfterMs: number | null;

  constructor(
    code: string,
    message: string,
    nextStep: string,
    when: { transient?: boolean; retryAfterMs?: number | null } = {},
  ) {
    super(message);
    this.code = code;
    this.nextStep = nextStep;
    this.transient = when.transient ?? false;
    this.retryAfterMs = when.retryAfterMs ?? null;
  }
}

export type SettingsWanted = {
  /** Another server of the configuration, in place of the connection's own address. */
  readonly instead?: McpServerRow;
  /** The access token that the server has just refused. */
  readonly refused?: string;
};

/** What is sent to prove who asks; empty: nothing. */
export type McpAuth = { readonly headers: Readonly<Record<string, string>>; readonly token: string | null };

/**
 * The settings of a session. Opens secrets and gets a fresh token where the connection has a credential.
 *
 * A connection's own secret goes to its own address alone; another server of its configuration gets that server's key.
 * Throws McpSettingsError.
 */
export async function mcpSettings(
  deps: McpSettingsDeps,
  connection: McpConnection,
  signal: AbortSignal,
  wanted: SettingsWanted = {},
): Promise<McpSettings & { readonly token: string | null }> {
  const server = wanted.instead ?? connection.server;
  const url = (wanted.instead?.endpoint_url ?? connection.server_url).trim();
  const auth = await authOf(deps, connection, signal, wanted);
  const timeoutMs = bounded(server?.timeout_ms ?? TIMEOUT_MS.none, TIMEOUT_MS.least, TIMEOUT_MS.most);
  return {
    url,
    headers: auth.headers,
    token: auth.token,
    connectTimeoutMs: Math.min(timeoutMs, CONNECT_MS),
    requestTimeoutMs: timeoutMs,
    maxBytes: MAX_BYTES,
    maxPages: MAX_PAGES,
    allowedPrivateHosts: deps.allowedPrivateHosts,
    clock: deps.clock,
    ...(deps.stdio ? { stdio: deps.stdio } : {}),
    ...(deps.eras ? { eras: deps.eras } : {}),
    ...(deps.resolve ? { resolve: deps.resolve } : {}),
  };
}

async function authOf(
  deps: McpSettingsDeps,
  connection: McpConnection,
  signal: AbortSignal,
  { instead, refused }: SettingsWanted,
): Promise<McpAuth> {
  const server = instead ?? connection.server;
  if (instead === undefined && connection.auth_type !== 'none') {
    checkPrivacy(deps, connection.server_url);
    if (connection.auth_type === 'oauth') return tokenOf(deps, connection, signal, refused);
    const secret = await opened(deps, connection.auth_secret, {
      table: 'public.agent_mcp_connections',
      row: connection.id,
      column: 'auth_secret',
      workspace: connection.workspace_id,
    });
    if (connection.auth_type === 'bearer')
      return { headers: headers('authorization', `Bearer ${secret}`), token: null };
    if (connection.auth_header === null) {
      throw new McpSettingsError(
        'secret_missing',
        'The connection does not say which header its secret is for.',
        'Set auth_header.',
      );
    }
    return { headers: headers(connection.auth_header, secret), token: null };
  }
  // the key of a server belongs to the server's own address
  const isItsOwn = instead !== undefined || sameOrigin(server?.endpoint_url, connection.server_url);
  if (!server?.vault_api_key_id || !isItsOwn) return { headers: {}, token: null };
  checkPrivacy(deps, server.endpoint_url);
  const key = await opened(deps, server.vault_api_key_id, {
    table: 'public.mcp_servers',
    row: server.id,
    column: 'vault_api_key_id',
    workspace: connection.workspace_id,
  });
  return { headers: headers('authorization', `Bearer ${key}`), token: null };
}

/** Throws where a secret would be sent in the clear, unless to a host that the operator names. */
function checkPrivacy(deps: McpSettingsDeps, text: string): void {
  const url = URL.canParse(text.trim()) ? new URL(text.trim()) : null;
  if (url?.protocol !== 'http:' || isNamed(deps.allowedPrivateHosts, url.hostname)) return;
  throw new McpSettingsError(
    'insecure_url',
    `A secret would be sent to ${originOf(url)} in the clear.`,
    'Use the https URL of the server. The operator can name hosts that may be asked over http in AGENTD_ALLOWED_PRIVATE_HOSTS.',
  );
}

async function tokenOf(
  deps: McpSettingsDeps,
  connection: McpConnection,
  signal: AbortSignal,
  refused: string | undefined,
): Promise<McpAuth> {
  if (connection.credential_id === null) {
    throw new McpSettingsError(
      'credential_missing',
      'The connection is to sign in with OAuth and has no credential.',
      'Set credential_id to a credential of the workspace, or connect the integration again.',
    );
  }
  try {
    const { accessToken } = await deps.freshToken({
      credentialId: connection.credential_id,
      workspaceId: connection.workspace_id,
      minimumMs: TOKEN_MS,
      waitMs: TOKEN_WAIT_MS,
      signal,
      ...(refused === undefined ? {} : { refused }),
    });
    return { headers: headers('authorization', `Bearer ${accessToken}`), token: accessToken };
  } catch (error) {
    if (signal.aborted || error instanceof McpSettingsError) throw error;
    throw credentialProblem(deps, error);
  }
}

type CredentialProblem = {
  readonly code?: unknown;
  readonly nextStep?: unknown;
  readonly transient?: unknown;
  readonly retryAt?: unknown;
};

/** Throws what is no word on the credential. */
function credentialProblem(deps: McpSettingsDeps, error: unknown): McpSettingsError {
  const { code, nextStep, transient, retryAt } = error as CredentialProblem;
  if (!(error instanceof Error) || typeof code !== 'string' || typeof nextStep !== 'string') throw error;
  return new McpSettingsError(code, error.message, nextStep, {
    transient: transient === true,
    retryAfterMs: retryAt instanceof Date ? Math.max(0, retryAt.getTime() - deps.clock.now()) : null,
  });
}

async function opened(deps: McpSettingsDeps, stored: string | null, context: SecretContext): Promise<string> {
  if (stored === null || stored.trim() === '') {
    throw new McpSettingsError(
      'secret_missing',
      'The connection is to send a secret and has none.',
      'Set auth_secret.',
    );
  }
  try {
    return (await deps.secrets.open(stored, context)).trim();
  } catch (error) {
    if (!(error instanceof SecretError)) throw error;
    throw new McpSettingsError('secret_unreadable', error.message, error.nextStep);
  }
}

/** Throws where the value can't be a header's. */
function headers(name: string, value: string): Readonly<Record<string, string>> {
  if (!/^[\t\x20-\x7e\x80-\xff]*$/.test(value)) {
    throw new McpSettingsError(
      'secret_unreadable',
      'The secret holds characters that no header can hold.',
      'Store the secret again.',
    );
  }
  return { [name.toLowerCase()]: value };
}

function sameOrigin(one: string | undefined, other: string): boolean {
  if (one === undefined || !URL.canParse(one) || !URL.canParse(other)) return false;
  return new URL(one).origin === new URL(other).origin;
}

function bounded(value: number, least: number, most: number): number {
  return Math.min(most, Math.max(least, value));
}
