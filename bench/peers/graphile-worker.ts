/**
 * graphile-worker: says when a task starts. One line `{"ready":true}`, then one `{"id":…,"at":…}` for every task, `at`
 * in milliseconds of the clock that all processes of a machine share.
 */
import { Logger, run } from 'graphile-worker';

const runner = await run({
  connectionString: process.env.DATABASE_URL as string,
  concurrency: 32,
  noHandleSignals: true,
  logger: new Logger(() => () => {}),
  taskList: {
    pickup: async (payload) => {
      const at = performance.timeOrigin + performance.now();
      console.log(JSON.stringify({ id: (payload as { id: number }).id, at }));
    },
  },
});
console.log(JSON.stringify({ ready: true }));
process.on('SIGTERM', () => void runner.stop().then(() => process.exit(0)));
