-- How well transactions are attributed, day by day (UTC): share of each source
-- param since: from this time on [default: 1970-01-01T00:00:00Z]
-- columns: day, source, transactions, share
SELECT make_timestamp(epoch_us(committed_at))::DATE AS day,
       actor.source AS source,
       count(*) AS transactions,
       round(count(*) / sum(count(*)) OVER (PARTITION BY day), 4) AS share
FROM main.transactions
WHERE committed_at >= $since::TIMESTAMPTZ
GROUP BY day, source
ORDER BY day DESC, transactions DESC, source
