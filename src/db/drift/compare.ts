/**
 * Where a database differs from what this version of agentd expects of it.
 *
 * What an application adds beside agentd's things is none of it: tables, functions, triggers, indexes and policies of its own, more
 * labels of an enum, rights of roles that agentd does not know. Neither is what differs from server to server: the home of pgvector,
 * how a version prints a view, the owner where the migrating role is no member of agentd_owner.
 */
import type { Fact } from '../catalog.ts';
import { type Facts, factKey, type States } from './facts.ts';
import { grantDrifts } from './grants.ts';
import { kindOf, ownerOf, plain, sameText } from './texts.ts';

/** `fail`: something does not work as it should, or is open that should not be; `warn`: more than was expected. */
export type DriftSeverity = 'fail' | 'warn';

/** One difference. */
export type Drift = {
  readonly severity: DriftSeverity;
  /** Whose it is: a table, view, function, enum or schema, with its schema. */
  readonly object: string;
  /** What is wrong with it, in words. */
  readonly problem: string;
  /** The facts that repair.ts writes statements for; empty where no statement is right for everybody. */
  readonly missing: readonly Fact[];
  /** What must go first, or be taken back. */
  readonly wrong: readonly Fact[];
  /** What to do where there is no statement for it. */
  readonly advice: string | null;
};

export type Comparison = {
  readonly expected: Facts;
  readonly actual: Facts;
  readonly states: States;
  /** The owner of agentd's things in this database. */
  readonly owner: string;
};

type Parts = Partial<Pick<Drift, 'severity' | 'missing' | 'wrong' | 'advice'>>;

/** Makes one, which is a failure unless it says otherwise. */
export function drift(fact: Fact, problem: string, parts: Parts = {}): Drift {
  const object = [fact.schema, fact.relation || (fact.kind === 'enum' ? fact.name : '')]
    .filter((part) => part !== '')
    .join('.');
  return { severity: 'fail', object, problem, missing: [], wrong: [], advice: null, ...parts };
}

/** Every difference, by object. */
export function compareFacts(expected: Facts, actual: Facts, states: States): Drift[] {
  const workspaces = actual.get('relation | public | workspaces | ');
  const all: Comparison = {
    expected,
    actual,
    states,
    owner: workspaces ? ownerOf(workspaces) : 'agentd_owner',
  };
  const drifts = [...missingObjects(all), ...differences(all), ...grantDrifts(all), ...extras(all)];
  return drifts.sort((a, b) => (a.object < b.object ? -1 : a.object > b.object ? 1 : 0));
}

const isObject = (fact: Fact): boolean => ['schema', 'relation', 'function'].includes(fact.kind);

/** The key of the table or function that a fact belongs to; null for one that belongs to none. */
export function homeKey(fact: Fact, facts: Facts): string | null {
  if (fact.relation === '') return fact.kind === 'grant' ? `schema | ${fact.schema} |  | ` : null;
  const relation = `relation | ${fact.schema} | ${fact.relation} | `;
  const fn = `function | ${fact.schema} | ${fact.relation} | `;
  return facts.has(relation) ? relation : facts.has(fn) ? fn : null;
}

/** Tables, views and functions that are gone, each with all that belongs to it. */
function missingObjects({ expected, actual, owner }: Comparison): Drift[] {
  const gone = [...expected].filter(([key, fact]) => isObject(fact) && !actual.has(key));
  return gone
    .filter(([, fact]) => !(fact.kind === 'relation' && kindOf(fact) === 'sequence'))
    .map(([key, fact]) => {
      const own = [...expected.values()].filter(
        (other) => other !== fact && homeKey(other, expected) === key && other.kind !== 'schema',
      );
      const what =
        fact.kind === 'relation'
          ? `the ${kindOf(fact)}`
          : fact.kind === 'schema'
            ? 'the schema'
            : 'the function';
      const isTable = fact.kind === 'relation' && kindOf(fact).endsWith('table');
      return drift(fact, `${what} is missing`, {
        missing: kindOf(fact) === 'partitioned table' ? [] : [ownedBy(owner, fact), ...own],
        advice: isTable ? 'Bring its rows back from a backup.' : null,
      });
    });
}

/** The fact as it is where agentd's things belong to another role. */
function ownedBy(owner: string, fact: Fact): Fact {
  if (fact.kind === 'function') return fact.name === 'agentd_owner' ? { ...fact, name: owner } : fact;
  return { ...fact, text: fact.text.replace('owner agentd_owner', `owner ${owner}`) };
}

const WORDS: Readonly<Record<string, string>> = {
  column: 'column',
  constraint: 'constraint',
  index: 'index',
  trigger: 'trigger',
  policy: 'policy',
  enum: 'enum',
};

/** What belongs to an object that is there: gone, other than it should be, or switched off. */
function differences(all: Comparison): Drift[] {
  return [...all.expected].flatMap(([key, fact]) => {
    if (fact.kind === 'grant' || fact.kind === 'schema') return [];
    const home = homeKey(fact, all.expected);
    if (home !== null && !all.actual.has(home)) return [];
    const found = all.actual.get(key);
    if (fact.kind === 'relation') return found ? relationDrifts(fact, found, all) : [];
    // the view's definition says the rest of its columns
    if (fact.kind === 'column' && isView(fact, all.expected) && !/ default /.test(fact.text)) return [];
    if (!found) {
      if (fact.kind === 'function') return [];
      // an index that a constraint of the same name makes comes with it
      if (fact.kind === 'index' && isOfConstraint(fact, all.expected)) return [];
      return [drift(fact, `${WORDS[fact.kind]} ${fact.name} is missing`, { missing: [fact] })];
    }
    return changes(fact, found, all);
  });
}

