import { typeName } from './tool-schema-rules.ts';

/** A refusal as the API words it. */
export interface ChatFault {
  message: string;
  param: string | null;
  code: string | null;
}

const NAME = /^[a-zA-Z0-9_-]+$/;

export function nameFault(name: unknown, at: string): ChatFault | null {
  if (typeof name !== 'string') return wrongType(at, 'a string', name);
  if (!NAME.test(name))
    return fault(
      `Invalid '${at}': string does not match pattern. Expected a string that matches the pattern '^[a-zA-Z0-9_-]+$'.`,
      at,
    );
  return name.length <= 64 ? null : tooLong(at, 64, name.length);
}

export function idFault(id: unknown, at: string): ChatFault | null {
  if (typeof id !== 'string') return wrongType(at, 'a string', id);
  if (id === '') return fault(`Invalid '${at}': empty string.`, at);
  return id.length <= 40 ? null : tooLong(at, 40, id.length);
}

function tooLong(at: string, most: number, length: number): ChatFault {
  return {
    message: `Invalid '${at}': string too long. Expected a string with maximum length ${most}, but got a string with length ${length} instead.`,
    param: at,
    code: 'string_above_max_length',
  };
}

export function wrongType(at: string, expected: string, value: unknown): ChatFault {
  return {
    message: `Invalid type for '${at}': expected ${expected}, but got ${typeName(value)} instead.`,
    param: at,
    code: 'invalid_type',
  };
}

export function fault(message: string, param: string | null): ChatFault {
  return { message, param, code: null };
}
