-- How busy each table was, hour by hour (UTC)
-- param since: from this time on [default: 1970-01-01T00:00:00Z]
-- param table: only tables whose schema.name is LIKE this [default: %]
-- columns: hour, table, inserts, updates, deletes, truncates, transactions
SELECT date_trunc('hour', make_timestamp(epoch_us(committed_at))) AS hour,
       "table",
       count(*) FILTER (op = 'I') AS inserts,
       count(*) FILTER (op = 'U') AS updates,
       count(*) FILTER (op = 'D') AS deletes,
       count(*) FILTER (op = 'T') AS truncates,
       count(DISTINCT (era, lsn)) AS transactions
FROM main.changes
WHERE committed_at >= $since::TIMESTAMPTZ AND "table" LIKE $table
GROUP BY ALL
ORDER BY hour DESC, "table"
