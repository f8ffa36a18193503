/** From the arguments of a model's function call to those of the tool. */
import { argumentProblem } from './argument-check.ts';
import { parametersOf, type Surveyed, surveyed } from './convert-schema.ts';
import { MAX_ARGUMENT_CHARACTERS, MAX_ARGUMENT_DEPTH } from './limits.ts';
import { isSchema, type OpenAiFunction, type Schema, Unfit } from './types.ts';
import { mappedBack } from './way-back.ts';

/** Either what to call the tool with, or sentences that say to the model what is wrong; never both. */
export type ToolArguments =
  | { readonly arguments: Schema }
  | { readonly problems: readonly [string, ...string[]] };

/**
 * Maps the arguments that a model gave for a converted function back to the tool's, and checks them against the tool's own schema.
 *
 * `inputSchema` is the schema as the server lists it, `converted` what `convertTools` made of it, `given` the model's JSON, parsed.
 * Never throws for what they hold, and never answers arguments that the schema does not allow.
 */
export function toArguments(
  inputSchema: unknown,
  converted: Pick<OpenAiFunction, 'parameters' | 'strict'>,
  given: unknown,
): ToolArguments {
  let tool: Surveyed;
  try {
    tool = surveyed(inputSchema);
  } catch (error) {
    if (error instanceof Unfit) return { problems: [error.message] };
    throw error;
  }
  // what an earlier release made may mean other nulls
  if (!same(parametersOf(tool), converted))
    return { problems: ['The tool has changed since it was offered. Ask for it again in a new turn.'] };
  if (!isSchema(given)) return { problems: ['The arguments must be a JSON object.'] };
  if (!withinBounds(given)) return { problems: ['The arguments are too large or too deep.'] };
  const back = mappedBack(tool, converted.strict, given);
  if (!isSchema(back)) return { problems: ['The arguments must be a JSON object.'] };
  const problem = argumentProblem(tool.schema, tool.dialect, back);
  return problem ? { problems: [problem.text] } : { arguments: back };
}

function same(
  made: { parameters: Schema; strict: boolean },
  converted: { parameters: Schema; strict: boolean },
): boolean {
  return made.strict === converted.strict && canonical(made.parameters) === canonical(converted.parameters);
}

/** JSON with sorted names: jsonb does not keep their order. */
function canonical(value: unknown): string {
  return JSON.stringify(value, (_name, inner: unknown) =>
    isSchema(inner)
      ? Object.fromEntries(Object.entries(inner).toSorted(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  );
}

function withinBounds(value: unknown): boolean {
  let left = MAX_ARGUMENT_CHARACTERS;
  const visit = (inner: unknown, depth: number): boolean => {
    left -= typeof inner === 'string' ? inner.length + 2 : 4;
    if (left < 0 || depth > MAX_ARGUMENT_DEPTH) return false;
    if (typeof inner !== 'object' || inner === null) return true;
    for (const [name, part] of Object.entries(inner)) {
      left -= Array.isArray(inner) ? 1 : name.length + 3;
      if (!visit(part, depth + 1)) return false;
    }
    return true;
  };
  return visit(value, 0);
}
