/** A tool as its row holds it: what a server lists now is compared with that. */
import { toJson } from '../../db/json.ts';
import type { RawTool } from '../../providers/mcp-listing.ts';
import { canonicalHash, TooDeep } from './canonical.ts';

/** The hash that a row of the tool would have as schema_hash; null where it is nested too deeply for one. */
export function storedToolHash(tool: RawTool): string | null {
  try {
    canonicalHash(tool);
    return canonicalHash(JSON.parse(toJson(tool)));
  } catch (error) {
    if (error instanceof TooDeep || error instanceof RangeError) return null;
    throw error;
  }
}
