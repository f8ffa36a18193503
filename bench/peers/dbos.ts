/**
 * DBOS: durable workflows of three steps, started directly or through its queue.
 *
 *     node peers/dbos.ts direct|queued <workflows> <at once> <pool> <queue's polling interval in ms>
 *
 * Prints workflows per second from the first start to the last result, after a warm-up of a tenth.
 */
import { DBOS } from '@dbos-inc/dbos-sdk';
import { answerText } from '../support/model-answer.ts';

const [mode = 'direct', count = '1000', atOnce = '16', poolSize = '20', polling = '1000'] =
  process.argv.slice(2);

const step = async (): Promise<{ text: string }> => ({ text: answerText });
const workflow = DBOS.registerWorkflow(
  async (input: { task: string }) => {
    const first = await DBOS.runStep(step, { name: 'first' });
    const second = await DBOS.runStep(step, { name: 'second' });
    const third = await DBOS.runStep(step, { name: 'third' });
    return { task: input.task, length: first.text.length + second.text.length + third.text.length };
  },
  { name: 'report' },
);

const silent = { info() {}, debug() {}, warn() {}, error() {} };
DBOS.setConfig({
  name: 'bench',
  systemDatabaseUrl: process.env.DATABASE_URL as string,
  systemDatabasePoolSize: Number(poolSize),
  logger: silent as never,
});
await DBOS.launch();
await DBOS.registerQueue('bench', {
  workerConcurrency: Number(atOnce),
  minPollingIntervalMs: Number(polling),
});

async function direct(total: number): Promise<void> {
  let left = total;
  await Promise.all(
    Array.from({ length: Number(atOnce) }, async () => {
      while (left-- > 0) await (await DBOS.startWorkflow(workflow)({ task: 'report' })).getResult();
    }),
  );
}

async function queued(total: number): Promise<void> {
  const handles = await Promise.all(
    Array.from({ length: total }, () =>
      DBOS.startWorkflow(workflow, { queueName: 'bench' })({ task: 'report' }),
    ),
  );
  await Promise.all(handles.map((handle) => handle.getResult()));
}

const run = mode === 'direct' ? direct : queued;
await run(Math.ceil(Number(count) / 10));
const started = performance.now();
await run(Number(count));
const seconds = (performance.now() - started) / 1000;
console.log(JSON.stringify({ perSecond: Number(count) / seconds }));
await DBOS.shutdown();
process.exit(0);
