/** Depth and age of the queues as a table: the same in `agentd status` and `agentd queues list`. */
import type { QueueHealth } from '../db/operations.ts';
import { count, seconds } from './format.ts';
import type { Output } from './output.ts';

/** Prints a line for each queue. `pausedBy` says more about a pause, such as whose it is; nothing by default. */
export function printQueues(
  output: Output,
  queues: readonly QueueHealth[],
  pausedBy: (queue: string) => string = () => '',
): void {
  output.table(
    queues,
    [
      { title: 'QUEUE', value: (row) => row.queue },
      { title: 'READY', value: (row) => count(row.ready), align: 'right' },
      { title: 'DELAYED', value: (row) => count(row.delayed), align: 'right' },
      { title: 'RUNNING', value: (row) => count(row.active), align: 'right' },
      { title: 'WAITING ROOM', value: (row) => count(row.waiting_room), align: 'right' },
      {
        title: 'DEAD',
        value: (row) => count(row.dead),
        align: 'right',
        style: (row) => (row.dead > 0 ? 'red' : null),
      },
      { title: 'OLDEST', value: (row) => seconds(row.oldest_ready_seconds), align: 'right' },
      { title: 'WORKERS', value: (row) => count(row.workers), align: 'right' },
      {
        title: 'STATE',
        value: (row) => (row.paused ? `paused${pausedBy(row.queue)}` : stateOf(row)),
        style: (row) => (stateOf(row) === 'open' ? 'green' : 'yellow'),
      },
    ],
    'There are no queues. Run: agentd migrate up',
  );
}

function stateOf(row: QueueHealth): string {
  if (row.paused) return 'paused';
  return row.workers === 0 ? 'no worker' : 'open';
}
