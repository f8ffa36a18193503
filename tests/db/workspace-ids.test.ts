/** An id of a workspace is nobody else's, before and after; and what a workspace owes outlives it. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { formerIds, isRemembered } from '../../src/db/workspace-erasing.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert } from '../support/platform.ts';
import { until } from '../support/runs.ts';
import { asService, asUser, denied, stateOf } from '../support/sessions.ts';
import { type Company, company, signUp } from './schema-support.ts';

let db: TestDatabase;
let c: Company;
beforeAll(async () => {
  db = await testDatabase();
  c = await company(db.pool);
});
afterAll(() => db?.dispose());

const taken = '23505';
const make = (user: string, id: string): Promise<string> =>
  stateOf(
    asUser(db, user, (client) =>
      client.query('insert into public.workspaces (id, name, owner_user_id) values ($1, $2, $3)', [
        id,
        `w ${id}`,
        user,
      ]),
    ),
  );
const close = (user: string, id: string): Promise<number | null> =>
  asUser(db, user, (client) => client.query('delete from public.workspaces where id = $1', [id])).then(
    (done) => done.rowCount,
  );

describe('an id that a user chooses for his workspace', () => {
  test('is his choice where it is new, and stays', async () => {
    const id = randomUUID();
    expect(await make(c.owner, id)).toBe('ok');
    const change = (to: string): Promise<string> =>
      stateOf(
        asUser(db, c.owner, (client) =>
          client.query('update public.workspaces set id = $2, name = $3 where id = $1', [id, to, 'renamed']),
        ),
      );
    expect(await change(randomUUID())).toBe(denied);
    // as an application does that writes back what it has read
    expect(await change(id)).toBe('ok');
  });

  test('is no user’s: neither his folder of files nor his secrets become the workspace’s', async () => {
    const victim = await signUp(db.pool);
    expect(await make(c.owner, victim)).toBe(taken);
    const secrets = randomUUID();
    await db.query('insert into agentd.vault_owners (secret_id, owner_id) values ($1, $2)', [
      randomUUID(),
      secrets,
    ]);
    expect(await make(c.owner, secrets)).toBe(taken);
  });

  test('may be his own, as applications choose at sign-up, unless secrets of his would be the workspace’s', async () => {
    const [user, careful, former] = [await signUp(db.pool), await signUp(db.pool), await signUp(db.pool)];
    expect(await make(user, user)).toBe('ok');
    await db.query('insert into agentd.vault_owners (secret_id, owner_id) values ($1, $2)', [
      randomUUID(),
      careful,
    ]);
    expect(await make(careful, careful)).toBe(taken);
    expect(await make(former, former)).toBe('ok');
    expect(await close(former, former)).toBe(1);
    expect(await make(former, former)).toBe(taken);
  });

  test('is no reason to refuse an upsert of a workspace that he has', async () => {
    const user = await signUp(db.pool);
    const [id, other] = [randomUUID(), randomUUID()];
    const upsert = (of: string, name: string): Promise<string> =>
      stateOf(
        asUser(db, user, (client) =>
          client.query(
            `insert into public.workspaces (id, name, owner_user_id) values ($1, $2, $3)
             on conflict (id) do update set id = excluded.id, name = excluded.name, owner_user_id = excluded.owner_user_id`,
            [of, name, user],
          ),
        ),
      );
    expect(await upsert(id, 'first')).toBe('ok');
    // restored by a service, an erasure that was given up, a secret
    await db.query(
      `insert into agentd.closed_workspaces (workspace_id, owner_user_id) select x, $2::uuid from unnest($1::uuid[]) x`,
      [[id, other], user],
    );
    await db.query(
      `insert into agentd.audit_log (action, object_type, object_id, workspace_id) values ('erase', 'workspace', $1::text, $1::uuid)`,
      [id],
    );
    await db.query('insert into agentd.vault_owners (secret_id, owner_id) values ($1, $2)', [
      randomUUID(),
      id,
    ]);
    expect(await upsert(id, 'second')).toBe('ok');
    const named = await db.query('select name from public.workspaces where id = $1', [id]);
    expect(named).toEqual([{ name: 'second' }]);
    // one that is not there is an insert like any other
    expect(await upsert(other, 'third')).toBe(taken);
  });

  test.runIf(onServer)('is not taken from a workspace that is just being deleted', async () => {
    const [owner, thief] = [await signUp(db.pool), await signUp(db.pool)];
    const id = randomUUID();
    expect(await make(owner, id)).toBe('ok');
    const deleting = await db.pool.connect();
    await deleting.query('begin');
    await deleting.query('delete from public.workspaces where id = $1', [id]);
    const stolen = make(thief, id);
    await until('the insert waits for the delete', async () => {
      const waiting = await db.query(
        `select 1 from pg_stat_activity where wait_event_type = 'Lock' and query like 'insert into public.workspaces%' and datname = current_database()`,
      );
      return waiting.length > 0;
    });
    await deleting.query('commit');
    deleting.release();
    expect(await stolen).toBe(taken);
    expect(await db.query('select 1 from public.workspaces where id = $1', [id])).toEqual([]);
  });

  test('is none of a workspace that was deleted or erased, but a service may restore it', async () => {
    const [deleted, erased] = [randomUUID(), randomUUID()];
    const other = await signUp(db.pool);
    expect(await make(other, deleted)).toBe('ok');
    expect(await close(other, deleted)).toBe(1);
    await db.query(
      `insert into agentd.audit_log (action, object_type, object_id, workspace_id) values ('erase', 'workspace', $1::text, $1::uuid)`,
      [erased],
    );
    for (const id of [deleted, erased]) {
      expect([id, await make(c.owner, id)]).toEqual([id, taken]);
      expect(await formerIds(db, id.slice(0, 8))).toEqual([id]);
      expect(await isRemembered(db, id)).toBe(true);
    }
    const restored = asService(db, (client) =>
      client.query(`insert into public.workspaces (id, name, owner_user_id) values ($1, 'back', $2)`, [
        deleted,
        other,
      ]),
    );
    expect(await stateOf(restored)).toBe('ok');
    expect(await formerIds(db, deleted)).toEqual([]);
  });
});

test('the slug of an erased workspace that keeps its bills is taken by no user', async () => {
  const slug = `erased-${randomUUID()}`;
  const squat = asUser(db, c.owner, (client) =>
    client.query('insert into public.workspaces (name, slug) values ($1, $1)', [slug]),
  );
  expect(await stateOf(squat)).toBe(denied);
  for (const honest of ['erased-data-recovery', 'cafe24', 'decade']) {
    const made = asUser(db, c.owner, (client) =>
      client.query('insert into public.workspaces (name, slug) values ($1, $1)', [honest]),
    );
    expect([honest, await stateOf(made)]).toEqual([honest, 'ok']);
  }
});

test('an owner who deletes his workspace leaves what he owes, for services alone', async () => {
  const owner = await signUp(db.pool);
  const id = randomUUID();
  expect(await make(owner, id)).toBe('ok');
  const plan = await insert(db, 'public.pricing_plans', { name: 'P' });
  await insert(db, 'public.workspace_subscriptions', {
    workspace_id: id,
    plan_id: plan,
    stripe_subscription_id: 'sub_1',
    status: 'active',
  });
  await insert(db, 'public.billing_invoices', {
    workspace_id: id,
    stripe_invoice_id: 'in_1',
    amount: 12.5,
    status: 'pending',
  });
  await insert(db, 'public.workspace_usage', {
    workspace_id: id,
    month: '2030-01-01',
    period_start: '2030-01-01',
    period_end: '2030-02-01',
    tokens_used: 700,
  });
  await db.query(
    `insert into public.workspace_usage_counters (workspace_id, month, metric, used) values ($1, '2030-01-01', 'tokens', 700)`,
    [id],
  );
  expect(await close(owner, id)).toBe(1);
  const [row] = await asService(db, (client) =>
    client.query('select * from agentd.closed_workspaces where workspace_id = $1', [id]),
  ).then((found) => found.rows);
  expect(row).toMatchObject({
    owner_user_id: owner,
    periods: [{ month: '2030-01-01', tokens_used: 700, closed_at: null }],
    counters: [{ metric: 'tokens', used: 700 }],
    subscriptions: [{ plan_id: plan, stripe_subscription_id: 'sub_1', status: 'active' }],
    invoices: [{ stripe_invoice_id: 'in_1', amount: 12.5, status: 'pending' }],
  });
  for (const statement of [
    'select 1 from agentd.closed_workspaces',
    'delete from agentd.closed_workspaces',
  ]) {
    expect(await stateOf(asUser(db, owner, (client) => client.query(statement)))).toBe(denied);
  }
});
