/** What differs from one OAuth provider to the next, as data: config/oauth-providers.json. */
import { z } from 'zod';
import { readConfigFile } from '../config.ts';

const providerSchema = z.strictObject({
  /** As in service_providers.name; found whatever its case. */
  name: z.string().min(1),
  aliases: z.array(z.string().min(1)).default([]),
  /** In force where the row names none. */
  tokenEndpoint: z.url().nullable().default(null),
  /** Of an access token whose answer does not say; null: then it is not refreshed ahead. */
  lifetimeSeconds: z.int().min(60).nullable().default(null),
  /** How the client names itself: in the body (RFC 6749 2.3.1), or by HTTP Basic. */
  clientAuth: z.enum(['body', 'basic']).default('body'),
  body: z.enum(['form', 'json']).default('form'),
  /** Whether the granted scopes are sent with a refresh. */
  sendScope: z.boolean().default(false),
  /** Words for errors beside those of RFC 6749 5.2, by what they mean. */
  errors: z
    .strictObject({
      /** The user has to connect again. */
      reauth: z.array(z.string()).default([]),
      /** The provider's configuration is wrong. */
      client: z.array(z.string()).default([]),
      /** It may pass. */
      transient: z.array(z.string()).default([]),
    })
    .default({ reauth: [], client: [], transient: [] }),
  /** A GET that tells a good key (any answer but 401) from a refused one (401) and costs nothing; null: there is none. */
  keyCheck: z
    .strictObject({
      url: z.url(),
      header: z.string().min(1).default('authorization'),
      /** Before the key in the header. */
      prefix: z.string().default('Bearer '),
      /** Other headers that the request needs. */
      headers: z.record(z.string(), z.string()).default({}),
    })
    .nullable()
    .default(null),
});

const catalogSchema = z.strictObject({
  /** Month in which the entries were looked up, `YYYY-MM`. */
  asOf: z.string().regex(/^\d{4}-\d{2}$/),
  providers: z.array(providerSchema).refine((providers) => {
    const names = providers.flatMap(({ name, aliases }) => [name, ...aliases]);
    return new Set(names).size === names.length;
  }, 'a name is listed twice'),
});

export type OAuthProvider = z.infer<typeof providerSchema>;

/** What is known of OAuth providers without asking them. */
export interface OAuthProviders {
  /** By name or alias, or by the first word of it (google-ads is Google); null when unknown: then only RFC 6749 holds. */
  provider(name: string): OAuthProvider | null;
}

/** Reads `config/oauth-providers.json`. @throws ConfigError naming the file and the field */
export function loadOAuthProviders(): OAuthProviders {
  const { providers } = readConfigFile('oauth-providers.json', catalogSchema);
  const byName = new Map(
    providers.flatMap((provider) => [provider.name, ...provider.aliases].map((name) => [name, provider])),
  );
  return {
    provider(name) {
      const word = name
        .trim()
        .toLowerCase()
        .replaceAll(/[\s.-]+/g, '_');
      return byName.get(word) ?? byName.get(word.split('_')[0] ?? '') ?? null;
    },
  };
}
