-- Transactions of which nobody knows who made them, newest first, and what they touched
-- param since: from this time on [default: 1970-01-01T00:00:00Z]
-- param limit: at most so many [default: 100]
-- columns: committed_at, xid, lsn, changes, tables
SELECT committed_at, xid, lsn,
       count(*) AS changes,
       list_sort(list(DISTINCT "table")) AS tables
FROM main.changes
WHERE actor.source = 'unknown' AND committed_at >= $since::TIMESTAMPTZ
GROUP BY committed_at, xid, lsn
ORDER BY committed_at DESC, xid DESC
LIMIT $limit::BIGINT
