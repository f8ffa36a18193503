/**
 * Secrets sealed anew: under the ring's first key, or for the first time.
 *
 * A walk in batches, a transaction each. It keeps nothing: what is done is seen from the values themselves, so one that was stopped is
 * begun again, and two at once share the work.
 */
import { type KeyRing, SecretError, type SecretStore, sealedUnder } from '../secrets.ts';
import type { Queryable } from './database.ts';
import { isLockTimeout } from './retry.ts';
import {
  type Form,
  formOf,
  placeName,
  replaceSecrets,
  SECRET_PLACES,
  type SecretPlace,
  type StoredSecret,
  secretsAfter,
  secretsIn,
} from './secret-columns.ts';
import { vaultErrorCode } from './secret-references.ts';

/** Rows that one transaction changes. */
const BATCH = 200;
/** How often rows that somebody holds are tried. */
const PASSES = 3;
/** Rows that are named in a report. */
const NAMED = 100;

export type SecretDeps = { readonly db: Queryable; readonly ring: KeyRing; readonly columns: SecretStore };

/** A secret that does not open. */
export type Unreadable = {
  readonly place: string;
  readonly id: string;
  readonly workspace: string | null;
  readonly code: string;
};

/** What a place holds. */
export type PlaceStatus = {
  readonly place: string;
  readonly is_opened: boolean;
  /** Sealed, by the name of the key. */
  readonly sealed: Readonly<Record<string, number>>;
  readonly reference: number;
  readonly plain: number;
  readonly vault: number;
  /** Among the above: those that do not open with the ring, or are in no Vault. */
  readonly unreadable: number;
};

export type SecretStatus = {
  /** The keys of the ring, the sealing one first. */
  readonly keys: readonly string[];
  readonly places: readonly PlaceStatus[];
  /** The first of them. */
  readonly unreadable: readonly Unreadable[];
};

/** Looks at every secret, and opens all that are sealed here. Changes nothing; the plain texts go no further than the check. */
export async function secretStatus(deps: SecretDeps): Promise<SecretStatus> {
  const places: PlaceStatus[] = [];
  const unreadable: Unreadable[] = [];
  for (const place of SECRET_PLACES) {
    const sealed: Record<string, number> = {};
    const counts: Record<Form, number> = { v1: 0, reference: 0, plain: 0, vault: 0 };
    let closed = 0;
    for await (const batch of batchesOf(deps.db, place)) {
      const missing = await missingInVault(deps.db, batch);
      for (const stored of batch) {
        const form = formOf(stored);
        counts[form]++;
        if (form === 'v1') {
          const kid = sealedUnder(stored.text) ?? '?';
          sealed[kid] = (sealed[kid] ?? 0) + 1;
        }
        const code = form === 'vault' ? (missing.get(stored.id) ?? null) : whyClosed(deps.columns, stored);
        if (code === null) continue;
        closed++;
        if (unreadable.length < NAMED) unreadable.push(unreadableOf(place, stored, code));
      }
    }
    const { reference, plain, vault } = counts;
    places.push({
      place: placeName(place),
      is_opened: place.isOpened,
      sealed,
      reference,
      plain,
      vault,
      unreadable: closed,
    });
  }
  return { keys: deps.ring.map(({ kid }) => kid), places, unreadable };
}

/** `rotate`: everything sealed goes under the first key. `seal`: what is plain is sealed. */
export type Work = 'rotate' | 'seal';

/** What was done, or with `isDryRun` would be. */
export type PlaceReport = {
  readonly place: string;
  /** Sealed anew. */
  readonly changed: number;
  /** Do not open, and stay as they are. */
  readonly unreadable: number;
  /** Held by somebody every time that they were tried, or changed meanwhile. */
  readonly busy: number;
};

export type WorkReport = {
  readonly places: readonly PlaceReport[];
  readonly unreadable: readonly Unreadable[];
};

export type WorkOptions = {
  readonly work: Work;
  readonly isDryRun: boolean;
  /** Runs a transaction in the operator's name. */
  readonly transaction: <T>(work: (tx: Queryable) => Promise<T>) => Promise<T>;
  /** After each batch. */
  readonly onProgress?: (place: string, changed: number) => void;
};

/**
 * Does it in all places. Each batch that changed something has a row in the audit log, without values.
 *
 * @throws SecretError `no_key` where the ring is empty
 */
