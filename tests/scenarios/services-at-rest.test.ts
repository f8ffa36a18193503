/** What is due and can't be had at the moment is not asked for without end. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { credentialSchedule } from '../../src/services/credential-schedule.ts';
import type { Service, ServiceDeps } from '../../src/services/periodic.ts';
import { taskEvents } from '../../src/services/task-events.ts';
import { createLogger } from '../../src/telemetry/logger.ts';
import { createMetrics } from '../../src/telemetry/metrics.ts';
import { makeCredential, makeProvider } from '../support/credentials.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform, type Platform } from '../support/platform.ts';

let db: TestDatabase;
let platform: Platform;
beforeAll(async () => {
  db = await testDatabase();
  platform = await makePlatform(db);
});
afterAll(async () => {
  await db?.dispose();
});

/** How long a service rests after its first pass, in milliseconds, while another session holds the rows. */
async function restWhile(held: string, make: (deps: ServiceDeps) => Service): Promise<number> {
  const { promise, resolve } = Promise.withResolvers<number>();
  const after: typeof systemClock.after = (ms) => {
    resolve(ms);
    return { cancel: () => {} };
  };
  const log = createLogger({ level: 'debug', destination: { write: () => {} } });
  const service = make({
    clock: { ...systemClock, after },
    log,
    metrics: createMetrics({ builtInTools: [] }),
  });
  const holder = await db.pool.connect();
  try {
    await holder.query('begin');
    expect((await holder.query(held)).rowCount).toBeGreaterThan(0);
    service.start();
    const rest = await promise;
    await service.stop();
    return rest;
  } finally {
    await holder.query('rollback');
    holder.release();
  }
}

describe.skipIf(!onServer)('server-only: a service', () => {
  test('rests while another daemon fires the events that are due', async () => {
    await db.query(
      `insert into agentd.task_events (workspace_id, kind, subject_id) values ($1, 'manual', gen_random_uuid())`,
      [platform.workspaceId],
    );
    const rest = await restWhile(`select 1 from agentd.locks where name = 'task-events' for update`, (deps) =>
      taskEvents({ ...deps, db, workerId: 'one' }),
    );
    expect(rest).toBeGreaterThanOrEqual(500);
  });

  test('rests while a tenant’s transaction holds a credential that is due', async () => {
    const id = await makeCredential(db, platform, await makeProvider(db, 'https://example.com/token'));
    await db.query(
      `update public.user_integration_credentials
          set next_refresh_at = agentd.now() - interval '1 second', is_refresh_due = false where id = $1`,
      [id],
    );
    const rest = await restWhile(
      `select 1 from public.user_integration_credentials where id = '${id}' for update`,
      (deps) => credentialSchedule({ ...deps, db }),
    );
    expect(rest).toBeGreaterThanOrEqual(1_000);
  });
});
