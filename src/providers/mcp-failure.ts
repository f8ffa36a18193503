/** What the protocol's client throws, as an McpError. */
import {
  ProtocolError,
  ProtocolErrorCode,
  SdkError,
  SdkErrorCode,
  SdkHttpError,
  SseError,
} from '@modelcontextprotocol/client';
import { originOf } from './guarded-url.ts';
import { maskSecret } from './mask.ts';
import { httpFailure, McpError } from './mcp-error.ts';
import type { Exchange } from './mcp-fetch.ts';

const MESSAGE_CHARACTERS = 300;

// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is taken out
const CONTROLS = /[\u0000-\u001f\u007f-\u009f]+/g;

type Asked = { readonly url: string; readonly headers: Readonly<Record<string, string>> };

/** An error of the client, or what is at its root. */
export function callFailure(error: unknown, met: Exchange, asked: Asked, when: 'connect' | 'call'): McpError {
  const own = find(error, (each) => each instanceof McpError) ?? met.failure;
  if (own instanceof McpError) return own;
  const where =
    URL.canParse(asked.url) && /^https?:/.test(asked.url) ? originOf(new URL(asked.url)) : 'The server';
  const status = statusOf(error);
  if (status !== null) {
    if (status === 404 && when === 'call') {
      return new McpError('session_lost', `${where} does not know the session any more.`, {
        transient: true,
        httpStatus: status,
      });
    }
    return httpFailure(where, status, met.status === status ? met.retryAfterMs : null);
  }
  if (error instanceof ProtocolError) return protocolFailure(error, where, asked);
  const details = { cause: error };
  if (error instanceof SdkError) {
    switch (error.code) {
      case SdkErrorCode.RequestTimeout:
        return new McpError('timeout', `${where} did not answer in time.`, { ...details, transient: true });
      case SdkErrorCode.ConnectionClosed:
      case SdkErrorCode.NotConnected:
      case SdkErrorCode.SendFailed:
        return new McpError('connection_lost', `The connection to ${where} has ended.`, {
          ...details,
          transient: true,
        });
      case SdkErrorCode.UnsupportedResultType:
      case SdkErrorCode.InputRequiredRoundsExceeded:
        return new McpError('input_required', 'The tool asks a person for input, and here is none.', {
          ...details,
          nextStep: 'Use a tool that works without questions.',
        });
    }
  }
  return new McpError('bad_answer', `${where} answers with something that is not MCP.`, {
    ...details,
    nextStep: 'Check that the connection’s server_url is that of an MCP server.',
  });
}

function protocolFailure(error: ProtocolError, where: string, asked: Asked): McpError {
  const details = { jsonRpcCode: error.code, nextStep: 'Look at what the server says.' };
  const message = `${where} answers: ${said(error.message, asked)}`;
  switch (error.code) {
    case ProtocolErrorCode.InvalidParams:
    case ProtocolErrorCode.MethodNotFound:
      return new McpError('invalid_params', message, details);
    case ProtocolErrorCode.MissingRequiredClientCapability:
    case ProtocolErrorCode.UrlElicitationRequired:
      return new McpError('input_required', message, {
        ...details,
        nextStep: 'Use a tool that works without questions.',
      });
    default:
      return new McpError('protocol_error', message, details);
  }
}

/** The server's own words: a line of them, without the secrets that it was sent. */
function said(text: string, asked: Asked): string {
  let line = text
    .slice(0, MESSAGE_CHARACTERS * 4)
    .toWellFormed()
    .replace(CONTROLS, ' ');
  for (const value of Object.values(asked.headers)) {
    // the value of a header, and what follows its scheme
    for (const secret of new Set([value, value.replace(/^\S+\s+/, '')])) line = maskSecret(line, secret);
  }
  return line.slice(0, MESSAGE_CHARACTERS);
}

/** An HTTP status at which older servers say that they do not know Streamable HTTP. */
export function speaksNoStreamableHttp(error: unknown): boolean {
  const status = error instanceof McpError ? error.httpStatus : null;
  return status !== null && status >= 400 && status < 500 && ![401, 403, 407, 408, 425, 429].includes(status);
}

/** A refusal that a server may give which does not speak the revision that it was asked in: not one for want of a credential, and none that passes. */
export function isAnswerToRevision(error: unknown): boolean {
  return (
    error instanceof McpError &&
    ['http_error', 'not_found', 'invalid_params', 'protocol_error', 'bad_answer'].includes(error.code)
  );
}

/** The command ended, or closed its output, while it was asked for its version. */
export function isCommandGone(error: unknown): boolean {
  return error instanceof McpError && (error.code === 'connection_lost' || error.code === 'bad_answer');
}

function statusOf(error: unknown): number | null {
  const found = find(error, (each) => each instanceof SdkHttpError || each instanceof SseError);
  if (found instanceof SdkHttpError) return found.status;
  if (found instanceof SseError) return found.code ?? null;
  return null;
}

function find(error: unknown, is: (each: object) => boolean, depth = 0): object | null {
  if (typeof error !== 'object' || error === null || depth > 5) return null;
  if (is(error)) return error;
  return find((error as { cause?: unknown }).cause, is, depth + 1);
}
