/** A daemon whose model answers at once in its own process, for measuring the engine alone. */
import { loadConfig } from '../../src/config.ts';
import { startDaemon } from '../../src/daemon.ts';
import { createLogger } from '../../src/telemetry/logger.ts';
import { modelAnswer } from './model-answer.ts';

const client = { complete: async () => modelAnswer() };
const daemon = await startDaemon(loadConfig(), {
  logger: createLogger({ level: 'info' }),
  createModelClient: () => client,
  probes: false,
});
process.on('SIGTERM', () => void daemon.stop());
