import { agentPlatform } from './agent-platform.ts';
import { agentcenter } from './agentcenter.ts';
import { agentexpress } from './agentexpress.ts';
import { agentopia } from './agentopia.ts';
import { agentopiaDiagram } from './agentopia-diagram.ts';
import type { DocumentSpec } from './document.ts';

/** The documents whose applications work on agentd's tables, each through the schema of its name. */
export const documents: readonly DocumentSpec[] = [
  agentopia,
  agentopiaDiagram,
  agentcenter,
  agentPlatform,
  agentexpress,
];
