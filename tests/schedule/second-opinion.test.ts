/**
 * Two libraries as second opinions on the table of expressions, in zones whose clocks are not changed.
 * (What they make of clock changes is told in src/schedule/next.ts.)
 */
import { CronExpressionParser } from 'cron-parser';
import { Cron } from 'croner';
import { describe, expect, test } from 'vitest';
import { nextOccurrence, parseExpression } from '../../src/schedule/index.ts';
import { TABLE } from './expressions.table.ts';

type Library = 'cron-parser' | 'croner';
type Disagreement = {
  readonly library: Library;
  readonly expressions: RegExp;
  /** `refuses`: it does not read the expression. `differs`: it reads it and gives other times. */
  readonly how: 'refuses' | 'differs';
  readonly reason: string;
};

/** Every disagreement there is; an expression takes the first that fits. Agreement is demanded of all others. */
const DISAGREEMENTS: readonly Disagreement[] = [
  {
    library: 'cron-parser',
    expressions: /(^|\s)#/,
    how: 'refuses',
    reason: 'A comment may follow the fields (` # …`); here a comment is read as more fields.',
  },
  {
    library: 'croner',
    expressions: /\s#/,
    how: 'refuses',
    reason: 'A comment may follow the fields (` # …`); here a comment is read as more fields, or as a date.',
  },
  {
    library: 'cron-parser',
    expressions: /^@(midnight|reboot)$/,
    how: 'refuses',
    reason: 'It has neither nickname. @reboot is valid OCPS; here it never fires.',
  },
  {
    library: 'croner',
    expressions: /^@reboot$/,
    how: 'refuses',
    reason: 'Valid OCPS, but it wants a process that starts; here it is valid and never fires.',
  },
  {
    library: 'croner',
    expressions: /^@(minutely|secondly|weekdays|weekends)$/,
    how: 'refuses',
    reason: 'Nicknames beyond OCPS, which cron-parser has taught people.',
  },
  {
    library: 'cron-parser',
    expressions: /^(\S+\s+){6}\S+$/,
    how: 'refuses',
    reason: 'It has no field for the year (OCPS 1.2).',
  },
  {
    library: 'cron-parser',
    expressions: /\+/,
    how: 'refuses',
    reason: 'It has no + for "and" between the day fields (OCPS 1.4).',
  },
  {
    library: 'cron-parser',
    expressions: /W(\s|$)/,
    how: 'refuses',
    reason: 'It has no W for the nearest weekday (OCPS 1.3).',
  },
  {
    library: 'cron-parser',
    expressions: /#L|,\S*#|#\S*,/,
    how: 'refuses',
    reason:
      'It has no #L for the last weekday of its kind (it writes 5L), and takes # in no list (OCPS 1.3).',
  },
  {
    library: 'cron-parser',
    expressions: /FRI-SUN/,
    how: 'refuses',
    reason: 'It takes SUN for 0 at the end of a range as well; 5-7, the same in digits, it reads.',
  },
  {
    library: 'cron-parser',
    expressions: /^(\* \*|0 0) (31 2|30 2|31 4,6,9,11) \*$/,
    how: 'refuses',
    reason:
      'A date that no year has is an error to it; OCPS has such an expression valid, and it never fires.',
  },
  {
    library: 'cron-parser',
    expressions: /^0 12 (\*\/2 \* MON|1 \* \*\/2)$/,
    how: 'differs',
    reason:
      'It unites a day field like */2 with the other; Vixie and OCPS have a field that begins with * filter.',
  },
  {
    library: 'croner',
    expressions: /^0 12 (\*\/2 \* MON|1 \* \*\/2)$/,
    how: 'differs',
    reason:
      'It unites a day field like */2 with the other; Vixie and OCPS have a field that begins with * filter.',
  },
];

/** No clock of theirs has been changed since 1986, and none is to be. */
const ZONES = ['UTC', 'America/Phoenix', 'Asia/Kathmandu'] as const;
const AFTER = new Date('2026-01-01T00:00:00Z');
const COUNT = 5;

const asks: Readonly<Record<Library, (expression: string, zone: string) => Date[]>> = {
  croner: (expression, zone) => new Cron(expression, { timezone: zone }).nextRuns(COUNT, AFTER),
  'cron-parser': (expression, zone) => {
    const iterator = CronExpressionParser.parse(expression, { currentDate: AFTER, tz: zone });
    return Array.from({ length: COUNT }, () => iterator.next().toDate());
  },
};

function own(expression: string, zone: string): Date[] {
  const times: Date[] = [];
  for (let at: Date | null = AFTER; times.length < COUNT; times.push(at)) {
    at = nextOccurrence(parseExpression(expression), zone, at);
    if (at === null) break;
  }
  return times;
}

type Opinion = { readonly verdict: 'agrees' | 'refuses' | 'differs'; readonly theirs: string };

function opinion(library: Library, expression: string, zone: string): Opinion {
  const ours = String(own(expression, zone).map((at) => at.toISOString()));
  let theirs: string;
  try {
    theirs = String(asks[library](expression, zone).map((at) => at.toISOString()));
  } catch (error) {
    return { verdict: 'refuses', theirs: (error as Error).message };
  }
  return { verdict: theirs === ours ? 'agrees' : 'differs', theirs: `${theirs}, ours: ${ours}` };
}

const known = (library: Library, expression: string): Disagreement | undefined =>
  DISAGREEMENTS.find((one) => one.library === library && one.expressions.test(expression.trim()));

describe.each(['cron-parser', 'croner'] as const)('%s', (library) => {
  test.each(ZONES)(
    'agrees in %s on every expression but those listed, which it takes as the list says',
    (zone) => {
      const surprises = TABLE.flatMap(([expression]) => {
        const { verdict, theirs } = opinion(library, expression, zone);
        const expected = known(library, expression)?.how ?? 'agrees';
        return verdict === expected ? [] : [`${expression}: ${verdict}, not ${expected} (${theirs})`];
      });
      expect(surprises).toEqual([]);
    },
  );

  test('is asked about most of the table, so that agreement says something', () => {
    const agreed = TABLE.filter(([expression]) => known(library, expression) === undefined);
    expect(agreed.length).toBeGreaterThan(TABLE.length * 0.6);
  });
});

test('every disagreement in the list is one that an expression of the table shows', () => {
  const shown = new Set(
    (['cron-parser', 'croner'] as const).flatMap((library) =>
      TABLE.map(([expression]) => known(library, expression)),
    ),
  );
  expect(DISAGREEMENTS.filter((one) => !shown.has(one))).toEqual([]);
});
