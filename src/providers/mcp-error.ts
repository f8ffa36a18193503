/** What can go wrong with a tool server (MCP), in one table: no message holds a secret, an address or more than a line of the server's own words. */

/**
 * | code | what happened | mends itself |
 * |---|---|---|
 * | `blocked_address` | the URL leads where no tenant's URL may, or is no http(s) URL | no |
 * | `other_origin` | the server sent us to another origin: a redirect, or the endpoint of its event stream | no |
 * | `unreachable` | no host of that name, no connection, a broken certificate | mostly |
 * | `timeout` | no connection, or no answer, in time | yes |
 * | `too_large` | an answer, or all pages of a listing, over the byte limit | no |
 * | `bad_answer` | something that is no MCP | no |
 * | `auth_required` | 401: no credential, or one that is no longer good | no |
 * | `forbidden` | 403 | no |
 * | `not_found` | 404: there is no MCP at this URL | no |
 * | `rate_limited` | 429, or 503 with Retry-After | yes |
 * | `server_error` | any other 5xx, 408 and 425 | yes |
 * | `http_error` | any other status | no |
 * | `session_lost` | the server does not know this session any more; what was sent has had no effect | yes |
 * | `connection_lost` | the connection, or the process, ended before the answer: a call may have had its effect | yes |
 * | `invalid_params` | JSON-RPC -32602: no such tool, or arguments that the server refuses | no |
 * | `protocol_error` | any other JSON-RPC error | no |
 * | `input_required` | the tool asks a person for input, and there is none here | no |
 * | `too_many_pages` | a listing over the page limit | no |
 * | `endless_pages` | a listing that comes back to a cursor that it has given before | no |
 * | `not_listed` | a stdio server that the operator does not list | no |
 * | `process_failed` | the command of a stdio server can't be started, or ended at once | no |
 * | `cancelled` | the caller's signal | no |
 */
export type McpErrorCode =
  | 'blocked_address'
  | 'other_origin'
  | 'unreachable'
  | 'timeout'
  | 'too_large'
  | 'bad_answer'
  | 'auth_required'
  | 'forbidden'
  | 'not_found'
  | 'rate_limited'
  | 'server_error'
  | 'http_error'
  | 'session_lost'
  | 'connection_lost'
  | 'invalid_params'
  | 'protocol_error'
  | 'input_required'
  | 'too_many_pages'
  | 'endless_pages'
  | 'not_listed'
  | 'process_failed'
  | 'cancelled';

type Details = {
  readonly nextStep?: string;
  /** Whether the same may succeed later without anybody's doing. */
  readonly transient?: boolean;
  readonly retryAfterMs?: number | null;
  readonly httpStatus?: number | null;
  readonly jsonRpcCode?: number | null;
  readonly cause?: unknown;
};

/** A tool server failed. `message` is a sentence for the connection's owner, `nextStep` what that person can do. */
export class McpError extends Error {
  override readonly name = 'McpError';
  readonly code: McpErrorCode;
  readonly nextStep: string;
  readonly transient: boolean;
  /** Milliseconds that the server asks to wait; null where it says nothing. */
  readonly retryAfterMs: number | null;
  readonly httpStatus: number | null;
  readonly jsonRpcCode: number | null;

  constructor(code: McpErrorCode, message: string, details: Details = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.transient = details.transient ?? false;
    this.nextStep = details.nextStep ?? (this.transient ? 'It is tried again.' : 'Check the connection.');
    this.retryAfterMs = details.retryAfterMs ?? null;
    this.httpStatus = details.httpStatus ?? null;
    this.jsonRpcCode = details.jsonRpcCode ?? null;
  }
}

/** The failure that an HTTP status means. `where` is an origin. */
export function httpFailure(where: string, status: number, retryAfterMs: number | null): McpError {
  const details = { httpStatus: status, retryAfterMs };
  if (status >= 300 && status < 400) {
    return new McpError(
      'other_origin',
      `${where} answers with a redirect that is not followed (${status}).`,
      {
        ...details,
        nextStep: 'Use the URL that it leads to, if that is the server which is meant.',
      },
    );
  }
  if (status === 401) {
    return new McpError('auth_required', `${where} wants a credential, or refuses the one it got (401).`, {
      ...details,
      nextStep: 'Store a valid credential in the connection, or connect the integration again.',
    });
  }
  if (status === 403) {
    return new McpError('forbidden', `${where} refuses access (403).`, {
      ...details,
      nextStep: 'Give the credential the rights that the server asks for.',
    });
  }
  if (status === 404 || status === 405 || status === 410) {
    return new McpError('not_found', `${where} has no MCP at this URL (${status}).`, {
      ...details,
      nextStep: 'Correct the connection’s server_url.',
    });
  }
  if (status === 429 || (status === 503 && retryAfterMs !== null)) {
    return new McpError('rate_limited', `${where} asks to come later (${status}).`, {
      ...details,
      transient: true,
    });
  }
  if (status >= 500 || status === 408 || status === 425) {
    return new McpError('server_error', `${where} answers ${status}.`, { ...details, transient: true });
  }
  return new McpError('http_error', `${where} refuses the request (${status}).`, {
    ...details,
    nextStep: 'Check that the connection’s server_url is that of an MCP server.',
  });
}
