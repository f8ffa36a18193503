/** pg-boss on agentd's own connections, so that one pool and one set of rules serve both. */
import type { CommandResponse, ConstructorOptions } from 'pg-boss';
import type { Database, Queryable } from './database.ts';

/** Runs pg-boss's statements where agentd's run. */
export function bossDb(db: Queryable): NonNullable<ConstructorOptions['db']> {
  return {
    async executeSql(text: string, values?: unknown[]) {
      return { rows: await db.query(text, values ?? []) };
    },
  };
}

/** Options that every use of pg-boss shares: no cron of its own, no second pool. */
export function bossOptions(db: Database): ConstructorOptions {
  return { db: bossDb(db), schema: 'pgboss', schedule: false, migrate: false, createSchema: false };
}

/**
 * Ids of the jobs that a settling call changed. pg-boss answers them but leaves them out of its types; an
 * attempt that is no longer current is not among them.
 */
export function settledIds(response: CommandResponse): readonly string[] {
  return (response as { settled?: readonly string[] }).settled ?? [];
}
