/** A daemon whose model answers in its own process, at once or after BENCH_MODEL_MS, for measuring the engine alone. */
import { setTimeout as wait } from 'node:timers/promises';
import { loadConfig } from '../../src/config.ts';
import { startDaemon } from '../../src/daemon.ts';
import { createLogger } from '../../src/telemetry/logger.ts';
import { modelAnswer } from './model-answer.ts';

const modelMs = Number(process.env.BENCH_MODEL_MS ?? 0);
const client = {
  complete: async () => {
    if (modelMs > 0) await wait(modelMs);
    return modelAnswer();
  },
};
const daemon = await startDaemon(loadConfig(), {
  logger: createLogger({ level: 'info' }),
  createModelClient: () => client,
  probes: false,
});
process.on('SIGTERM', () => void daemon.stop());
