-- Deletes and truncates, by transaction and table, newest first
-- param since: from this time on [default: 1970-01-01T00:00:00Z]
-- param table: only tables whose schema.name is LIKE this [default: %]
-- param limit: at most so many [default: 100]
-- columns: committed_at, xid, lsn, table, deletes, truncates, actor, application, query
SELECT committed_at, xid, lsn, "table",
       count(*) FILTER (op = 'D') AS deletes,
       count(*) FILTER (op = 'T') AS truncates,
       coalesce(any_value(actor."user"), 'unknown') AS actor,
       any_value(actor.application_name) AS application,
       any_value(actor.query) AS query
FROM main.changes
WHERE op IN ('D', 'T') AND committed_at >= $since::TIMESTAMPTZ AND "table" LIKE $table
GROUP BY committed_at, xid, lsn, "table"
ORDER BY committed_at DESC, xid DESC, "table"
LIMIT $limit::BIGINT
