/**
 * What stands between agentd and the server. A pooler that hands a connection another backend for each transaction takes
 * LISTEN and gives no notification, and where it does not know prepared statements the worker's own fail, now and
 * then at first: better found out at start than from a log.
 */
import pg from 'pg';

/** `direct`: none, or one that the server itself speaks for. `sessions`: one in session mode, which changes nothing. */
export type Pooling = 'direct' | 'sessions' | 'transactions' | 'transactions without prepared statements';

/** Connections that hold a backend each while the first one is looked at: more than that, and it surely has another. */
const RIVALS = 3;
const DEADLINE_MS = 5_000;
/** The prepared statement is not there (26000), or somebody else's of that name is (42P05). */
const NOT_PREPARED = new Set(['26000', '42P05']);

const PROBE = { name: 'agentd_pooler_probe', text: 'select pg_backend_pid() as pid' };

/**
 * Finds out which. Costs one connection where there is no pooler: the process id that a server announces when the
 * connection is made is the one that it answers with. Behind a pooler, transactions on other connections take the backends
 * that a session would keep to itself.
 */
export async function detectPooling(url: string): Promise<Pooling> {
  const clients: pg.Client[] = [];
  const connect = async (): Promise<pg.Client> => {
    const client = new pg.Client({
      connectionString: url,
      application_name: 'agentd start',
      connectionTimeoutMillis: DEADLINE_MS,
      query_timeout: DEADLINE_MS,
    });
    client.on('error', () => {});
    clients.push(client);
    await client.connect();
    return client;
  };
  try {
    const own = await connect();
    const announced = (own as unknown as { processID: number | null }).processID;
    const first = await backend(own);
    if (first === announced) return 'direct';
    for (let rival = 0; rival < RIVALS; rival++) {
      const other = await connect();
      await other.query('begin');
      const taken = await backend(other);
      // no answer: the rival has the pooler's only free backend, which was not ours then
      const now = await backend(own).catch(() => null);
      if (now === null) return 'transactions';
      if (now === 'not prepared' || taken === 'not prepared')
        return 'transactions without prepared statements';
      if (now !== first || taken === first) return 'transactions';
    }
    return 'sessions';
  } finally {
    await Promise.all(clients.map((client) => client.end().catch(() => {})));
  }
}

/** The process that answers a prepared statement. */
async function backend(client: pg.Client): Promise<number | 'not prepared'> {
  try {
    const { rows } = await client.query<{ pid: number }>(PROBE);
    return rows[0]?.pid ?? Number.NaN;
  } catch (error) {
    if (NOT_PREPARED.has(String((error as { code?: unknown }).code))) return 'not prepared';
    throw error;
  }
}
