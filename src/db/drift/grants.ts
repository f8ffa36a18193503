/** Rights that are missing, and rights that open what agentd keeps closed. */
import type { Fact } from '../catalog.ts';
import { type Comparison, type Drift, drift, homeKey } from './compare.ts';

/** Tenants' roles: what they may do beyond what is expected is a hole. Others may have more, as Supabase gives them. */
const TENANTS = new Set(['public', 'anon', 'authenticated']);

/** `select`, or for columns `select (id)`, `select (name)` …, from a text as `select (id, name), update`. */
export function rightsOf(text: string): string[] {
  return [...text.matchAll(/([a-z]+(?: [a-z]+)*)(?: \(([^)]*)\))?(?:, |$)/g)].flatMap(
    ([, right = '', columns]) =>
      columns === undefined ? [right] : columns.split(', ').map((column) => `${right} (${column})`),
  );
}

const byRole = (fact: Fact): string => [fact.schema, fact.relation, fact.name].join(' | ');

/** Compares the rights on what is there. */
export function grantDrifts(all: Comparison): Drift[] {
  const collect = (facts: Iterable<Fact>): Map<string, { fact: Fact; rights: Set<string> }> => {
    const found = new Map<string, { fact: Fact; rights: Set<string> }>();
    for (const fact of facts) {
      const home = fact.kind === 'grant' ? homeKey(fact, all.expected) : null;
      if (home === null || !all.expected.has(home) || !all.actual.has(home)) continue;
      const entry = found.get(byRole(fact)) ?? { fact, rights: new Set<string>() };
      for (const right of rightsOf(fact.text)) entry.rights.add(right);
      found.set(byRole(fact), entry);
    }
    return found;
  };
  const expected = collect(all.expected.values());
  const actual = collect(all.actual.values());
  const drifts: Drift[] = [];
  for (const [key, { fact, rights }] of expected) {
    const has = actual.get(key)?.rights ?? new Set();
    const whole = (right: string): string => right.replace(/ \(.*$/, '');
    const lacking = [...rights].filter((right) => !has.has(right) && !has.has(whole(right)));
    // what an owner may do is not written down
    if (lacking.length === 0 || fact.name === all.owner) continue;
    drifts.push(
      drift(fact, `${fact.name} lacks ${summary(lacking)}`, {
        missing: lacking.map((right) => ({ ...fact, text: right })),
      }),
    );
  }
  for (const [key, { fact, rights }] of actual) {
    if (!TENANTS.has(fact.name)) continue;
    const allowed = expected.get(key)?.rights ?? new Set();
    const more = [...rights].filter((right) => !allowed.has(right));
    if (more.length === 0) continue;
    drifts.push(
      drift(fact, `${fact.name} has ${summary(more)}, which it should not`, {
        wrong: more.map((right) => ({ ...fact, text: right })),
      }),
    );
  }
  return drifts;
}

/** Columns of one right are said together, and not more than a few of them. */
function summary(rights: readonly string[]): string {
  const grouped = Map.groupBy(rights, (right) => right.replace(/ \(.*$/, ''));
  return [...grouped]
    .map(([right, of]) => {
      const columns = of.flatMap((one) => (/\(([^)]*)\)/.exec(one) ?? []).slice(1));
      if (columns.length === 0) return right;
      return `${right} on ${columns.slice(0, 3).join(', ')}${columns.length > 3 ? ` and ${columns.length - 3} more columns` : ''}`;
    })
    .join(', ');
}
