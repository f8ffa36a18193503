/** What becomes of credentials, and how many need a person. */
import { Counter, Gauge, Histogram, type Registry } from 'prom-client';
import type { CredentialsFailing } from '../db/credential-reports.ts';

export type CredentialMetrics = {
  /** An attempt is over. */
  ended(outcome: string, provider: string, seconds: number): void;
  /** A provider refused the platform's client. */
  alarm(provider: string): void;
  /** A token came that could not be written into its row. */
  rescued(): void;
  /** Replaces what is known of failing credentials, and of providers whose configuration is wrong. */
  failing(rows: readonly CredentialsFailing[], alarms: readonly string[]): void;
  /** The database did not answer: old figures would be lies, so they go. */
  clear(): void;
};

const SECONDS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30];

/**
 * Registers them.
 *
 * @param bounded makes a function that lets so many values of a label through, and `other` for what comes later
 * @param amount a measurement as a number that prom-client accepts
 */
export function credentialMetrics(
  registry: Registry,
  bounded: () => (value: string) => string,
  amount: (value: number) => number,
): CredentialMetrics {
  const registers = [registry];
  const refreshes = new Counter({
    name: 'agentd_credential_refreshes_total',
    help: 'Attempts at credentials that are over, by what became of them.',
    labelNames: ['provider', 'outcome'],
    registers,
  });
  const seconds = new Histogram({
    name: 'agentd_credential_refresh_seconds',
    help: 'Time of an attempt at a credential.',
    labelNames: ['provider'],
    buckets: SECONDS,
    registers,
  });
  const alarms = new Counter({
    name: 'agentd_provider_misconfigured_total',
    help: 'Refreshes in which a provider refused the client of this platform.',
    labelNames: ['provider'],
    registers,
  });
  const rescued = new Counter({
    name: 'agentd_tokens_rescued_total',
    help: 'New tokens that could not be written into their row and were kept elsewhere.',
    registers,
  });
  const failing = new Gauge({
    name: 'agentd_credentials_failing',
    help: 'Credentials that need a person (expired, error) or are late (active).',
    labelNames: ['provider', 'status'],
    registers,
  });
  const misconfigured = new Gauge({
    name: 'agentd_provider_alarm',
    help: '1 for a provider that refuses the client of this platform.',
    labelNames: ['provider'],
    registers,
  });
  const provider = bounded();
  const outcome = bounded();
  return {
    ended(what, who, took) {
      refreshes.inc({ provider: provider(who), outcome: outcome(what) });
      seconds.observe({ provider: provider(who) }, amount(took));
    },
    alarm: (who) => alarms.inc({ provider: provider(who) }),
    rescued: () => rescued.inc(),
    failing(rows, names) {
      failing.reset();
      misconfigured.reset();
      for (const row of rows) {
        failing.inc({ provider: provider(row.provider), status: row.status }, amount(row.credentials));
      }
      for (const name of names) misconfigured.set({ provider: provider(name) }, 1);
    },
    clear() {
      failing.reset();
      misconfigured.reset();
    },
  };
}
