/** Bytes to text. What the bytes prove comes first (mark, valid UTF-8), then what somebody says, then windows-1252. */

/** The charset of a Content-Type such as `text/html; charset=ISO-8859-2`; null where it names none. */
export const charsetOf = (contentType: string | null): string | null =>
  /charset\s*=\s*["']?([\w.:-]{1,40})/i.exec(contentType ?? '')?.[1] ?? null;

/**
 * @param declared charset by the server or the document itself; null or unknown: not considered.
 * @returns text without a byte order mark; what cannot be decoded is U+FFFD.
 */
export function decodeText(bytes: Uint8Array, declared: string | null): string {
  const marked = byMark(bytes);
  if (marked) return decode(bytes, marked);
  const wide = wideWithoutMark(bytes);
  if (wide) return decode(bytes, wide);
  // valid UTF-8 that is not is next to impossible; the exception is charsets made of ASCII, which say so by an escape
  const escapes = declared !== null && /^(iso-2022|hz)/i.test(declared);
  if (!escapes && isNearlyUtf8(bytes)) return decode(bytes, 'utf-8');
  if (declared !== null) {
    try {
      return new TextDecoder(declared).decode(bytes);
    } catch {
      // a charset that nobody knows
    }
  }
  return decode(bytes, 'windows-1252');
}

function byMark(bytes: Uint8Array): string | null {
  if (bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf) return 'utf-8';
  if (bytes[0] === 0xff && bytes[1] === 0xfe) return 'utf-16le';
  if (bytes[0] === 0xfe && bytes[1] === 0xff) return 'utf-16be';
  return null;
}

/** UTF-16 of mostly Latin text: nearly every second byte is zero, and nearly none of the others. */
function wideWithoutMark(bytes: Uint8Array): 'utf-16le' | 'utf-16be' | null {
  const length = Math.min(bytes.length & ~1, 4096);
  if (length < 4) return null;
  let [even, odd] = [0, 0];
  for (let i = 0; i < length; i += 2) {
    if (bytes[i] === 0) even++;
    if (bytes[i + 1] === 0) odd++;
  }
  const half = length / 2;
  if (odd > half * 0.7 && even < half * 0.02) return 'utf-16le';
  if (even > half * 0.7 && odd < half * 0.02) return 'utf-16be';
  return null;
}

/** Also with a character cut at the end or a few broken bytes, as long as far more characters are whole. */
function isNearlyUtf8(bytes: Uint8Array): boolean {
  let [whole, broken] = [0, 0];
  for (let i = 0; i < bytes.length; ) {
    const first = bytes[i] as number;
    if (first < 0x80) {
      i++;
      continue;
    }
    const length = first >= 0xf5 ? 0 : first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : first >= 0xc2 ? 2 : 0;
    let found = 1;
    while (found < length && ((bytes[i + found] ?? 0) & 0xc0) === 0x80) found++;
    if (length > 0 && found === length) whole++;
    else if (length > 0 && i + found >= bytes.length) break;
    else broken++;
    i += Math.max(found, 1);
  }
  return broken === 0 || whole > 20 * broken;
}

const decode = (bytes: Uint8Array, charset: string): string => new TextDecoder(charset).decode(bytes);
