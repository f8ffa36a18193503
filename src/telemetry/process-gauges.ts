/** The process itself: a blocked event loop delays every job, heartbeat and probe, so it is the first number to look at. */
import { Counter, Gauge, type Registry } from 'prom-client';

/** Delay of the event loop over the time since the last scrape, in seconds. */
export type EventLoopDelay = { readonly mean: number; readonly p99: number; readonly max: number };

export type ProcessGauges = {
  eventLoopDelay(delay: EventLoopDelay): void;
  /** Reads memory, processor time and uptime. */
  refresh(): void;
  /** The version that runs, as the label of a series that is always 1. */
  build(version: string): void;
};

/** Registers the gauges. */
export function processGauges(registry: Registry): ProcessGauges {
  const registers = [registry];
  const delay = new Gauge({
    name: 'agentd_event_loop_delay_seconds',
    help: 'Delay of the event loop since the last scrape.',
    labelNames: ['stat'],
    registers,
  });
  const memory = new Gauge({
    name: 'agentd_process_resident_memory_bytes',
    help: 'Resident memory.',
    registers,
  });
  const cpu = new Counter({
    name: 'agentd_process_cpu_seconds_total',
    help: 'Processor time used.',
    registers,
  });
  const uptime = new Gauge({ name: 'agentd_process_uptime_seconds', help: 'Age of the process.', registers });
  const info = new Gauge({
    name: 'agentd_build_info',
    help: 'Always 1; the labels say what runs.',
    labelNames: ['version', 'node'],
    registers,
  });
  let spent = 0;
  return {
    eventLoopDelay(value) {
      for (const stat of ['mean', 'p99', 'max'] as const) {
        delay.set({ stat }, Number.isFinite(value[stat]) ? value[stat] : 0);
      }
    },
    refresh() {
      const usage = process.cpuUsage();
      const seconds = (usage.user + usage.system) / 1e6;
      cpu.inc(Math.max(0, seconds - spent));
      spent = seconds;
      memory.set(process.memoryUsage.rss());
      uptime.set(process.uptime());
    },
    build: (version) => info.set({ version, node: process.versions.node }, 1),
  };
}
