/** How token endpoints are, for all daemons: failures in a row, how long nobody is to ask, and whether our client is refused. */
import type { Queryable } from './database.ts';

/** From so many failures in a row on, a provider is asked by few: for 2 s, then 4, up to a minute. */
const FAILURES = 5;
const LONGEST_BLOCK_SECONDS = 60;

/** An endpoint failed, or asked to come later. Two daemons may say so at once; each counts. */
export async function endpointFailed(
  db: Queryable,
  providerId: string,
  failed: {
    /** Nobody is to ask for so long; null: only if it goes on like this. */
    readonly blockMs: number | null;
    /** It refuses this platform's client: an operator has to look at it. */
    readonly isAlarm: boolean;
    readonly reasonCode: string;
    readonly reason: string;
  },
): Promise<{ readonly isNewAlarm: boolean }> {
  const [row] = await db.query<{ is_new: boolean }>(
    {
      name: 'endpoint_failed',
      text: `
insert into agentd.provider_states as p (service_provider_id, failures, blocked_until, alarm_since, reason_code, reason, updated_at)
select s.id, (not $3)::integer, agentd.now() + $2::double precision * interval '1 millisecond', case when $3 then agentd.now() end, $4, $5, agentd.now()
  from public.service_providers s where s.id = $1
on conflict (service_provider_id) do update
   -- one that refuses our client answers: an odd token of one tenant's may be why, and keeps nobody else from asking
   set failures = least(p.failures, 1000000) + excluded.failures,
       blocked_until = greatest(
         p.blocked_until, excluded.blocked_until,
         case when not $3 and p.failures + 1 >= ${FAILURES}
              then agentd.now() + make_interval(secs => least(2 ^ least(p.failures + 2 - ${FAILURES}, 10), ${LONGEST_BLOCK_SECONDS})) end),
       alarm_since = case when $3 then coalesce(p.alarm_since, agentd.now()) else p.alarm_since end,
       reason_code = excluded.reason_code, reason = excluded.reason, updated_at = excluded.updated_at
returning alarm_since = updated_at as is_new`,
    },
    [providerId, failed.blockMs, failed.isAlarm, failed.reasonCode, failed.reason.slice(0, 2000)],
  );
  return { isNewAlarm: row?.is_new === true };
}

/** An endpoint answered as it should. Writes nothing where nothing was wrong. */
export async function endpointWorked(db: Queryable, providerId: string): Promise<void> {
  await db.query(
    {
      name: 'endpoint_worked',
      text: `
delete from agentd.provider_states p
 where p.service_provider_id in (
   select o.service_provider_id from agentd.provider_states o where o.service_provider_id = $1 for update skip locked)`,
    },
    [providerId],
  );
}
