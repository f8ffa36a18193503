/** The client as which a credential's token is asked for: the platform's, from service_providers, or the credential's own. */
import { z } from 'zod';
import type { ClaimedCredential } from '../../db/credentials.ts';
import type { OAuthProvider, OAuthProviders } from '../../providers/oauth-providers.ts';
import type { SecretContext, SecretOpener } from '../../secrets.ts';

const word = z.string().min(1).max(4096);
/** Of service_providers.configuration_metadata: an operator writes it. Other keys are the application's. */
const configuration = z.object({
  token_url: word.optional(),
  token_endpoint: word.optional(),
  client_id: word.optional(),
  /** Sealed, a reference to the Vault, or plain. */
  client_secret: word.optional(),
  client_auth: z.enum(['body', 'basic']).optional(),
});
/** Of a credential's connection_metadata, for a client that was registered for this connection alone: its user writes it. */
const own = z.object({
  token_endpoint: word,
  client_id: word,
  client_secret: word.optional(),
  client_auth: z.enum(['body', 'basic']).optional(),
  resource: word.optional(),
});

export type OAuthClient = {
  readonly endpoint: string;
  readonly clientId: string;
  readonly clientSecret: string | null;
  readonly clientAuth?: 'body' | 'basic';
  readonly resource?: string;
  readonly provider: OAuthProvider | null;
  /** The credential's own: what is wrong with it is nobody else's alarm. */
  readonly isOwn: boolean;
};

/**
 * The client; a text: what is missing.
 *
 * The platform's secret goes to endpoints that the operator or agentd names, never to one that a tenant does.
 *
 * @throws SecretError where the client's secret can't be opened
 */
export async function oauthClient(
  claim: Pick<ClaimedCredential, 'id' | 'workspace_id' | 'provider' | 'connection_metadata'>,
  deps: { readonly providers: OAuthProviders; readonly secrets: SecretOpener },
): Promise<OAuthClient | string> {
  const { provider: row } = claim;
  const known = deps.providers.provider(row.name);
  const parsed = configuration.safeParse(row.configuration_metadata ?? {});
  if (!parsed.success) {
    return `configuration_metadata of service provider ${row.name} can't be read: ${parsed.error.issues[0]?.path.join('.')} is no text.`;
  }
  const configured = parsed.data;
  const endpoint =
    row.token_endpoint ?? configured.token_url ?? configured.token_endpoint ?? known?.tokenEndpoint ?? null;
  if (endpoint === null) {
    const client = own.safeParse(claim.connection_metadata);
    if (!client.success) {
      return `Service provider ${row.name} has no token_endpoint, and the credential names no client of its own.`;
    }
    const { token_endpoint, client_id, client_secret, client_auth, resource } = client.data;
    return {
      endpoint: token_endpoint,
      clientId: client_id,
      clientSecret:
        client_secret === undefined
          ? null
          : await deps.secrets.open(client_secret, {
              table: 'public.user_integration_credentials',
              row: claim.id,
              column: 'connection_metadata',
              workspace: claim.workspace_id,
            }),
      ...(client_auth ? { clientAuth: client_auth } : {}),
      ...(resource ? { resource } : {}),
      provider: null,
      isOwn: true,
    };
  }
  if (configured.client_id === undefined) {
    return `Service provider ${row.name} has no client_id in its configuration_metadata.`;
  }
  const context: SecretContext = {
    table: 'public.service_providers',
    row: row.id,
    column: 'configuration_metadata',
    workspace: null,
  };
  return {
    endpoint,
    clientId: configured.client_id,
    clientSecret:
      configured.client_secret === undefined
        ? null
        : await deps.secrets.open(configured.client_secret, context),
    ...(configured.client_auth ? { clientAuth: configured.client_auth } : {}),
    provider: known,
    isOwn: false,
  };
}
