export { convertTools } from './convert-tools.ts';
export { type ToolArguments, toArguments } from './to-arguments.ts';
export type {
  Conversion,
  ListedTool,
  OpenAiFunction,
  Quarantined,
  QuarantineReason,
} from './types.ts';
