-- Which applications write, and how much
-- param since: from this time on [default: 1970-01-01T00:00:00Z]
-- columns: application, transactions, events, events_per_transaction, users, first, last
SELECT coalesce(actor.application_name, 'unknown') AS application,
       count(*) AS transactions,
       sum(events)::BIGINT AS events,
       round(avg(events), 1) AS events_per_transaction,
       list_sort(list(DISTINCT coalesce(actor."user", 'unknown'))) AS users,
       min(committed_at) AS first,
       max(committed_at) AS last
FROM main.transactions
WHERE committed_at >= $since::TIMESTAMPTZ
GROUP BY application
ORDER BY events DESC, application