export async function sealAnew(deps: SecretDeps, options: WorkOptions): Promise<WorkReport> {
  const first = deps.ring[0]?.kid;
  // says by itself what is missing
  if (first === undefined) deps.columns.seal('', { table: '', row: '', column: '', workspace: null });
  const unreadable: Unreadable[] = [];
  const places: PlaceReport[] = [];
  for (const place of SECRET_PLACES.filter(({ isOpened }) => isOpened)) {
    const report = { place: placeName(place), changed: 0, unreadable: 0, busy: 0 };
    let held: StoredSecret[] = [];
    for await (const batch of batchesOf(deps.db, place, `v1:${first}:`)) {
      const plan = planOf(deps.columns, options.work, batch);
      report.unreadable += plan.closed.length;
      for (const { stored, code } of plan.closed) {
        if (unreadable.length < NAMED) unreadable.push(unreadableOf(place, stored, code));
      }
      held.push(...(await apply(place, plan, options, report)));
    }
    for (let pass = 1; pass < PASSES && held.length > 0; pass++) {
      const waiting = held.map(({ id }) => id);
      held = [];
      for (let at = 0; at < waiting.length; at += BATCH) {
        // somebody held them, or put others there: what is there now counts
        const now = await secretsIn(deps.db, place, waiting.slice(at, at + BATCH));
        const plan = planOf(deps.columns, options.work, now);
        held.push(...(await apply(place, plan, options, report)));
      }
    }
    report.busy = held.length;
    places.push(report);
  }
  return { places, unreadable };
}

type Plan = {
  readonly open: readonly { readonly stored: StoredSecret; readonly is: string }[];
  readonly closed: readonly { readonly stored: StoredSecret; readonly code: string }[];
};

function planOf(columns: SecretStore, work: Work, batch: readonly StoredSecret[]): Plan {
  const open: { stored: StoredSecret; is: string }[] = [];
  const closed: { stored: StoredSecret; code: string }[] = [];
  for (const stored of batch) {
    const form = formOf(stored);
    if (form === 'vault' || (form === 'plain') !== (work === 'seal')) {
      // one that is cut looks like neither
      const code = form === 'plain' ? whyClosed(columns, stored) : null;
      if (code !== null) closed.push({ stored, code });
      continue;
    }
    try {
      const is = columns.reseal(stored.text, stored.context);
      if (is !== null) open.push({ stored, is });
    } catch (error) {
      if (!(error instanceof SecretError)) throw error;
      closed.push({ stored, code: error.code });
    }
  }
  return { open, closed };
}

/** Returns those that somebody holds, or has changed. */
async function apply(
  place: SecretPlace,
  plan: Plan,
  options: WorkOptions,
  report: { place: string; changed: number },
): Promise<StoredSecret[]> {
  if (plan.open.length === 0) return [];
  if (options.isDryRun) {
    report.changed += plan.open.length;
    return [];
  }
  const change = async (tx: Queryable): Promise<string[]> => {
    // tokens sealed anew are no new tokens
    await tx.query(
      `select set_config('agentd.resealing', 'on', true), set_config('lock_timeout', '2s', true)`,
    );
    const changes = plan.open.map(({ stored, is }) => ({ id: stored.id, was: stored.value, is }));
    const ids = await replaceSecrets(tx, place, changes);
    if (ids.length > 0) {
      await tx.query(`select agentd.audit($1, 'secrets', $2, null, $3)`, [
        options.work === 'rotate' ? 'rotate_secrets' : 'seal_secrets',
        report.place,
        JSON.stringify({ changed: ids.length, rows: ids }),
      ]);
    }
    return ids;
  };
  const done = new Set(
    await options.transaction(change).catch((error: unknown) => {
      if (isLockTimeout(error)) return [];
      throw error;
    }),
  );
  report.changed += done.size;
  options.onProgress?.(report.place, report.changed);
  return plan.open.map(({ stored }) => stored).filter(({ id }) => !done.has(id));
}

async function* batchesOf(
  db: Queryable,
  place: SecretPlace,
  skipped: string | null = null,
): AsyncGenerator<StoredSecret[]> {
  let after: string | null = null;
  for (;;) {
    const batch: StoredSecret[] = await secretsAfter(db, place, after, BATCH, skipped);
    if (batch.length > 0) yield batch;
    if (batch.length < BATCH) return;
    after = batch.at(-1)?.id ?? null;
  }
}

/** Why a secret of a column does not open; null: it does. */
function whyClosed(columns: SecretStore, { context, text }: StoredSecret): string | null {
  try {
    columns.open(text, context);
    return null;
  } catch (error) {
    if (error instanceof SecretError) return error.code;
    throw error;
  }
}

/** Of those that the Vault has, why some don't open. Their plain texts stay in the database. */
async function missingInVault(
  db: Queryable,
  batch: readonly StoredSecret[],
): Promise<ReadonlyMap<string, string>> {
  const asked = batch.filter(({ isVault }) => isVault);
  if (asked.length === 0) return new Map();
  const rows = await db.query<{ id: string; state: string }>(
    `select x.id, (select o.state from agentd.open_vault_secret(x.secret, x.workspace) o) as state
       from unnest($1::text[], $2::uuid[], $3::uuid[]) as x (id, secret, workspace)`,
    [asked.map(({ id }) => id), asked.map(({ text }) => text), asked.map(({ context }) => context.workspace)],
  );
  return new Map(
    rows.filter(({ state }) => state !== 'done').map(({ id, state }) => [id, vaultErrorCode(state)]),
  );
}

function unreadableOf(place: SecretPlace, stored: StoredSecret, code: string): Unreadable {
  return { place: placeName(place), id: stored.id, workspace: stored.context.workspace, code };
}
