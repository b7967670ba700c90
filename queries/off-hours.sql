-- Changes outside working hours: at night and at weekends, newest first
-- param opens: first working hour, 0 to 24 [default: 7]
-- param closes: hour at which work ends, 0 to 24 [default: 19]
-- param utc_offset: hours that local clocks are ahead of UTC [default: 0]
-- param since: from this time on [default: 1970-01-01T00:00:00Z]
-- columns: local_time, weekday, committed_at, xid, lsn, events, actor, application, client, query
SELECT make_timestamp(epoch_us(committed_at) + ($utc_offset::DOUBLE * 3600000000)::BIGINT)
           AS local_time,
       dayname(local_time) AS weekday,
       committed_at, xid, lsn, events,
       coalesce(actor."user", 'unknown') AS actor,
       actor.application_name AS application,
       actor.client_addr AS client,
       actor.query AS query
FROM main.transactions
WHERE committed_at >= $since::TIMESTAMPTZ
      AND (isodow(local_time) > 5
           OR hour(local_time) < $opens::INTEGER OR hour(local_time) >= $closes::INTEGER)
ORDER BY committed_at DESC, xid DESC
