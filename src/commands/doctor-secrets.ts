/** What `agentd doctor` says of stored secrets: plain ones, and keys that some of them still need. */
import type { Config } from '../config.ts';
import type { Queryable } from '../db/database.ts';
import { countSecrets, placeName, SECRET_PLACES } from '../db/secret-columns.ts';
import { type KeyRing, keysOf, parseKeyRing, SecretError } from '../secrets.ts';
import { type Check, check, type Detail } from './doctor-checks.ts';
import { count } from './format.ts';

/** Opens nothing: that is `agentd secrets status`. */
export async function checkSecrets(db: Queryable, encryption: Config['encryption']): Promise<Check> {
  const name = 'stored secrets';
  const ring = ringOf(encryption);
  let plain = 0;
  let sealed = 0;
  const old = new Map<string, number>();
  const lost = new Map<string, number>();
  const details: Detail[] = [];
  for (const place of SECRET_PLACES.filter(({ isOpened }) => isOpened)) {
    for (const { form, kid, secrets } of await countSecrets(db, place)) {
      if (form === 'plain') {
        plain += secrets;
        details.push({
          object: placeName(place),
          problem: `${count(secrets)} in plain text`,
          next_step: null,
        });
      } else sealed += secrets;
      if (form !== 'v1' || kid === null || ring === null) continue;
      const keys = keysOf(ring, kid);
      if (keys.length === 0) lost.set(kid, (lost.get(kid) ?? 0) + secrets);
      else if (ring[0] && kid !== ring[0].kid) old.set(kid, (old.get(kid) ?? 0) + secrets);
    }
  }
  const told = (counts: ReadonlyMap<string, number>): string =>
    [...counts].map(([kid, secrets]) => `${kid} (${count(secrets)})`).join(', ');
  if (lost.size > 0) {
    return check(
      name,
      'fail',
      `Some secrets were sealed with keys that are not set: ${told(lost)}.`,
      'Put these keys into ENCRYPTION_KEYS after the first one; agentd secrets status lists the rows.',
      details,
    );
  }
  const needs = old.size === 0 ? '' : ` Keys that are still needed beside the first: ${told(old)}.`;
  if (plain > 0) {
    return check(
      name,
      'warn',
      `${count(plain)} secrets are stored in plain text, ${count(sealed)} are sealed or in the Vault.${needs}`,
      'Seal them with ENCRYPTION_KEYS in force: agentd secrets seal.',
      details,
    );
  }
  const text = `${count(sealed)} secrets are stored, none in plain text.${needs}`;
  return old.size === 0
    ? check(name, 'ok', text)
    : check(name, 'warn', text, 'To be able to remove these keys: agentd secrets rotate.');
}

/** Null where it can't be read, which another check says. */
function ringOf(encryption: Config['encryption']): KeyRing | null {
  try {
    return parseKeyRing(encryption);
  } catch (error) {
    if (error instanceof SecretError) return null;
    throw error;
  }
}
