#!/usr/bin/env node
// The command `agentd`: the built worker where there is one (Node strips no types below node_modules), else the sources.
import { existsSync } from 'node:fs';

const major = Number(process.versions.node.split('.')[0]);
if (major < 24) {
  console.error(`agentd: Node ${process.versions.node} is too old: agentd needs Node 24 or newer.`);
  console.error('Install it (https://nodejs.org), or in a checkout use: npm run agentd -- COMMAND');
  process.exit(2);
}

const built = new URL('../dist/cli.js', import.meta.url);
const { run } = await import(existsSync(built) ? built.href : new URL('../src/cli.ts', import.meta.url).href);
await run();
