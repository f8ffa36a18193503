/** Where the rows of a workspace are, asked of the catalog of this version. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type CatalogTable, isOurs, readCatalog } from '../../src/db/workspace-catalog.ts';
import { planWorkspace } from '../../src/db/workspace-plan.ts';
import { secretsOf } from '../../src/db/workspace-rows.ts';
import { APART, BILLING, EXPORTED_IF, LAST, LINKS, OWNERS, REMOTE } from '../../src/db/workspace-tables.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';

let db: TestDatabase;
let catalog: CatalogTable[];
beforeAll(async () => {
  db = await testDatabase();
  catalog = await readCatalog(db);
});
afterAll(() => db?.dispose());

test('every table is a workspace’s, or is said not to be, with the reason', () => {
  const planned = new Set(planWorkspace(catalog).map(({ name }) => name));
  const ours = catalog.map(({ name }) => name).filter(isOurs);
  expect(ours.length).toBeGreaterThan(90);
  // a new table: give it a workspace_id, a reference that deletes it, or a line in src/db/workspace-tables.ts
  expect(ours.filter((name) => !planned.has(name) && !(name in APART))).toEqual([]);
  expect(Object.keys(APART).filter((name) => planned.has(name) || !ours.includes(name))).toEqual([]);
});

test('of a table with several references one says whose the row is', () => {
  const planned = new Map(planWorkspace(catalog).map((table) => [table.name, table]));
  const unclear = [...planned.values()].filter(
    ({ name, own }) => isOurs(name) && own.length !== (OWNERS[name]?.length ?? 1),
  );
  expect(unclear.map(({ name, own }) => [name, own.map(({ sql }) => sql)])).toEqual([]);
});

test('what refers to a row is deleted before it', () => {
  const plan = planWorkspace(catalog);
  const place = new Map(plan.map(({ name }, index) => [name, index]));
  const wrong = plan.flatMap((table, index) =>
    table.references
      .filter(({ to }) => to !== table.name && (place.get(to) ?? index) < index)
      .map(({ to }) => `${table.name} → ${to}`),
  );
  expect(wrong).toEqual([]);
  expect(plan.at(-1)?.name).toBe('public.workspaces');
  expect(plan.filter(({ key }) => key.length === 0)).toEqual([]);
});

test('the lists name tables that there are', () => {
  const names = new Set(catalog.map(({ name }) => name));
  const said = [
    ...REMOTE,
    ...LAST,
    ...BILLING,
    ...Object.keys(OWNERS),
    ...Object.keys(LINKS),
    ...Object.keys(EXPORTED_IF),
  ];
  expect(said.filter((name) => !names.has(name))).toEqual([]);
});

test('no column that is named like a secret is exported', () => {
  const harmless =
    /^(max_tokens|.*_tokens|token_count|token_version|token_expires_at|tokens_used|token_limit|secret_form|auth_type|auth_header|credential_(id|type|source)|.*idempotency_key|event_key|embedding_key|discord_public_key)$/;
  const open = planWorkspace(catalog)
    .filter(({ name }) => name.startsWith('public.'))
    .flatMap(({ name, columns }) =>
      columns
        .map((column) => column.name)
        .filter(
          (column) =>
            /secret|token|passw|_key$|credential|^auth_|vault/.test(column) && !harmless.test(column),
        )
        .filter((column) => !secretsOf(name).includes(column))
        .map((column) => `${name}.${column}`),
    );
  expect(open).toEqual([]);
});
