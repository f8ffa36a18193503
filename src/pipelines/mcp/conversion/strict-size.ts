/** Whether a strict schema is within what OpenAI documents. */
import { STRICT } from './limits.ts';
import { entriesOf, isSchema, listOf, type Schema } from './types.ts';

type Size = { properties: number; enumValues: number; characters: number; fits: boolean };

/** The whole of a strict schema: definitions are counted once, levels from the root or the definition on. */
export function fitsStrict(root: Schema): boolean {
  const size: Size = { properties: 0, enumValues: 0, characters: 0, fits: true };
  measure(root, size, 1);
  for (const [name, definition] of entriesOf(root.$defs)) {
    size.characters += name.length;
    // it stands at least one level below the root
    measure(definition, size, 2);
  }
  return (
    size.fits &&
    size.properties <= STRICT.properties &&
    size.enumValues <= STRICT.enumValues &&
    size.characters <= STRICT.characters
  );
}

function measure(schema: unknown, size: Size, level: number): void {
  if (!isSchema(schema)) return;
  if (level > STRICT.levels) size.fits = false;
  const values = listOf(schema.enum);
  const characters = values.reduce<number>((sum, value) => sum + String(value).length, 0);
  if (values.length > STRICT.largeEnum && characters > STRICT.largeEnumCharacters) size.fits = false;
  size.enumValues += values.length;
  size.characters += characters;
  for (const [name, property] of entriesOf(schema.properties)) {
    size.properties++;
    size.characters += name.length;
    measure(property, size, level + 1);
  }
  for (const branch of listOf(schema.anyOf)) measure(branch, size, level + 1);
  measure(schema.items, size, level + 1);
}
