/** The queues that this version works. */
export { taskRunJob } from './task-run.ts';
