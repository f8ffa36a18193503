/** pg-boss on agentd's own connections, so that one pool and one set of rules serve both. */
import type { CommandResponse, ConstructorOptions } from 'pg-boss';
import type { Database, Queryable } from './database.ts';

/**
 * pg-boss's maintenance takes advisory locks, which any session with a login may hold for as long as it likes: then no job would expire or
 * be deleted. Rows of agentd's own take their place.
 */
function withOwnLocks(text: string): string {
  if (!text.includes('pg_advisory_xact_lock(') && !text.includes('pg_try_advisory_xact_lock(')) return text;
  const key = String.raw`\(\('x' \|\| encode\(sha224\(.*?\), 'hex'\)\)::bit\(64\)::bigint\)`;
  return text
    .replaceAll(new RegExp(`pg_advisory_xact_lock${key}`, 'g'), "agentd.hold_lock('pgboss')")
    .replaceAll(new RegExp(`pg_try_advisory_xact_lock${key}`, 'g'), "agentd.try_lock('pgboss_statistics')");
}

/** Runs pg-boss's statements where agentd's run. */
export function bossDb(db: Queryable): NonNullable<ConstructorOptions['db']> {
  return {
    async executeSql(text: string, values?: unknown[]) {
      return { rows: await db.query(withOwnLocks(text), values ?? []) };
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
