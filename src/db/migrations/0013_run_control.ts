/** What holds runs within bounds and in people's hands: budgets, approvals, retries, failure policies, the audit log. */
import type { Kysely } from 'kysely';
import { applyAccess } from './access.ts';

export async function up(db: Kysely<unknown>): Promise<void> {
  await applyAccess(db);
}

export async function down(_db: Kysely<unknown>): Promise<void> {}
