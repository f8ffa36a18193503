/** What a tool of a server answered, as text: nothing of it is trusted, and none of it is larger than the limit. */
import { z } from 'zod';

export type McpOutcome = {
  /** All parts that are text, and a note for each that is not. */
  readonly text: string;
  /** The tool says that it failed; `text` says how. */
  readonly isError: boolean;
};

/** Characters of a whole answer; the agent's window takes less of it. */
const MAX_CHARACTERS = 1_048_576;
/** Parts of an answer. */
const MAX_PARTS = 1_000;

/** Only that it is an object: a part that nobody knows must not hide the others, since the call has had its effect. */
export const resultShape = z.looseObject({});

type Part = { readonly [name: string]: unknown };

/** The answer of a call. Parts keep their order; structured content follows where the text does not say it already. */
export function outcomeOf(result: Readonly<Record<string, unknown>>): McpOutcome {
  const given = Array.isArray(result.content) ? (result.content as unknown[]) : [];
  const parts = given.slice(0, MAX_PARTS).map(partText);
  if (given.length > MAX_PARTS) parts.push(`(${given.length - MAX_PARTS} more parts were left out.)`);
  const structured = structuredText(result.structuredContent);
  if (structured !== null && !parts.some((part) => sameJson(part, structured))) parts.push(structured);
  const text = parts.filter((part) => part !== '').join('\n\n');
  const cut = text.length > MAX_CHARACTERS;
  return {
    text: cut
      ? `${text.slice(0, MAX_CHARACTERS).toWellFormed()}\n(${text.length - MAX_CHARACTERS} more characters were left out.)`
      : text.toWellFormed(),
    isError: result.isError === true,
  };
}

function partText(part: unknown): string {
  if (typeof part !== 'object' || part === null) return typeof part === 'string' ? part : '';
  const one = part as Part;
  switch (one.type) {
    case 'text':
      return asText(one.text);
    case 'image':
    case 'audio':
      return `(${one.type === 'image' ? 'An image' : 'A sound'}, ${line(one.mimeType) || 'of unknown type'}, ${bytesOf(one.data)} bytes, which is not shown here.)`;
    case 'resource_link':
      return `(A link to ${line(one.title) || line(one.name) || 'a resource'}: ${line(one.uri)}${one.description ? `, ${line(one.description)}` : ''}.)`;
    case 'resource':
      return resourceText(one.resource);
    default:
      return `(A part of type ${line(one.type) || 'unknown'}, which is not shown here.)`;
  }
}

function resourceText(resource: unknown): string {
  if (typeof resource !== 'object' || resource === null) return '';
  const { uri, mimeType, text, blob } = resource as Part;
  const where = `Resource ${line(uri) || 'without a name'}`;
  if (typeof text === 'string') return `${where}:\n${text}`;
  return `(${where}, ${line(mimeType) || 'of unknown type'}, ${bytesOf(blob)} bytes, which is not shown here.)`;
}

function structuredText(value: unknown): string | null {
  if (value === undefined || value === null) return null;
  return JSON.stringify(value);
}

/** Servers give structured content as text as well, for those that do not know it. */
function sameJson(text: string, json: string): boolean {
  if (text === json) return true;
  if (text.length > json.length * 4 + 1_000 || !/^\s*[{[]/.test(text)) return false;
  try {
    return JSON.stringify(JSON.parse(text)) === json;
  } catch {
    return false;
  }
}

function asText(value: unknown): string {
  return typeof value === 'string' ? value : '';
}

function line(value: unknown): string {
  return asText(value).slice(0, 300).replace(/\s+/g, ' ').trim();
}

/** Of base64. */
function bytesOf(data: unknown): number {
  return Math.floor((asText(data).replace(/=+$/, '').length * 3) / 4);
}
