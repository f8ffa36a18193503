/**
 * The statement that puts jobs into pg-boss, as an SQL text that two functions share. Settings come from the
 * queue; a self-test compares the result with what pg-boss itself writes. No returning clause: the caller adds it.
 *
 * @param source an SQL subquery with the columns queue, data, key and start_after
 */
export function insertJobs(source: string): string {
  return `insert into pgboss.job (
        name, data, singleton_key, start_after, policy, priority,
        retry_limit, retry_delay, retry_backoff, retry_delay_max,
        expire_seconds, deletion_seconds, keep_until, dead_letter, heartbeat_seconds)
      select q.name, s.data, s.key, coalesce(s.start_after, now()), q.policy, 0,
             q.retry_limit, q.retry_delay, q.retry_backoff, q.retry_delay_max,
             q.expire_seconds, q.deletion_seconds,
             coalesce(s.start_after, now()) + make_interval(secs => q.retention_seconds),
             q.dead_letter, q.heartbeat_seconds
        from ${source} s
        join pgboss.queue q on q.name = s.queue
      on conflict do nothing`;
}
