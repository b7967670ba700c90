-- Who changed which table, and how much
-- param since: from this time on [default: 1970-01-01T00:00:00Z]
-- param table: only tables whose schema.name is LIKE this [default: %]
-- columns: who, table, inserts, updates, deletes, truncates, transactions, apps, first, last
SELECT coalesce(actor."user", 'unknown') AS who,
       "table",
       count(*) FILTER (op = 'I') AS inserts,
       count(*) FILTER (op = 'U') AS updates,
       count(*) FILTER (op = 'D') AS deletes,
       count(*) FILTER (op = 'T') AS truncates,
       count(DISTINCT (era, lsn)) AS transactions,
       list_sort(list(DISTINCT coalesce(actor.application_name, 'unknown'))) AS apps,
       min(committed_at) AS first,
       max(committed_at) AS last
FROM main.changes
WHERE committed_at >= $since::TIMESTAMPTZ AND "table" LIKE $table
GROUP BY who, "table"
ORDER BY who, "table"
