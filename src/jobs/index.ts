/** The queues that this version works. */
export { type CredentialParts, openCredentialParts } from './credential-parts.ts';
export { type DocumentParts, openDocumentParts } from './document-parts.ts';
export { type McpParts, openMcpParts } from './mcp-parts.ts';
export { taskRunJob } from './task-run.ts';
