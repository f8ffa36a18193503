/** Whether the database is what this version of agentd expects, thing by thing. */
import type { Database } from '../db/database.ts';
import { compareFacts, type Drift } from '../db/drift/compare.ts';
import { actualFacts, expectedFacts } from '../db/drift/facts.ts';
import { repairScript, shortRepair } from '../db/drift/repair.ts';
import { unknownMigrations } from '../db/migrate.ts';
import { type Check, check } from './doctor-checks.ts';
import { CommandError } from './errors.ts';

const REPAIR = 'Look through the statements of: agentd doctor --sql. Then run them as the owner, with psql.';

/** Compares the catalog with the checked-in facts. Reads, and changes nothing. */
export async function checkSchema(db: Database): Promise<Check> {
  const name = 'schema';
  const newer = await unknownMigrations(db);
  if (newer.length > 0) {
    return check(name, 'skip', `Not compared: the database is of a newer version, with ${newer.join(', ')}.`);
  }
  const { drifts } = await readDrift(db);
  if (drifts.length === 0) return check(name, 'ok', 'Everything is there and as it should be.');
  const failed = drifts.filter((drift) => drift.severity === 'fail').length;
  const objects = new Set(drifts.map((drift) => drift.object)).size;
  const message = `${drifts.length} ${drifts.length === 1 ? 'thing differs' : 'things differ'} from what this version expects, on ${objects} ${objects === 1 ? 'object' : 'objects'}.`;
  const isMendable = drifts.some((drift) => drift.missing.length + drift.wrong.length > 0);
  return check(
    name,
    failed > 0 ? 'fail' : 'warn',
    message,
    isMendable ? REPAIR : null,
    drifts.map((drift) => ({
      object: drift.object,
      problem: drift.problem,
      next_step: [shortRepair(drift), drift.advice].filter((part) => part !== null).join(' ') || null,
    })),
  );
}

/** The statements that repair the schema; none where nothing differs. Throws CommandError for a database of a newer version. */
export async function repairStatements(db: Database): Promise<string[]> {
  const newer = await unknownMigrations(db);
  if (newer.length > 0) {
    throw new CommandError(
      `The database is of a newer version of agentd, with ${newer.join(', ')}.`,
      'Run the doctor of that version.',
    );
  }
  const { drifts, vectorHome } = await readDrift(db);
  return repairScript(drifts, vectorHome);
}

async function readDrift(db: Database): Promise<{ drifts: Drift[]; vectorHome: string }> {
  const [expected, { facts, states }] = await Promise.all([expectedFacts(), actualFacts(db)]);
  return { drifts: compareFacts(expected, facts, states), vectorHome: states.vectorHome };
}
