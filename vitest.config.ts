import { join } from 'node:path';
import { configDefaults, defineConfig } from 'vitest/config';
import { LongestFirst } from './tests/support/longest-first.ts';
import { filesWithoutDatabase } from './tests/support/which-database.ts';

// Every process of a run compiles the same packages and sources, those of `agentd` as a command among them: once is enough.
process.env.NODE_COMPILE_CACHE ??= join(import.meta.dirname, 'node_modules/.cache/tests');

export default defineConfig({
  test: {
    include: ['tests/**/*.test.ts'],
    exclude: [...configDefaults.exclude, ...(process.env.TEST_DATABASE_URL ? filesWithoutDatabase() : [])],
    globalSetup: ['tests/support/global-setup.ts'],
    testTimeout: 60_000,
    hookTimeout: 120_000,
    pool: 'forks',
    // An embedded database computes in the test's own process. On a server a test waits most of the time: eleven files of scenarios
    // took 232 s with two workers and 174 s with four, on two cores that had other work as well.
    maxWorkers: process.env.TEST_DATABASE_URL ? 4 : 3,
    sequence: { sequencer: LongestFirst },
  },
});
