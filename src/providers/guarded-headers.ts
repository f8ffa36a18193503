/** What an answer's headers say about a document. */
import type { IncomingHttpHeaders } from 'node:http';

export type Header = IncomingHttpHeaders;

/** Longer values are no types, validators or names. */
const MAX_VALUE = 1024;

/** Nothing of these has a text that could be read. The bytes decide about all others. */
export const REFUSED_TYPES = /^(?:audio|video|image|font|model)\/|^(?:text\/event-stream|multipart\/)/i;

/** One header's value, the first where it came repeatedly; null when absent or out of all proportion. */
export function header(headers: Header, name: string): string | null {
  const value = headers[name];
  const one = Array.isArray(value) ? value[0] : value;
  return one === undefined || one === '' || (name !== 'location' && one.length > MAX_VALUE) ? null : one;
}

export function answeredType(headers: Header): string | null {
  return header(headers, 'content-type')?.trim() ?? null;
}

/** The encoding by the name that TextDecoder gives it; null for none and for one that nobody knows. */
export function charsetOf(headers: Header): string | null {
  const [, quoted, plain] =
    /;\s*charset\s*=\s*(?:"([^"]*)"|([^\s;]+))/i.exec(answeredType(headers) ?? '') ?? [];
  const label = quoted ?? plain?.replace(/^'(.*)'$/, '$1');
  if (label === undefined) return null;
  try {
    return new TextDecoder(label).encoding;
  } catch {
    return null;
  }
}

/** A name as a hint for the kind of file, never a path. */
export function fileNameOf(headers: Header, url: URL): string | null {
  const disposition = header(headers, 'content-disposition') ?? '';
  const [, extended] = /filename\*\s*=\s*utf-8'[^']*'([^;\s]+)/i.exec(disposition) ?? [];
  const [, quoted, plain] = /filename\s*=\s*(?:"([^"]*)"|([^\s;]+))/i.exec(disposition) ?? [];
  const encoded = extended ?? url.pathname.split('/').at(-1) ?? '';
  const named = extended === undefined ? (quoted ?? plain) : undefined;
  const name = (named ?? decoded(encoded)).split(/[/\\]/).at(-1) ?? '';
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is taken out
  return name.replace(/[\u0000-\u001f\u007f]/g, '').slice(0, 255) || null;
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
