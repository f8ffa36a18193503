/**
 * Keeps the figures of dashboards fresh: `public.workspace_overview` and `public.agent_activity`.
 *
 * Of all workers one at a time computes a view, on a connection of its own. A refresh that fails, or takes more than a minute, leaves the
 * figures as they were with their time, and the view is due again after a longer pause: 5, 10, 20, 40, then 60 minutes. A worker that dies
 * while it computes keeps nobody from trying five minutes later.
 */
import { dashboardFailed, refreshDashboard, takeDueDashboards } from '../db/dashboards.ts';
import type { Database } from '../db/database.ts';
import { periodic, type Service, type ServiceDeps } from './periodic.ts';

/** So old figures become, in milliseconds, and a little older: every worker looks at its own moment. */
export const DASHBOARDS_EVERY_MS = 5 * 60_000;
/** A look costs a statement that finds nothing, mostly. A crowd of workers does not look at one moment. */
const LOOK_EVERY_MS = 60_000;

export type DashboardsDeps = ServiceDeps & { readonly db: Database };

/** The refreshing as a service. It stops at once: what it computes is given up. */
export function dashboards(deps: DashboardsDeps): Service {
  return periodic('dashboards', deps, async (signal) => {
    await refreshDashboards(deps, signal);
    return LOOK_EVERY_MS * (0.9 + Math.random() * 0.2);
  });
}

/** Computes the views that are due and nobody else has taken. Returns how many were refreshed. */
export async function refreshDashboards(
  deps: DashboardsDeps,
  signal: AbortSignal = new AbortController().signal,
): Promise<number> {
  let refreshed = 0;
  for (const view of await takeDueDashboards(deps.db, DASHBOARDS_EVERY_MS)) {
    if (signal.aborted) break;
    const from = deps.clock.elapsed();
    try {
      const tookMs = await refreshDashboard(deps.db, view, signal);
      deps.metrics.dashboards.refreshed(view, 'refreshed', (deps.clock.elapsed() - from) / 1000);
      deps.log.debug({ event: 'dashboard_refreshed', view, took_ms: tookMs }, 'figures were computed anew');
      refreshed++;
    } catch (error) {
      if (signal.aborted) break;
      const code = (error as { code?: unknown } | null)?.code;
      deps.metrics.dashboards.refreshed(view, 'failed', (deps.clock.elapsed() - from) / 1000);
      deps.log.warn(
        { event: 'dashboard_failed', view, err: error },
        'figures could not be computed anew: the old ones stay',
      );
      await dashboardFailed(deps.db, view, typeof code === 'string' ? code : null);
    }
  }
  return refreshed;
}
