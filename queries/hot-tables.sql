-- Which tables change most, and when each last did
-- param since: from this time on [default: 1970-01-01T00:00:00Z]
-- columns: table, changes, share, inserts, updates, deletes, truncates, transactions, actors, last
SELECT "table",
       count(*) AS changes,
       round(count(*) / sum(count(*)) OVER (), 4) AS share,
       count(*) FILTER (op = 'I') AS inserts,
       count(*) FILTER (op = 'U') AS updates,
       count(*) FILTER (op = 'D') AS deletes,
       count(*) FILTER (op = 'T') AS truncates,
       count(DISTINCT (era, lsn)) AS transactions,
       count(DISTINCT coalesce(actor."user", 'unknown')) AS actors,
       max(committed_at) AS last
FROM main.changes
WHERE committed_at >= $since::TIMESTAMPTZ
GROUP BY "table"
ORDER BY changes DESC, "table"
