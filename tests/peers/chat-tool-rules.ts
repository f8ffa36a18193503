import { type ChatFault, fault, nameFault, wrongType } from './chat-faults.ts';
import { isRecord, toolSchemaFault } from './tool-schema-rules.ts';

/** The first fault of a request's `tools`, `tool_choice` and `parallel_tool_calls`, or null. */
export function toolsFault(body: Record<string, unknown>): ChatFault | null {
  const { tools } = body;
  if (tools === undefined) {
    for (const name of ['tool_choice', 'parallel_tool_calls']) {
      if (body[name] !== undefined)
        return fault(
          `Invalid value for '${name}': '${name}' is only allowed when 'tools' are specified.`,
          name,
        );
    }
    return null;
  }
  if (!Array.isArray(tools)) return wrongType('tools', 'an array of objects', tools);
  if (tools.length === 0)
    return fault("Invalid 'tools': empty array. Expected an array with minimum length 1.", 'tools');
  if (tools.length > 128)
    return fault(
      `Invalid 'tools': array too long. Expected an array with maximum length 128, but got an array with length ${tools.length} instead.`,
      'tools',
    );
  const names = new Set<unknown>();
  for (const [index, tool] of tools.entries()) {
    const found = toolFault(tool, `tools[${index}]`);
    if (found) return found;
    if (names.has(tool.function.name))
      return fault(`Tool names must be unique: '${tool.function.name}'.`, `tools[${index}].function.name`);
    names.add(tool.function.name);
  }
  return choiceFault(body.tool_choice, names);
}

function toolFault(tool: unknown, at: string): ChatFault | null {
  if (!isRecord(tool)) return wrongType(at, 'an object', tool);
  if (tool.type !== 'function')
    return fault(`Invalid value: '${String(tool.type)}'. Supported values are: 'function'.`, `${at}.type`);
  const definition = tool.function;
  if (!isRecord(definition)) return fault(`Missing required parameter: '${at}.function'.`, `${at}.function`);
  const extra = Object.keys(definition).find(
    (key) => !['name', 'description', 'parameters', 'strict'].includes(key),
  );
  if (extra) return fault(`Unknown parameter: '${at}.function.${extra}'.`, `${at}.function.${extra}`);
  const name = nameFault(definition.name, `${at}.function.name`);
  if (name) return name;
  if (definition.description !== undefined && typeof definition.description !== 'string') {
    return wrongType(`${at}.function.description`, 'a string', definition.description);
  }
  if (definition.strict != null && typeof definition.strict !== 'boolean') {
    return wrongType(`${at}.function.strict`, 'a boolean', definition.strict);
  }
  if (definition.parameters === undefined && definition.strict !== true) return null;
  const schema = toolSchemaFault(definition.parameters, definition.strict === true);
  if (!schema) return null;
  return {
    message: `Invalid schema for function '${String(definition.name)}': ${schema}.`,
    param: `${at}.function.parameters`,
    code: 'invalid_function_parameters',
  };
}

function choiceFault(choice: unknown, names: Set<unknown>): ChatFault | null {
  if (choice === undefined || choice === 'none' || choice === 'auto' || choice === 'required') return null;
  if (isRecord(choice) && choice.type === 'function' && isRecord(choice.function)) {
    if (names.has(choice.function.name)) return null;
    return fault(
      `Tool choice '${String(choice.function.name)}' not found in 'tools' parameter.`,
      'tool_choice',
    );
  }
  return fault("Invalid value for 'tool_choice'.", 'tool_choice');
}
