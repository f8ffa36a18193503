/** References that were right when they were made, and what they refer to moves. */
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { makeWorld, onStage, type Stage, type World } from './isolation-world.ts';
import { column, denied, outcome } from './schema-support.ts';

let db: TestDatabase;
let world: World;
beforeAll(async () => {
  db = await testDatabase();
  world = await makeWorld(db);
});
afterAll(() => db.dispose());

describe('what moves takes nothing along', () => {
  /** Whoever is in both companies could carry one's data to the other. */
  const asGoBetween = (stage: Stage) =>
    stage.client.query(
      `insert into public.workspace_members (workspace_id, user_id, role) values ($1, $2, 'owner')`,
      [world.there.workspace, world.here.owner],
    );

  test.each([
    ['agent_datastores', 'datastores', 'datastore_id'],
    ['agent_media_assignments', 'media_library', 'media_id'],
    ['agent_api_connections', 'api_connections', 'api_connection_id'],
    ['agent_integration_permissions', 'user_integration_credentials', 'connection_id'],
  ])(
    'an agent with a row of %s stays where that belongs, and is free without it',
    async (table, parent, name) => {
      await onStage(db, world, async (stage) => {
        await asGoBetween(stage);
        const { here, there } = world;
        const id = (
          await column<string>(
            stage.client,
            `insert into public.agents (workspace_id, user_id, name) values ($1, $2, 'mover') returning id`,
            [here.workspace, here.owner],
          )
        )[0];
        const move = () =>
          stage.attempt('owner', 'update public.agents set workspace_id = $1 where id = $2', [
            there.workspace,
            id,
          ]);
        expect(await move()).toMatchObject({ code: 'ok', count: 1 });
        await stage.client.query(`insert into public.${table} (agent_id, ${name}) values ($1, $2)`, [
          id,
          here.place.of(parent),
        ]);
        expect((await move()).code).toBe(denied);
        const service = await stage.attempt(
          'service_role',
          'update public.agents set workspace_id = $1 where id = $2',
          [there.workspace, id],
        );
        expect(service.code).toBe(denied);
      });
    },
  );

  test('an agent whose owner changes does not keep the old one’s private things', async () => {
    await onStage(db, world, async (stage) => {
      const { here } = world;
      const [own] = await column<string>(
        stage.client,
        `insert into public.datastores (user_id, name, type) values ($1, 'private', 'pgvector') returning id`,
        [here.owner],
      );
      await stage.client.query(
        'insert into public.agent_datastores (agent_id, datastore_id) values ($1, $2)',
        [here.agent, own],
      );
      const give = await stage.attempt('owner', 'update public.agents set user_id = $1 where id = $2', [
        here.manager,
        here.agent,
      ]);
      expect(give.code).toBe(denied);
      await stage.client.query('delete from public.agent_datastores where datastore_id = $1', [own]);
      const given = await stage.attempt('owner', 'update public.agents set user_id = $1 where id = $2', [
        here.manager,
        here.agent,
      ]);
      expect(given).toMatchObject({ code: 'ok', count: 1 });
    });
  });

  test('a datastore that agents use is not given to another user of another workspace', async () => {
    await onStage(db, world, async (stage) => {
      const { here, there } = world;
      for (const caller of ['author', 'service_role'] as const) {
        const answer = await stage.attempt(
          caller,
          'update public.datastores set user_id = $1, workspace_id = $2 where id = $3',
          [there.author, there.workspace, here.place.of('datastores')],
        );
        expect(answer.code, caller).toBe(denied);
      }
    });
  });
});

describe.runIf(onServer)('a reference made while what it refers to moves', () => {
  /** Two sessions of the platform's, each in a transaction, and the rows that they quarrel about. */
  async function quarrel(
    act: (one: pg.PoolClient, other: pg.PoolClient, agent: string, datastore: string) => Promise<void>,
  ) {
    const { here } = world;
    const [agent] = await column<string>(
      db.pool,
      `insert into public.agents (workspace_id, user_id, name) values ($1, $2, 'mover') returning id`,
      [here.workspace, here.owner],
    );
    const [datastore] = await column<string>(
      db.pool,
      `insert into public.datastores (workspace_id, user_id, name, type) values ($1, $2, 'd', 'pgvector') returning id`,
      [here.workspace, here.author],
    );
    const [one, other] = [await db.pool.connect(), await db.pool.connect()];
    try {
      await one.query('begin');
      await other.query('begin');
      await act(one, other, agent as string, datastore as string);
    } finally {
      await one.query('rollback');
      await other.query('rollback');
      one.release();
      other.release();
    }
  }
  const link = 'insert into public.agent_datastores (agent_id, datastore_id) values ($1, $2)';
  const moveAgent = 'update public.agents set workspace_id = $1 where id = $2';
  const moveDatastore = 'update public.datastores set workspace_id = $1 where id = $2';

  /** Until a session waits for a lock that another holds. */
  async function waits(session: pg.PoolClient): Promise<void> {
    const { processID } = session as unknown as { processID: number };
    for (;;) {
      const [blocked] = await column<boolean>(db.pool, 'select cardinality(pg_blocking_pids($1)) > 0', [
        processID,
      ]);
      if (blocked) return;
    }
  }

  test.each([
    ['an agent', moveAgent, (agent: string, _datastore: string) => agent],
    ['a datastore', moveDatastore, (_agent: string, datastore: string) => datastore],
  ])('is seen by the move of %s that waits for it, or sees the move', async (_what, move, of) => {
    await quarrel(async (one, other, agent, datastore) => {
      await one.query(link, [agent, datastore]);
      const moving = outcome(other, move, [world.there.workspace, of(agent, datastore)]);
      await waits(other);
      await one.query('commit');
      expect(await moving).toBe(denied);
    });
    await quarrel(async (one, other, agent, datastore) => {
      await one.query(move, [world.there.workspace, of(agent, datastore)]);
      const linking = outcome(other, link, [agent, datastore]);
      await waits(other);
      await one.query('commit');
      expect(await linking).toBe(denied);
    });
  });
});
