/** The waiting room: admission that never passes a ceiling, pauses, new runs of a workspace that has many waiting. */
import type { Kysely } from 'kysely';
import { applyAccess } from './access.ts';

export async function up(db: Kysely<unknown>): Promise<void> {
  await applyAccess(db);
}

export async function down(_db: Kysely<unknown>): Promise<void> {}
