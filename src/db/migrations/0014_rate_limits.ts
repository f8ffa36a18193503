/** Rate limits of model providers, shared by all daemons. */
import type { Kysely } from 'kysely';
import { applyAccess } from './access.ts';

export async function up(db: Kysely<unknown>): Promise<void> {
  await applyAccess(db);
}

export async function down(_db: Kysely<unknown>): Promise<void> {}