function changes(fact: Fact, found: Fact, all: Comparison): Drift[] {
  const name = `${WORDS[fact.kind]} ${fact.name}`;
  if (fact.kind === 'function') return functionDrifts(fact, found, all);
  if (fact.kind === 'enum') return enumDrifts(fact, found);
  if (!sameText(fact, found, all.states.vectorHome)) {
    if (fact.kind === 'view')
      return [drift(fact, 'the view has another definition', { missing: [fact], wrong: [found] })];
    if (fact.kind === 'index' && isOfConstraint(fact, all.expected)) return [];
    const problem =
      fact.kind === 'column'
        ? `${name} is ${plain(found.text, all.states.vectorHome)}, not ${fact.text}`
        : `${name} is another`;
    const isGenerated = fact.kind === 'column' && /generated/.test(fact.text + found.text);
    return [
      drift(fact, problem, {
        missing: isGenerated ? [] : [fact],
        wrong: [found],
        advice: isGenerated ? 'Make the column anew as it should be, and bring its values back.' : null,
      }),
    ];
  }
  const place = `${fact.schema}.${fact.relation}.${fact.name}`;
  if (fact.kind === 'trigger' && all.states.offTriggers.has(place))
    return [drift(fact, `${name} is disabled`, { missing: [fact], wrong: [found] })];
  if (fact.kind === 'index' && all.states.invalidIndexes.has(`${fact.schema}.${fact.name}`))
    return [drift(fact, `${name} is invalid`, { missing: [fact], wrong: [found] })];
  return [];
}

function relationDrifts(fact: Fact, found: Fact, { owner }: Comparison): Drift[] {
  if (kindOf(fact) !== kindOf(found)) {
    return [
      drift(fact, `is a ${kindOf(found)}, not a ${kindOf(fact)}`, {
        advice: 'Rename it and run: agentd doctor',
      }),
    ];
  }
  const drifts: Drift[] = [];
  const has = (of: Fact, part: string): boolean => of.text.split(', ').includes(part);
  for (const part of ['row security', 'security_barrier=true', 'security_invoker=true']) {
    if (has(fact, part) && !has(found, part)) {
      const what = part === 'row security' ? 'row security is off' : `lacks the option ${part}`;
      drifts.push(drift(fact, what, { missing: [{ ...fact, text: part }] }));
    }
  }
  if (ownerOf(fact) === 'agentd_owner' && ownerOf(found) !== owner && kindOf(fact) !== 'sequence') {
    drifts.push(
      drift(fact, `belongs to ${ownerOf(found)}, not ${owner}`, {
        missing: [{ ...fact, text: `${kindOf(fact)}, owner ${owner}` }],
      }),
    );
  }
  return drifts;
}

function functionDrifts(fact: Fact, found: Fact, { owner, states }: Comparison): Drift[] {
  const drifts: Drift[] = [];
  if (!sameText(fact, found, states.vectorHome))
    drifts.push(drift(fact, 'the function has another body', { missing: [fact] }));
  if (fact.name === 'agentd_owner' && found.name !== owner)
    drifts.push(
      drift(fact, `belongs to ${found.name}, not ${owner}`, {
        missing: [{ ...fact, name: owner, text: '' }],
      }),
    );
  return drifts;
}

function enumDrifts(fact: Fact, found: Fact): Drift[] {
  const there = found.text.split(', ');
  const lacking = fact.text.split(', ').filter((label) => !there.includes(label));
  if (lacking.length === 0) return [];
  const missing = [{ ...fact, text: lacking.join(', ') }];
  return [drift(fact, `the enum lacks ${lacking.join(', ')}`, { missing, wrong: [found] })];
}

/** What is more than expected of agentd's own things, and may stand in the way of its worker. */
function extras({ expected, actual }: Comparison): Drift[] {
  return [...actual].flatMap(([key, fact]): Drift[] => {
    if (expected.has(key)) return [];
    if (isObject(fact) && fact.schema === 'agentd' && kindOf(fact) !== 'sequence') {
      return [drift(fact, 'is not of this version', { severity: 'warn', advice: 'agentd does not use it.' })];
    }
    const home = homeKey(fact, expected);
    if (home === null || !expected.has(home) || isView(fact, expected)) return [];
    if (fact.kind === 'column') {
      const isDemanded = /not null/.test(fact.text) && !/default|generated/.test(fact.text);
      return [
        drift(fact, `column ${fact.name} is not agentd’s`, {
          severity: isDemanded ? 'fail' : 'warn',
          advice: isDemanded
            ? 'It has no default: inserts of agentd fail. Give it one, or let it be null.'
            : 'agentd does not use it. A table of your own is safer.',
        }),
      ];
    }
    if (fact.kind === 'constraint') {
      const advice = 'It may refuse what agentd writes.';
      return [
        drift(fact, `constraint ${fact.name} is not agentd’s: ${fact.text}`, { severity: 'warn', advice }),
      ];
    }
    return [];
  });
}

const isView = (fact: Fact, facts: Facts): boolean =>
  kindOf(facts.get(`relation | ${fact.schema} | ${fact.relation} | `) ?? fact).endsWith('view');

const isOfConstraint = (fact: Fact, facts: Facts): boolean =>
  facts.has(factKey({ ...fact, kind: 'constraint' }));
