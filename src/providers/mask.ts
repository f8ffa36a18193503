const MASK = '[masked]';
/** Shorter pieces of a key occur in ordinary words. */
const PIECE = 6;
const LOOKS_LIKE_KEY = /\b(?:sk|pk|rk|gsk|xai|pplx|key|tok|AIza|ya29)[-_.]?[A-Za-z0-9*_.-]{12,}/g;

/**
 * A text from a provider without the key that was sent to it.
 *
 * Providers echo keys shortened in their own ways ("Incorrect API key provided: sk-ab****wxyz"), so every word that
 * holds six successive characters of the key, or a run of asterisks beside letters, goes as a whole.
 */
export function maskSecret(text: string, secret: string): string {
  let masked = secret.length >= 4 ? text.replaceAll(secret, MASK) : text;
  const pieces = new Set<string>();
  for (let start = 0; start + PIECE <= secret.length; start++) pieces.add(secret.slice(start, start + PIECE));
  masked = masked.replace(/[A-Za-z0-9*_.…+/=-]+/g, (word) => {
    if (/[*…]{2,}/.test(word) && /[A-Za-z0-9]/.test(word)) return MASK;
    for (let start = 0; start + PIECE <= word.length; start++) {
      if (pieces.has(word.slice(start, start + PIECE))) return MASK;
    }
    return word;
  });
  return masked.replace(LOOKS_LIKE_KEY, MASK);
}
