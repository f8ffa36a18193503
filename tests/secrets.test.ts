import { createCipheriv, createDecipheriv } from 'node:crypto';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  columnSecretStore,
  openSecret,
  parseKeyRing,
  type SecretContext,
  SecretError,
  sealSecret,
  secretForm,
} from '../src/secrets.ts';

const HEX = '00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef';
const OTHER = 'fedcba98765432100123456789abcdefffeeddccbbaa99887766554433221100';
const PLAIN = 'sk-canary-5511 ÄÖ😀';
const CONTEXT: SecretContext = {
  table: 'public.api_connections',
  row: '7',
  column: 'api_key',
  workspace: 'w1',
};

const ring = parseKeyRing({ ENCRYPTION_KEY: HEX });

function failure(run: () => unknown): SecretError {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(SecretError);
    const text = `${(error as Error).message} ${(error as SecretError).nextStep} ${(error as Error).stack}`;
    for (const secret of [HEX, OTHER, PLAIN, 'canary']) expect(text).not.toContain(secret);
    return error as SecretError;
  }
  throw new Error('nothing was thrown');
}

/** The reference form as applications write it: iv of 16 bytes (or 12), tag, text. */
function reference(encoding: 'hex' | 'base64', ivBytes = 16): string {
  const iv = Buffer.alloc(ivBytes, 9);
  const cipher = createCipheriv('aes-256-gcm', Buffer.from(HEX, 'hex'), iv);
  const text = Buffer.concat([cipher.update(PLAIN, 'utf8'), cipher.final()]);
  return [iv, cipher.getAuthTag(), text].map((part) => part.toString(encoding)).join(':');
}

test('what is sealed opens in its own place, and two seals of one value differ', () => {
  const sealed = sealSecret(ring, PLAIN, CONTEXT);
  expect(sealed).toMatch(/^v1:[\w-]+:[\w-]{16}:[\w-]{22}:[\w-]+$/);
  expect(openSecret(ring, sealed, CONTEXT)).toBe(PLAIN);
  expect(sealSecret(ring, PLAIN, CONTEXT)).not.toBe(sealed);
  expect(openSecret(ring, sealSecret(ring, '', CONTEXT), CONTEXT)).toBe('');
});

test('a v1 value opens with nothing but the documented format', () => {
  const [, , iv, tag, text] = sealSecret(ring, PLAIN, CONTEXT)
    .split(':')
    .map((part) => Buffer.from(part, 'base64url'));
  const decipher = createDecipheriv('aes-256-gcm', Buffer.from(HEX, 'hex'), iv ?? Buffer.alloc(0));
  decipher.setAAD(Buffer.from('["agentd",1,"public.api_connections","7","api_key","w1"]'));
  decipher.setAuthTag(tag ?? Buffer.alloc(0));
  expect(decipher.update(text ?? Buffer.alloc(0), undefined, 'utf8') + decipher.final('utf8')).toBe(PLAIN);
});

test('a sealed value moved to another table, row, column or workspace does not open', () => {
  const sealed = sealSecret(ring, PLAIN, CONTEXT);
  const elsewhere: Partial<SecretContext>[] = [
    { table: 'public.other' },
    { row: '8' },
    { column: 'other' },
    { workspace: 'w2' },
    { workspace: null },
    { table: 'public.api_connections7', row: '' },
  ];
  for (const change of elsewhere) {
    expect(failure(() => openSecret(ring, sealed, { ...CONTEXT, ...change })).code).toBe('tampered');
  }
});

test('any changed character of a sealed value is noticed', () => {
  const sealed = sealSecret(ring, PLAIN, CONTEXT);
  const start = sealed.indexOf(':', 3) + 1;
  for (let at = start; at < sealed.length; at++) {
    if (sealed[at] === ':') continue;
    // Flips the character's high bit: the last character's low bits are padding in base64.
    const code = ALPHABET.indexOf(sealed[at] ?? '');
    const changed = sealed.slice(0, at) + ALPHABET[code ^ 32] + sealed.slice(at + 1);
    expect(failure(() => openSecret(ring, changed, CONTEXT)).code).toBe('tampered');
  }
});

const ALPHABET = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';

