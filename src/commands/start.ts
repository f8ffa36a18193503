import type { Command } from 'commander';
import { createLogger } from '../telemetry/logger.ts';
import type { CommandContext } from './context.ts';
import { EXIT } from './errors.ts';

/** `agentd start`. */
export function register(program: Command, context: CommandContext): void {
  program
    .command('start')
    .description('run the worker until it is told to stop (SIGTERM or Ctrl-C; a second one ends it at once)')
    .addHelpText(
      'after',
      '\nThe worker is configured by environment variables; agentd doctor shows what is in force.\n' +
        'Without DATABASE_URL it serves an embedded database of its own.',
    )
    .action(async (_: unknown, command: Command) => {
      const output = context.output(command.optsWithGlobals<{ json?: boolean }>());
      const config = context.config();
      const logger = createLogger({ level: config.logLevel });
      // Loaded here, so that the other commands do not wait for the whole worker to be read.
      const { startDaemon } = await import('../daemon.ts');
      const signals = watchSignals();
      try {
        const daemon = await startDaemon(config, { logger });
        const probes = daemon.probesUrl;
        if (output.json) output.data({ started: true, probes_url: probes }, true);
        else
          context.note(
            `agentd ${context.version} runs${probes === null ? '' : `, probes on ${probes}`}. Ctrl-C stops it.`,
          );
        signals.onFirst(() => {
          logger.info({ event: 'signal', drain_seconds: config.drainSeconds }, 'told to stop');
          daemon
            .stop()
            .catch((error: unknown) =>
              logger.error({ event: 'stop_failed', err: error }, 'the worker could not stop cleanly'),
            );
        });
        await daemon.stopped;
      } finally {
        signals.release();
      }
    });
}

/**
 * From the first moment, signals are caught: one that arrives while the daemon starts is remembered, and stops it
 * as soon as it can be stopped. The second one ends the process, whatever it does.
 */
function watchSignals(): { onFirst(stop: () => void): void; release(): void } {
  let seen = 0;
  let stop: (() => void) | null = null;
  const handle = (): void => {
    seen += 1;
    if (seen >= 2) process.exit(EXIT.failed);
    stop?.();
  };
  process.on('SIGTERM', handle);
  process.on('SIGINT', handle);
  return {
    onFirst(callback) {
      stop = callback;
      if (seen > 0) callback();
    },
    release() {
      process.off('SIGTERM', handle);
      process.off('SIGINT', handle);
    },
  };
}
