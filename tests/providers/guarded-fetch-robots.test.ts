import { expect, test } from 'vitest';
import { DocumentError } from '../../src/providers/document-error.ts';
import { type GuardedClient, openGuardedClient } from '../../src/providers/guarded-fetch.ts';
import { isAllowedBy, MAX_ROBOTS_BYTES, ourRules } from '../../src/providers/robots-rules.ts';
import { page, redirect, startWebServer, type WebServer } from '../peers/web-server.ts';
import { type HandClock, handClock } from '../support/hand-clock.ts';

const live = (): AbortSignal => new AbortController().signal;

async function withSite(
  use: (web: GuardedClient, site: WebServer, clock: HandClock) => Promise<void>,
): Promise<void> {
  await using site = await startWebServer();
  const clock = handClock();
  const web = openGuardedClient({ allowedPrivateHosts: [`127.0.0.1:${site.port}`], clock });
  for (const path of ['/open', '/closed', '/closed/within', '/other']) site.pages.set(path, page(path));
  try {
    await use(web, site, clock);
  } finally {
    await web.close();
  }
}

async function verdict(work: Promise<unknown>): Promise<string> {
  return work.then(
    () => 'fetched',
    (error: unknown) => {
      expect(error).toBeInstanceOf(DocumentError);
      return `${(error as DocumentError).code}${(error as DocumentError).isTransient ? ', later' : ''}`;
    },
  );
}

const asks = (site: WebServer): number => site.requests.filter(({ path }) => path === '/robots.txt').length;
const allows = (text: string, path: string): boolean =>
  isAllowedBy(ourRules(text), new URL(path, 'http://h.example.com'));

test('what a site closes is not fetched, and its robots.txt is asked for once a day', async () => {
  await withSite(async (web, site, clock) => {
    site.pages.set('/robots.txt', page('User-agent: *\nDisallow: /closed\n'));
    expect(await verdict(web.fetch(`${site.origin}/open`, { signal: live() }))).toBe('fetched');
    expect(await verdict(web.fetch(`${site.origin}/closed/within`, { signal: live() }))).toBe(
      'blocked_by_robots',
    );
    expect(asks(site)).toBe(1);
    expect(site.requests.some(({ path }) => path.startsWith('/closed'))).toBe(false);
    site.pages.set('/robots.txt', page('User-agent: *\nDisallow: /open\n'));
    await clock.advance(24 * 3600_000 - 1);
    expect(await verdict(web.fetch(`${site.origin}/open`, { signal: live() }))).toBe('fetched');
    await clock.advance(1);
    expect(await verdict(web.fetch(`${site.origin}/open`, { signal: live() }))).toBe('blocked_by_robots');
    expect(await verdict(web.fetch(`${site.origin}/closed`, { signal: live() }))).toBe('fetched');
    expect(asks(site)).toBe(2);
  });
});

test('a redirect into what is closed is not followed', async () => {
  await withSite(async (web, site) => {
    site.pages.set('/robots.txt', page('User-agent: agentd\nDisallow: /closed\n'));
    site.pages.set('/open', redirect('/closed'));
    expect(await verdict(web.fetch(`${site.origin}/open`, { signal: live() }))).toBe('blocked_by_robots');
    expect(site.requests.map(({ path }) => path)).toEqual(['/robots.txt', '/open']);
  });
});

test('many who ask at once share one request, and one who gives up takes it from nobody', async () => {
  await withSite(async (web, site) => {
    const stop = new AbortController();
    const why = new Error('drain');
    const first = Promise.withResolvers<void>();
    const asked = Promise.withResolvers<void>();
    site.pages.set('/robots.txt', (request, response) => {
      asked.resolve();
      void first.promise.then(() => page('User-agent: *\nDisallow: /closed')(request, response));
    });
    const abandoned = web
      .fetch(`${site.origin}/open`, { signal: stop.signal })
      .catch((error: unknown) => error);
    const others = ['/open', '/closed', '/other'].map((path) =>
      verdict(web.fetch(site.origin + path, { signal: live() })),
    );
    await asked.promise;
    stop.abort(why);
    expect(await abandoned).toBe(why);
    first.resolve();
    expect(await Promise.all(others)).toEqual(['fetched', 'blocked_by_robots', 'fetched']);
    expect(asks(site)).toBe(1);
  });
});

test('no file is leave, a site in trouble is left alone for five minutes, and both are remembered', async () => {
  for (const status of [401, 403, 404, 410]) {
    await withSite(async (web, site) => {
      site.pages.set('/robots.txt', page('User-agent: *\nDisallow: /', {}, status));
      for (let n = 0; n < 2; n++)
        expect(await verdict(web.fetch(`${site.origin}/open`, { signal: live() }))).toBe('fetched');
      expect(asks(site)).toBe(1);
    });
  }
  for (const status of [429, 500, 503]) {
    await withSite(async (web, site, clock) => {
      site.pages.set('/robots.txt', page('', {}, status));
      for (let n = 0; n < 2; n++) {
        const fetching = web.fetch(`${site.origin}/open`, { signal: live() });
        expect(await verdict(fetching)).toBe('blocked_by_robots, later');
      }
      expect(asks(site)).toBe(1);
      site.pages.delete('/robots.txt');
      await clock.advance(5 * 60_000);
      expect(await verdict(web.fetch(`${site.origin}/open`, { signal: live() }))).toBe('fetched');
    });
  }
});

