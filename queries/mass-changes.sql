-- Updates and deletes of many rows of a table at once: a forgotten WHERE looks like this
-- param rows: from so many rows on [default: 50]
-- param since: from this time on [default: 1970-01-01T00:00:00Z]
-- columns: committed_at, xid, lsn, table, op, rows, actor, application, query
SELECT committed_at, xid, lsn, "table", op,
       count(*) AS rows,
       coalesce(any_value(actor."user"), 'unknown') AS actor,
       any_value(actor.application_name) AS application,
       any_value(actor.query) AS query
FROM main.changes
WHERE op IN ('U', 'D') AND committed_at >= $since::TIMESTAMPTZ
GROUP BY committed_at, xid, lsn, "table", op
HAVING count(*) >= $rows::BIGINT
ORDER BY committed_at DESC, xid DESC, "table", op
