/** The queues that this version works. */
export { type DocumentParts, openDocumentParts } from './document-parts.ts';
export { taskRunJob } from './task-run.ts';
