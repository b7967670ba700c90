-- Transactions of one actor, newest first
-- param actor: the user's name; unknown for transactions without one
-- param since: from this time on [default: 1970-01-01T00:00:00Z]
-- param limit: at most so many [default: 100]
-- columns: committed_at, xid, lsn, events, application, client, source, query, context
SELECT committed_at, xid, lsn, events,
       actor.application_name AS application,
       actor.client_addr AS client,
       actor.source AS source,
       actor.query AS query,
       actor.context AS context
FROM main.transactions
WHERE coalesce(actor."user", 'unknown') = $actor AND committed_at >= $since::TIMESTAMPTZ
ORDER BY committed_at DESC, xid DESC
LIMIT $limit::BIGINT
