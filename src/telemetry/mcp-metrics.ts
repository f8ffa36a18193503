/** What becomes of looks at the tools of MCP servers. */
import { Counter, Gauge, Histogram, type Registry } from 'prom-client';
import type { McpConnectionsState } from '../db/operations-mcp.ts';

/** A look that is over. */
export type McpLookEnd = {
  readonly kind: string;
  readonly code?: string;
  readonly seconds?: number;
  readonly changes?: { readonly added: number; readonly changed: number; readonly removed: number };
};

export type McpMetrics = {
  ended(look: McpLookEnd): void;
  /** Replaces what is known of connections. */
  connections(rows: readonly McpConnectionsState[]): void;
  /** The database did not answer: old figures would be lies, so they go. */
  clear(): void;
};

const SECONDS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

/**
 * Registers them.
 *
 * @param bounded makes a function that lets so many values of a label through, and `other` for what comes later
 * @param amount a measurement as a number that prom-client accepts
 */
export function mcpMetrics(
  registry: Registry,
  bounded: () => (value: string) => string,
  amount: (value: number) => number,
): McpMetrics {
  const registers = [registry];
  const looks = new Counter({
    name: 'agentd_mcp_refreshes_total',
    help: 'Looks at the tools of MCP connections that are over, by what became of them.',
    labelNames: ['outcome', 'reason_code'],
    registers,
  });
  const seconds = new Histogram({
    name: 'agentd_mcp_refresh_seconds',
    help: 'Time of such a look.',
    buckets: SECONDS,
    registers,
  });
  const changes = new Counter({
    name: 'agentd_mcp_tools_changed_total',
    help: 'Tools that were added, changed or removed by their servers.',
    labelNames: ['change'],
    registers,
  });
  const connections = new Gauge({
    name: 'agentd_mcp_connections',
    help: 'MCP connections that are switched on, by how they are.',
    labelNames: ['state'],
    registers,
  });
  const oldest = new Gauge({
    name: 'agentd_mcp_oldest_wait_seconds',
    help: 'How long the connection that waits longest for a look has waited.',
    registers,
  });
  const code = bounded();
  const clear = (): void => {
    connections.reset();
    oldest.reset();
  };
  for (const change of ['added', 'changed', 'removed']) changes.inc({ change }, 0);
  return {
    ended(look) {
      looks.inc({ outcome: look.kind, reason_code: look.code === undefined ? '' : code(look.code) });
      if (look.seconds !== undefined) seconds.observe(amount(look.seconds));
      if (!look.changes) return;
      changes.inc({ change: 'added' }, amount(look.changes.added));
      changes.inc({ change: 'changed' }, amount(look.changes.changed));
      changes.inc({ change: 'removed' }, amount(look.changes.removed));
    },
    connections(rows) {
      clear();
      for (const { state, connections: count, oldest_seconds } of rows) {
        connections.set({ state }, count);
        if (state === 'waiting') oldest.set(amount(oldest_seconds ?? 0));
      }
    },
    clear,
  };
}
