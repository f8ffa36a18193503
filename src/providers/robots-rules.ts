/** robots.txt (RFC 9309): what it says about us, within bounds, and whether a URL is allowed by it. */
import robotsModule from 'robots-parser';

/** The product token that sites address us by. */
export const USER_AGENT = 'agentd';

/** What is read of a file; RFC 9309 asks for no less. */
export const MAX_ROBOTS_BYTES = 500 * 1024;

/*
 * What is kept of it. The parser's cost is agents × rules while it parses and, for a rule with wildcards, its length × the
 * path's when it matches: half a megabyte of the worst file would hold the loop for minutes, or end the process.
 */
const MAX_RULE_CHARACTERS = 2048;
const MAX_KEPT_CHARACTERS = 100_000;
const MAX_RULES = 1000;
const MAX_WILDCARD_CHARACTERS = 5000;

// The package is CommonJS behind a declaration for a default export.
const robotsParser = robotsModule as unknown as (
  url: string,
  text: string,
) => { isAllowed(url: string, userAgent: string): boolean | undefined };

/** The rules for us, as a robots.txt of its own: of the groups that name us, or of those for everybody. */
export function ourRules(text: string): string {
  const groups = { ours: [] as string[], all: [] as string[] };
  let isOurs = false;
  let isAll = false;
  let hasOurs = false;
  let inAgents = false;
  for (const [line] of text.replace(/^\uFEFF/, '').matchAll(/[^\r\n]+/g)) {
    const [, field = '', value = ''] =
      /^\s*([A-Za-z-]+)\s*:([^#]*)/.exec(line.slice(0, MAX_RULE_CHARACTERS)) ?? [];
    const name = field.toLowerCase();
    if (name === 'user-agent') {
      if (!inAgents) isOurs = isAll = false;
      inAgents = true;
      const agent = value.trim().toLowerCase();
      if (agent === '*') isAll = true;
      // The token ends where letters, - and _ end: agentd/1.0 is we, agentd-news is not.
      else if (/^[a-z_-]+/.exec(agent)?.[0] === USER_AGENT) isOurs = hasOurs = true;
    } else if (name === 'allow' || name === 'disallow') {
      inAgents = false;
      const rule = value.trim().replace(/\*{2,}/g, '*');
      if (rule === '') continue;
      if (isOurs) groups.ours.push(`${name}:${rule}`);
      if (isAll) groups.all.push(`${name}:${rule}`);
    }
  }
  return bounded(hasOurs ? groups.ours : groups.all);
}

/** Whether the rules, as {@link ourRules} keeps them, let us have the URL. `/robots.txt` itself is always allowed. */
export function isAllowedBy(rules: string, url: URL): boolean {
  if (rules === '' || url.pathname === '/robots.txt') return true;
  const robots = robotsParser(`${url.origin}/robots.txt`, `user-agent:*\n${rules}`);
  return robots.isAllowed(url.href, USER_AGENT) ?? true;
}

/** The first rules that fit; the rest of a file beyond all measure counts as unread, which the RFC allows. */
function bounded(rules: readonly string[]): string {
  const kept: string[] = [];
  let left = MAX_KEPT_CHARACTERS;
  let wildcardsLeft = MAX_WILDCARD_CHARACTERS;
  for (const rule of new Set(rules)) {
    left -= rule.length + 1;
    if (left < 0 || kept.length === MAX_RULES) break;
    if (rule.includes('*')) {
      wildcardsLeft -= rule.length;
      if (wildcardsLeft < 0) continue;
    }
    kept.push(rule);
  }
  return kept.join('\n');
}