test('robots.txt may redirect to its site’s other names, not into private networks, and not for ever', async () => {
  await withSite(async (web, site) => {
    site.pages.set('/robots.txt', redirect('/rules.txt'));
    site.pages.set('/rules.txt', page('User-agent: *\nDisallow: /closed'));
    expect(await verdict(web.fetch(`${site.origin}/closed`, { signal: live() }))).toBe('blocked_by_robots');
  });
  await withSite(async (web, site) => {
    site.pages.set('/robots.txt', redirect('http://169.254.169.254/latest/meta-data/'));
    expect(await verdict(web.fetch(`${site.origin}/open`, { signal: live() }))).toBe('blocked_address');
  });
  await withSite(async (web, site) => {
    site.pages.set('/robots.txt', redirect('/robots.txt'));
    expect(await verdict(web.fetch(`${site.origin}/open`, { signal: live() }))).toBe('fetched');
  });
});

test('of a robots.txt without end the beginning counts, and one that is silent ends by time', async () => {
  await withSite(async (web, site) => {
    site.pages.set('/robots.txt', (_request, response) => {
      response.writeHead(200).write('User-agent: *\nDisallow: /closed\n');
      const more = (): void => {
        while (!response.destroyed && response.write('# nothing\n'.repeat(1000)));
      };
      response.on('drain', more);
      more();
    });
    expect(await verdict(web.fetch(`${site.origin}/closed`, { signal: live() }))).toBe('blocked_by_robots');
    expect(await verdict(web.fetch(`${site.origin}/open`, { signal: live() }))).toBe('fetched');
  });
  await withSite(async (web, site, clock) => {
    const asked = Promise.withResolvers<void>();
    site.pages.set('/robots.txt', () => asked.resolve());
    const fetching = verdict(web.fetch(`${site.origin}/open`, { signal: live() }));
    await asked.promise;
    await clock.advance(30_000);
    expect(await fetching).toBe('timeout, later');
  });
});

test('the group that names us counts, else the one for all; longer rules win, and leave before closing', () => {
  const text = [
    '\uFEFFUser-agent: other',
    'Disallow: /',
    '',
    'user-agent: AgentD/2.0',
    'User-Agent: someone',
    'Sitemap: http://x/',
    'Disallow: /private # not this',
    'Allow: /private/open',
    'Disallow: /*.pdf$',
    '',
    'User-agent: agentd-news',
    'Disallow: /news',
    'User-agent: *',
    'Disallow: /all',
    'User-agent: agentd',
    'Disallow: /second-group',
  ].join('\r\n');
  for (const [path, isAllowed] of [
    ['/', true],
    ['/private', false],
    ['/private/x', false],
    ['/private/open/x', true],
    ['/a/b.pdf', false],
    ['/a/b.pdf?x', true],
    ['/news', true],
    ['/all', true],
    ['/second-group', false],
    ['/robots.txt', true],
  ] as const) {
    expect([path, allows(text, path)]).toEqual([path, isAllowed]);
  }
  expect(allows('User-agent: *\nDisallow: /', '/x')).toBe(false);
  expect(allows('User-agent: *\nDisallow:', '/x')).toBe(true);
  expect(allows('User-agent: *\nDisallow: /\nUser-agent: agentd\nDisallow:', '/x')).toBe(true);
  expect(allows('User-agent: agentd-news\nDisallow: /', '/x')).toBe(true);
  expect(allows('Disallow: /', '/x')).toBe(true);
  expect(allows('User-agent: *\nAllow: /p\nDisallow: /p', '/p')).toBe(true);
  expect(allows('User-agent: *\nDisallow: /ü', '/%C3%BC')).toBe(false);
  expect(allows('<!doctype html><title>Not found</title>', '/x')).toBe(true);
});

test('the worst robots.txt of half a megabyte is read and judged in a moment', () => {
  const full = (line: (n: number) => string): string => {
    let text = 'User-agent: *\n';
    for (let n = 0; text.length < MAX_ROBOTS_BYTES - 4096; n++) text += line(n);
    return text;
  };
  const path = `/${'a'.repeat(4000)}`;
  const worst = [
    `${full((n) => `User-agent: a${n}\n`)}Disallow: /x\n`,
    `${Array.from({ length: 15_000 }, (_, n) => `User-agent: a${n}`).join('\n')}\nUser-agent: *\n${'Disallow: /x\n'.repeat(20_000)}`,
    full(() => `Disallow: /${'*a'.repeat(1000)}b\n`),
    full(() => 'Disallow: /*a*a*a*b\n'),
    full(() => `Disallow: /${'a'.repeat(1900)}\n`),
    full(() => 'Disallow:/\n'),
    full(() => '\n'),
    full(() => ':'),
    full(() => ' '),
    `User-agent: *\nDisallow: ${'*'.repeat(MAX_ROBOTS_BYTES - 100)}`,
    'A'.repeat(MAX_ROBOTS_BYTES),
  ];
  // Compiled once; what counts is the work, not the first run of a cold function on a busy machine.
  for (const text of worst) allows(text, path);
  for (const [n, text] of worst.entries()) {
    let best = Number.POSITIVE_INFINITY;
    for (let attempt = 0; attempt < 5; attempt++) {
      const begun = performance.now();
      const rules = ourRules(text);
      const read = performance.now();
      isAllowedBy(rules, new URL(path, 'http://h.example.com'));
      best = Math.min(best, Math.max(read - begun, performance.now() - read));
      expect(rules.length).toBeLessThanOrEqual(100_000);
    }
    if (process.env.AGENTD_TEST_FIGURES) console.log(n, best.toFixed(1));
    expect([n, best < 100]).toEqual([n, true]);
  }
});