test('a cut value is refused, never passed on as if it were plain text', () => {
  const sealed = sealSecret(ring, PLAIN, CONTEXT);
  const [version, kid, iv, tag, text] = sealed.split(':');
  const shortTag = [version, kid, iv, tag?.slice(0, 6), text].join(':');
  for (const cut of [shortTag, `${version}:${kid}:${iv}`, 'v1:', `${sealed}:x`]) {
    expect(failure(() => openSecret(ring, cut, CONTEXT)).code).toBe('bad_form');
  }
  const hex = reference('hex');
  for (const cut of [hex.slice(0, -1), hex.slice(0, 40), hex.slice(0, 33)]) {
    expect(failure(() => openSecret(ring, cut, CONTEXT)).code).toBe('bad_form');
  }
});

test('the reference form opens in hex and base64, with 12 and 16 bytes of iv', () => {
  for (const value of [
    reference('hex'),
    reference('base64'),
    reference('hex', 12),
    reference('base64', 12),
  ]) {
    expect(secretForm(value)).toBe('reference');
    expect(openSecret(ring, value, CONTEXT)).toBe(PLAIN);
  }
  expect(openSecret(ring, reference('hex').toUpperCase(), CONTEXT)).toBe(PLAIN);
});

test('a reference value of another key or with a changed byte does not open', () => {
  const wrong = parseKeyRing({ ENCRYPTION_KEY: OTHER });
  expect(failure(() => openSecret(wrong, reference('hex'), CONTEXT)).code).toBe('tampered');
  const changed = reference('hex').replace(/.$/, (last) => (last === '0' ? '1' : '0'));
  expect(failure(() => openSecret(ring, changed, CONTEXT)).code).toBe('tampered');
});

test('forms are told apart, and ordinary keys are not taken for sealed values', () => {
  expect(secretForm(sealSecret(ring, PLAIN, CONTEXT))).toBe('v1');
  const plain = [
    'sk-proj-abc',
    'user:pass',
    'a:b:c',
    HEX,
    'xoxb-1-2-3',
    '',
    'postgres://u:p@h:1/d',
    '{"a":"b"}',
  ];
  for (const value of plain) {
    expect(secretForm(value)).toBe('unknown');
    expect(openSecret(ring, value, CONTEXT)).toBe(value);
  }
});

test('without a key sealing and opening fail closed and name the variable', () => {
  const sealed = sealSecret(ring, PLAIN, CONTEXT);
  for (const run of [
    () => sealSecret([], PLAIN, CONTEXT),
    () => openSecret([], sealed, CONTEXT),
    () => openSecret([], reference('hex'), CONTEXT),
    () => columnSecretStore([]).reseal(PLAIN, CONTEXT),
  ]) {
    const error = failure(run);
    expect(error.code).toBe('no_key');
    expect(error.message).toContain('ENCRYPTION_KEY');
  }
});

test('a key that left the ring is named by its id', () => {
  const sealed = sealSecret(parseKeyRing({ ENCRYPTION_KEYS: `y2024:${OTHER}` }), PLAIN, CONTEXT);
  const error = failure(() => openSecret(ring, sealed, CONTEXT));
  expect(error.code).toBe('unknown_key');
  expect(error.message).toContain('y2024');
});

test('a rotated ring opens the old and seals with the new, and a lone key keeps opening under any later name', () => {
  const old = sealSecret(ring, PLAIN, CONTEXT);
  const rotated = parseKeyRing({ ENCRYPTION_KEYS: `new:${OTHER}, old:${HEX}` });
  expect(openSecret(rotated, old, CONTEXT)).toBe(PLAIN);
  expect(sealSecret(rotated, PLAIN, CONTEXT)).toMatch(/^v1:new:/);
  const both = parseKeyRing({ ENCRYPTION_KEYS: `new:${OTHER}`, ENCRYPTION_KEY: HEX });
  expect(openSecret(both, old, CONTEXT)).toBe(PLAIN);
  expect(both[0]?.kid).toBe('new');
});

