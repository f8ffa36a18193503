/** The materialized views behind dashboards: whose turn it is to compute them, and the computing. */
import { openDatabase, type Queryable } from './database.ts';

/** After failures a view is due later each time, at most so many intervals. */
const LONGEST_PAUSE = 12;

/**
 * A refresh may wait and work so long, in milliseconds. It reads much, so it has a connection of its own: neither the statements that
 * move runs nor an agent's searches wait for it.
 */
const LIMITS = { lockMs: 1_000, statementMs: 60_000, answerMs: 70_000 };

/**
 * Takes the views that are due, for this caller alone: nobody else gets them before another interval is over. None while the platform
 * has no workspace. A row that another worker is just taking is not waited for.
 */
export async function takeDueDashboards(db: Queryable, everyMs: number): Promise<string[]> {
  const rows = await db.query<{ view_name: string }>(
    {
      name: 'take_due_dashboards',
      text: `update agentd.dashboard_refreshes d
                set started_at = agentd.now()
              where d.view_name in (
                select o.view_name
                  from agentd.dashboard_refreshes o
                 where abs(extract(epoch from agentd.now() - coalesce(o.started_at, o.refreshed_at))) * 1000
                       >= $1 * least(2 ^ least(o.failures, 10), ${LONGEST_PAUSE})
                   and exists (select 1 from public.workspaces)
                   for update skip locked)
              returning d.view_name`,
    },
    [everyMs],
  );
  return rows.map((row) => row.view_name).sort();
}

/** Writes down that a refresh failed, by its SQLSTATE. What was computed before stays, and says of when it is. */
export async function dashboardFailed(db: Queryable, view: string, code: string | null): Promise<void> {
  await db.query(
    `update agentd.dashboard_refreshes set failures = least(failures, 1000000) + 1, last_error = $2 where view_name = $1`,
    [view, code],
  );
}

/**
 * Computes a view anew on a connection of its own, while others go on reading the old figures. Returns the milliseconds that it took.
 *
 * Throws the driver's error: 57014 when it took more than a minute or the signal fired, 42P01 when it is gone.
 */
export async function refreshDashboard(
  db: Queryable & { readonly url: string; readonly embedded: boolean },
  view: string,
  signal: AbortSignal,
): Promise<number> {
  signal.throwIfAborted();
  const own = openDatabase({
    url: db.url,
    embedded: db.embedded,
    max: 1,
    applicationName: 'agentd dashboards',
    limits: LIMITS,
  });
  let cancelled: Promise<unknown> | null = null;
  let cancel = (): void => {};
  try {
    return await own.transaction(async (tx) => {
      const [backend] = await tx.query<{ pid: number }>('select pg_backend_pid() as pid');
      // The embedded database has one backend, which can't be told to stop what it is doing.
      if (!db.embedded) {
        cancel = () => {
          cancelled = db.query('select pg_cancel_backend($1)', [backend?.pid]).catch(() => {});
        };
        signal.addEventListener('abort', cancel);
        signal.throwIfAborted();
      }
      const [row] = await tx.query<{ took_ms: number }>('select agentd.refresh_dashboard($1) as took_ms', [
        view,
      ]);
      return row?.took_ms ?? 0;
    });
  } finally {
    signal.removeEventListener('abort', cancel);
    await cancelled;
    await own.close();
  }
}
