-- The transactions that changed most rows
-- param since: from this time on [default: 1970-01-01T00:00:00Z]
-- param limit: at most so many [default: 20]
-- columns: events, committed_at, xid, lsn, actor, application, source, query
SELECT events, committed_at, xid, lsn,
       coalesce(actor."user", 'unknown') AS actor,
       actor.application_name AS application,
       actor.source AS source,
       actor.query AS query
FROM main.transactions
WHERE committed_at >= $since::TIMESTAMPTZ
ORDER BY events DESC, committed_at DESC, xid DESC
LIMIT $limit::BIGINT
