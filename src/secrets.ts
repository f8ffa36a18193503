import { createCipheriv, createDecipheriv, createHash, randomBytes } from 'node:crypto';

/**
 * Secrets in columns: AES-256-GCM with a ring of keys that never enters the database.
 *
 * | form        | looks like                                         | bound to its row |
 * |-------------|----------------------------------------------------|------------------|
 * | `v1`        | `v1:kid:iv:tag:ciphertext`, parts in base64url     | yes              |
 * | `reference` | `iv:tag:ciphertext`, parts in hex or base64        | no               |
 * | `unknown`   | anything else: taken for plain text from an application | no          |
 */
export type SecretForm = 'v1' | 'reference' | 'unknown';

/** Where a secret lives; a `v1` value opens only there. */
export interface SecretContext {
  /** Qualified by its schema, for example `public.api_connections`. */
  table: string;
  /** The primary key, as text. */
  row: string;
  column: string;
  /** Null for rows that belong to a user or to the installation. */
  workspace: string | null;
}

export type SecretErrorCode =
  | 'no_key'
  | 'unknown_key'
  | 'tampered'
  | 'bad_form'
  | 'bad_key'
  | 'vault_unavailable'
  | 'vault_missing'
  | 'vault_foreign';

/** A secret that cannot be sealed or opened. Its message never holds a key, a plain text or a ciphertext. */
export class SecretError extends Error {
  override readonly name = 'SecretError';
  readonly code: SecretErrorCode;
  readonly nextStep: string;

  constructor(code: SecretErrorCode, message: string, nextStep: string) {
    super(message);
    this.code = code;
    this.nextStep = nextStep;
  }
}

export interface SecretKey {
  /** The name in stored values, `[A-Za-z0-9_.-]{1,64}`. */
  kid: string;
  /** 32 bytes. */
  key: Buffer;
}

/** The first key seals; all of them open. */
export type KeyRing = readonly SecretKey[];

/** Opens stored secrets, wherever they are. Its callers open late, use the plain text once and keep nothing. */
export interface SecretOpener {
  /** @throws SecretError */
  open(stored: string, context: SecretContext): string | Promise<string>;
}

export interface SecretStore extends SecretOpener {
  /**
   * The plain text of a stored value. Plain text that an application wrote (`unknown` form) is returned as it is.
   *
   * @throws SecretError `no_key`, `unknown_key`, `tampered` (changed, moved to another row, or another key), `bad_form`
   */
  open(value: string, context: SecretContext): string;
  /** @throws SecretError `no_key` */
  seal(value: string, context: SecretContext): string;
  /** The value sealed anew, or null when it already is `v1` under the sealing key. @throws SecretError as `open` */
  reseal(value: string, context: SecretContext): string | null;
}

/** A store over a key ring; with an empty ring everything that needs a key fails with `no_key`. */
export function columnSecretStore(ring: KeyRing): SecretStore {
  return {
    open: (value, context) => openSecret(ring, value, context),
    seal: (value, context) => sealSecret(ring, value, context),
    reseal: (value, context) => {
      const first = sealingKey(ring);
      const kid = V1.exec(value)?.groups?.kid;
      if (kid === first.kid) {
        openSecret(ring, value, context);
        return null;
      }
      return sealSecret(ring, openSecret(ring, value, context), context);
    },
  };
}

// GCM wants 12 bytes of iv; the reference form of some applications has 16. The tag is always whole: a short tag
// can be guessed.
const V1 =
  /^v1:(?<kid>[A-Za-z0-9_.-]{1,64}):(?<iv>[A-Za-z0-9_-]{16}):(?<tag>[A-Za-z0-9_-]{22}):(?<text>[A-Za-z0-9_-]*)$/;
const REFERENCE_HEX = /^(?<iv>[0-9a-f]{24}|[0-9a-f]{32}):(?<tag>[0-9a-f]{32}):(?<text>(?:[0-9a-f]{2})*)$/i;
const REFERENCE_BASE64 =
  /^(?<iv>[A-Za-z0-9+/_-]{16}|[A-Za-z0-9+/_-]{22}(?:==)?):(?<tag>[A-Za-z0-9+/_-]{22}(?:==)?):(?<text>[A-Za-z0-9+/_-]*={0,2})$/;
/** Begins as a sealed value does, so it is a damaged one and must not be sent to a provider as if it were a key. */
const DAMAGED = /^v1:|^(?:[0-9a-f]{24}|[0-9a-f]{32}):[0-9a-f]*(?::|$)/i;

/** How a stored value is written; `v1` and `reference` say nothing about whether it can be opened. */
export function secretForm(value: string): SecretForm {
  if (V1.test(value)) return 'v1';
  return REFERENCE_HEX.test(value) || REFERENCE_BASE64.test(value) ? 'reference' : 'unknown';
}

/** The name of the key that a `v1` value was sealed with; null for all other forms. */
export function sealedUnder(value: string): string | null {
  return V1.exec(value)?.groups?.kid ?? null;
}

/** See {@link SecretStore.open}. */
export function openSecret(ring: KeyRing, value: string, context: SecretContext): string {
  const v1 = V1.exec(value)?.groups;
  if (v1) {
    const keys = keysNamed(ring, v1.kid ?? '');
    const sealed = decode(v1, 'base64url');
    return openWith(keys, sealed, additionalData(context), context);
  }
  const hex = REFERENCE_HEX.exec(value)?.groups;
  const base64 = hex ? undefined : REFERENCE_BASE64.exec(value)?.groups;
  const reference = hex ?? base64;
  if (reference) {
    sealingKey(ring);
    return openWith(ring, decode(reference, hex ? 'hex' : 'base64'), null, context);
  }
  if (DAMAGED.test(value)) {
    throw new SecretError(
      'bad_form',
      `The secret in ${place(context)} begins like a sealed value but is cut or changed.`,
      'Store the secret again.',
    );
  }
  return value;
}

