/**
 * The model of the demo where there is no key: a local server that speaks the chat completions protocol and
 * answers from a script. Everything but the text of the answers is real: requests, tool calls, tokens, journal.
 */
import { sleep, systemClock } from '../clock.ts';
import { CommandError } from '../commands/errors.ts';
import { CHANNEL, SCHEDULE, STEPS } from './sample.ts';
import { WEATHER_TOOL } from './tool-server.ts';

const SEARCH = 'search_knowledge';
/** What it looks for in the handbook. What it then says, it has from there. */
const QUESTIONS = ['when are refunds paid', 'a late delivery'];

/** Every answer takes this long, in milliseconds: a person should be able to follow. */
const THINKING_MS = 500;

export type ScriptedModel = { readonly baseUrl: string; readonly apiKey: string; stop(): Promise<void> };

type Request = {
  readonly messages: readonly {
    readonly role: string;
    readonly content: unknown;
    readonly tool_call_id?: string;
    readonly tool_calls?: readonly {
      readonly id: string;
      readonly function: { readonly name: string; readonly arguments: string };
    }[];
  }[];
};

/** Starts the server on a free port of loopback. Throws CommandError where the package is not installed. */
export async function startScriptedModel(): Promise<ScriptedModel> {
  const { LLMock } = await loadMock();
  const mock = new LLMock({ port: 0, host: '127.0.0.1' });
  for (const { step, afterTools, answer } of script()) {
    mock.on(
      {
        predicate: (request: Request) => userText(request).includes(step.instructions),
        hasToolResult: afterTools,
      },
      async (request: Request) => {
        await sleep(systemClock, THINKING_MS);
        return answer(request);
      },
    );
  }
  await mock.start();
  return { baseUrl: `${mock.url}/v1`, apiKey: 'sk-scripted-model', stop: () => mock.stop() };
}

type Answer = { readonly content: string; readonly toolCalls?: { name: string; arguments: string }[] };
type Scene = {
  readonly step: { readonly instructions: string };
  /** Whether the step's tools have answered. */
  readonly afterTools: boolean;
  readonly answer: (request: Request) => Answer;
};

function script(): readonly Scene[] {
  const [findOut, write, post] = STEPS;
  return [
    {
      step: findOut,
      afterTools: false,
      answer: () =>
        calls(
          { name: 'current_time', arguments: { timezone: SCHEDULE.timezone } },
          { name: WEATHER_TOOL, arguments: { location: 'Chicago' } },
          ...QUESTIONS.map((query) => ({ name: SEARCH, arguments: { query } })),
        ),
    },
    {
      step: findOut,
      afterTools: true,
      answer: (request) => ({
        content: `It is ${clockOf(request)} in Berlin. ${weatherOf(request)}\n${quotesOf(request)}`,
      }),
    },
    { step: write, afterTools: false, answer: (request) => ({ content: briefing(userText(request)) }) },
    {
      step: post,
      afterTools: false,
      answer: (request) =>
        calls({
          name: 'send_message',
          arguments: { channel: CHANNEL, content: briefing(userText(request)) },
        }),
    },
    { step: post, afterTools: true, answer: () => ({ content: `I posted the briefing to #${CHANNEL}.` }) },
  ];
}

function calls(...list: { name: string; arguments: object }[]): Answer {
  return {
    content: '',
    toolCalls: list.map((call) => ({ name: call.name, arguments: JSON.stringify(call.arguments) })),
  };
}

async function loadMock(): Promise<typeof import('@copilotkit/aimock')> {
  try {
    return await import('@copilotkit/aimock');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_MODULE_NOT_FOUND') throw error;
    throw new CommandError(
      'The scripted model of the demo is not part of a production install.',
      'Set OPENAI_API_KEY to watch a real model instead, or run npm ci && npm run demo in a checkout.',
    );
  }
}

function userText({ messages }: Request): string {
  const content = messages.findLast((message) => message.role === 'user')?.content;
  return typeof content === 'string' ? content : '';
}

function toolTexts({ messages }: Request): string[] {
  return messages.flatMap(({ role, content }) =>
    role === 'tool' && typeof content === 'string' ? [content] : [],
  );
}

/** Hours and minutes out of what current_time answered. */
function clockOf(request: Request): string {
  return /\b\d{1,2}:\d{2}\b/.exec(toolTexts(request).join('\n'))?.[0] ?? 'time to start';
}

/** A sentence out of what the weather tool answered. */
function weatherOf(request: Request): string {
  const [, degrees, conditions] =
    /"temperature":\s*(-?\d+)[^}]*"conditions":\s*"([^"]+)"/.exec(toolTexts(request).join('\n')) ?? [];
  return degrees ? `Chicago has ${degrees} °C, ${conditions?.toLowerCase()}.` : 'The weather is not known.';
}

/**
 * Of the best passage of each search the sentence that shares most words with what was asked, with where it stands. Whoever reads it
 * gets the document's words or hears that nothing was found: this model invents nothing.
 */
function quotesOf({ messages }: Request): string {
  const answers = new Map(
    messages.flatMap((one) => (one.role === 'tool' ? [[one.tool_call_id, one.content]] : [])),
  );
  const searches = messages
    .flatMap((one) => one.tool_calls ?? [])
    .filter((call) => call.function.name === SEARCH);
  const quotes = searches.map((call) => {
    const { query } = JSON.parse(call.function.arguments) as { query: string };
    return quoteOf(String(answers.get(call.id)), query) ?? `Nothing was found about: ${query}`;
  });
  return quotes.map((quote) => `- ${quote}`).join('\n');
}

/** Passages come as `[source, page 3, heading]` and their text, the best first. */
function quoteOf(found: string, query: string): string | null {
  const passage = /^\[(.+?), page (\d+)[^\]\n]*\]\n/m.exec(found);
  if (!passage) return null;
  const [head, source, page] = passage;
  const [content = ''] = found.slice(passage.index + head.length).split(/\n\n\[[^\n]+\]\n/);
  const sentences = content
    .split('\n')
    .filter((line) => !line.startsWith('#'))
    .flatMap((line) => line.match(/[^.!?]+[.!?]/g) ?? []);
  const asked = stems(query);
  const shared = (text: string): number => [...stems(text)].filter((stem) => asked.has(stem)).length;
  const best = sentences.reduce((a, b) => (shared(b) > shared(a) ? b : a), '');
  return best === '' ? null : `${best.trim()} (${source}, page ${page})`;
}

/** Words without their endings: "deliveries" is "delivery". */
const stems = (text: string): Set<string> =>
  new Set((text.toLowerCase().match(/\p{L}{3,}/gu) ?? []).map((word) => word.slice(0, 6)));

/** The briefing, from the results of earlier steps that the request quotes. */
function briefing(text: string): string {
  const at = /It is (\d{1,2}:\d{2})/.exec(text)?.[1];
  const rules = [...new Set([...text.matchAll(/^- (.+ \(.+, page \d+\))$/gm)].map((match) => match[1]))];
  const weather = /Chicago has [^.]+\./.exec(text)?.[0];
  return [
    [`Good morning${at ? `, it is ${at}` : ''}.`, ...(weather ? [weather] : [])].join(' '),
    ...rules.slice(0, 2).map((rule) => `- ${rule}`),
  ].join('\n');
}