test('resealing moves every form under the first key once', () => {
  const store = columnSecretStore(parseKeyRing({ ENCRYPTION_KEYS: `new:${OTHER},old:${HEX}` }));
  for (const value of [sealSecret(ring, PLAIN, CONTEXT), reference('hex'), PLAIN]) {
    const sealed = store.reseal(value, CONTEXT);
    expect(sealed).toMatch(/^v1:new:/);
    expect(store.open(sealed ?? '', CONTEXT)).toBe(PLAIN);
    expect(store.reseal(sealed ?? '', CONTEXT)).toBeNull();
  }
});

test('a key that is not 32 bytes of hex is refused, naming its place and never its value', () => {
  const bad: [Parameters<typeof parseKeyRing>[0], RegExp][] = [
    [{ ENCRYPTION_KEY: HEX.slice(1) }, /ENCRYPTION_KEY must be 32 bytes/],
    [{ ENCRYPTION_KEY: `${HEX}00` }, /32 bytes/],
    [{ ENCRYPTION_KEY: HEX.replace('0', 'g') }, /32 bytes/],
    [{ ENCRYPTION_KEYS: HEX }, /entry 1 of ENCRYPTION_KEYS/],
    [{ ENCRYPTION_KEYS: `a:${HEX},b` }, /entry 2 of ENCRYPTION_KEYS/],
    [{ ENCRYPTION_KEYS: `a:${HEX},a:${OTHER}` }, /entry 2 .* repeats/],
    [{ ENCRYPTION_KEYS: `a:${HEX},` }, /entry 2/],
    [{ ENCRYPTION_KEYS: `bad name:${HEX}` }, /entry 1/],
  ];
  for (const [env, message] of bad) {
    const error = failure(() => parseKeyRing(env));
    expect(error.code).toBe('bad_key');
    expect(error.message).toMatch(message);
  }
});

test('no variable is an empty ring; one text is read as either form', () => {
  expect(parseKeyRing({})).toEqual([]);
  expect(parseKeyRing({ ENCRYPTION_KEY: ' ', ENCRYPTION_KEYS: '' })).toEqual([]);
});

test('property: the reference form opens in every spelling of hex and base64, and v1 only where it was sealed', () => {
  const anyKey = fc.uint8Array({ minLength: 32, maxLength: 32 });
  const spelling = fc.constantFrom('hex', 'HEX', 'base64', 'base64url');
  const text = fc.oneof(fc.string(), fc.string({ unit: 'binary' }), fc.uuid());
  fc.assert(
    fc.property(
      anyKey,
      anyKey,
      text,
      spelling,
      fc.constantFrom(12, 16),
      (key, other, plain, how, ivBytes) => {
        fc.pre(!Buffer.from(key).equals(Buffer.from(other)));
        const rings = [key, other].map((bytes) =>
          parseKeyRing({ ENCRYPTION_KEY: Buffer.from(bytes).toString('hex') }),
        );
        const [mine, theirs] = rings as [typeof ring, typeof ring];
        const iv = Buffer.from(other).subarray(0, ivBytes);
        const cipher = createCipheriv('aes-256-gcm', key, iv);
        const sealed = Buffer.concat([cipher.update(plain, 'utf8'), cipher.final()]);
        const value = [iv, cipher.getAuthTag(), sealed]
          .map((part) =>
            how === 'HEX' ? part.toString('hex').toUpperCase() : part.toString(how as BufferEncoding),
          )
          .join(':');
        // what is no text comes back as UTF-8 has it
        const expected = Buffer.from(plain, 'utf8').toString('utf8');
        expect(secretForm(value)).toBe('reference');
        expect(openSecret(mine, value, CONTEXT)).toBe(expected);
        expect(openSecret([...theirs, ...mine], value, { ...CONTEXT, row: '8' })).toBe(expected);
        expect(failure(() => openSecret(theirs, value, CONTEXT)).code).toBe('tampered');

        const own = sealSecret(mine, plain, CONTEXT);
        expect(openSecret([...theirs, ...mine], own, CONTEXT)).toBe(expected);
        for (const elsewhere of [{ row: '8' }, { column: 'c' }, { workspace: 'w2' }, { table: 't' }]) {
          expect(failure(() => openSecret(mine, own, { ...CONTEXT, ...elsewhere })).code).toBe('tampered');
        }
      },
    ),
    { numRuns: 300 },
  );
});
