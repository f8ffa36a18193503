/** Who sits at the terminal, for the audit log. */
import { hostname, userInfo } from 'node:os';
import type { Database, Queryable } from '../db/database.ts';

/** Runs `work` in one transaction in which agentd.audit() names the person at this terminal. */
export function asOperator<T>(db: Database, work: (tx: Queryable) => Promise<T>): Promise<T> {
  return db.transaction(async (tx) => {
    await tx.query(`select set_config('agentd.operator', $1, true)`, [operatorName()]);
    return work(tx);
  });
}

/** `user@host`; a container may have no name for its user. */
export function operatorName(): string {
  let name = 'unknown';
  try {
    name = userInfo().username;
  } catch {
    // no such user in this system's list
  }
  return `${name}@${hostname()}`;
}