/** Seals with the ring's first key as `v1`; two seals of one value differ. See {@link SecretStore.seal}. */
export function sealSecret(ring: KeyRing, value: string, context: SecretContext): string {
  const { kid, key } = sealingKey(ring);
  const iv = randomBytes(12);
  const cipher = createCipheriv('aes-256-gcm', key, iv, { authTagLength: 16 });
  cipher.setAAD(additionalData(context));
  const text = Buffer.concat([cipher.update(value, 'utf8'), cipher.final()]);
  return ['v1', kid, ...[iv, cipher.getAuthTag(), text].map((part) => part.toString('base64url'))].join(':');
}

/**
 * The key ring of the environment. `ENCRYPTION_KEYS` (`kid:hex,kid:hex`) comes first and its first key seals;
 * `ENCRYPTION_KEY` (hex) opens what was sealed before there was a ring. Neither set: an empty ring.
 *
 * @throws SecretError `bad_key`, naming the variable and the position, never the value
 */
export function parseKeyRing(env: {
  ENCRYPTION_KEY?: string | undefined;
  ENCRYPTION_KEYS?: string | undefined;
}): KeyRing {
  const ring: SecretKey[] = [];
  if (env.ENCRYPTION_KEYS?.trim()) {
    for (const [index, entry] of env.ENCRYPTION_KEYS.split(',').entries()) {
      const where = `entry ${index + 1} of ENCRYPTION_KEYS`;
      const colon = entry.indexOf(':');
      const kid = entry.slice(0, Math.max(colon, 0)).trim();
      if (!/^[A-Za-z0-9_.-]{1,64}$/.test(kid)) {
        throw badKey(where, 'needs a name before its colon, of 1 to 64 characters A-Z a-z 0-9 _ . -');
      }
      if (ring.some((other) => other.kid === kid))
        throw badKey(where, 'repeats the name of an earlier entry');
      ring.push({ kid, key: parseKey(entry.slice(colon + 1), where) });
    }
  }
  if (env.ENCRYPTION_KEY?.trim()) {
    const key = parseKey(env.ENCRYPTION_KEY, 'ENCRYPTION_KEY');
    if (!ring.some((other) => other.key.equals(key))) ring.push({ kid: fingerprint(key), key });
  }
  return ring;
}

function parseKey(hex: string, where: string): Buffer {
  const text = hex.trim();
  if (!/^[0-9a-f]{64}$/i.test(text)) throw badKey(where, 'must be 32 bytes in hex: 64 characters 0-9 a-f');
  return Buffer.from(text, 'hex');
}

function badKey(where: string, what: string): SecretError {
  return new SecretError(
    'bad_key',
    `The encryption key in ${where} ${what}.`,
    'Make one with: openssl rand -hex 32',
  );
}

/** The name of a key that was given without one: the same key is found when it later joins a ring under a name. */
function fingerprint(key: Buffer): string {
  return createHash('sha256').update('agentd secret key\0').update(key).digest('hex').slice(0, 12);
}

function sealingKey(ring: KeyRing): SecretKey {
  const first = ring[0];
  if (first) return first;
  throw new SecretError(
    'no_key',
    'No encryption key: neither ENCRYPTION_KEY nor ENCRYPTION_KEYS is set, so no secret can be sealed or opened.',
    'Set ENCRYPTION_KEY to 32 bytes in hex (openssl rand -hex 32) for every worker.',
  );
}

/** The keys of the ring that a stored value's name of a key means. */
export function keysOf(ring: KeyRing, kid: string): KeyRing {
  return ring.filter((entry) => entry.kid === kid || fingerprint(entry.key) === kid);
}

function keysNamed(ring: KeyRing, kid: string): KeyRing {
  sealingKey(ring);
  const keys = keysOf(ring, kid);
  if (keys.length > 0) return keys;
  throw new SecretError(
    'unknown_key',
    `The secret was sealed with the key "${kid}", which is in neither ENCRYPTION_KEYS nor ENCRYPTION_KEY.`,
    'Put that key back into ENCRYPTION_KEYS after the first one.',
  );
}

// JSON keeps the parts apart: ("a","bc") and ("ab","c") differ.
function additionalData(context: SecretContext): Buffer {
  return Buffer.from(
    JSON.stringify(['agentd', 1, context.table, context.row, context.column, context.workspace]),
  );
}

interface Sealed {
  iv: Buffer;
  tag: Buffer;
  text: Buffer;
}

function decode(groups: Record<string, string>, encoding: 'hex' | 'base64' | 'base64url'): Sealed {
  const part = (name: string) => Buffer.from(groups[name] ?? '', encoding);
  return { iv: part('iv'), tag: part('tag'), text: part('text') };
}

function openWith(keys: KeyRing, sealed: Sealed, aad: Buffer | null, context: SecretContext): string {
  for (const { key } of keys) {
    const decipher = createDecipheriv('aes-256-gcm', key, sealed.iv, { authTagLength: 16 });
    if (aad) decipher.setAAD(aad);
    decipher.setAuthTag(sealed.tag);
    const plain = decipher.update(sealed.text);
    try {
      return Buffer.concat([plain, decipher.final()]).toString('utf8');
    } catch {
      // Not this key, or not this row: the next key may fit; nothing of `plain` leaves unauthenticated.
    }
  }
  throw new SecretError(
    'tampered',
    `The secret in ${place(context)} does not open: it was changed, moved from another row, or sealed with another key.`,
    'Store the secret again, or put the key it was sealed with into ENCRYPTION_KEYS.',
  );
}

function place(context: SecretContext): string {
  return `${context.table}.${context.column} of row ${context.row}`;
}
