/** The order of test files: the longest first, so that none of them is still at work when all the others are done. */
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** Files that take more than half a minute; a fresh clone knows no durations, and goes by the size of files. */
const LONG = [
  'scenarios/chaos.test.ts',
  'demo.test.ts',
  'db/collisions.test.ts',
  'pipelines/ingest/chunk-scale.test.ts',
  'telemetry/traces.test.ts',
  'scenarios/silent-networks.test.ts',
  'db/migrate.test.ts',
  'db/supabase.test.ts',
  'scenarios/secrets.test.ts',
  'commands/doctor.test.ts',
];

export class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const place = ({ moduleId }: TestSpecification): number => {
      const index = LONG.findIndex((name) => moduleId.endsWith(`/tests/${name}`));
      return index < 0 ? LONG.length : index;
    };
    return (await super.sort(files)).toSorted((a, b) => place(a) - place(b));
  }
}
