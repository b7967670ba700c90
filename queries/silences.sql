-- The longest times in which nothing was committed: quiet, or down
-- param since: from this time on [default: 1970-01-01T00:00:00Z]
-- param limit: at most so many [default: 20]
-- columns: seconds, last_before, first_after, xid_before, xid_after
WITH in_time AS (
    SELECT committed_at, xid,
           lag(committed_at) OVER clock AS last_before,
           lag(xid) OVER clock AS xid_before
    FROM main.transactions
    WHERE committed_at >= $since::TIMESTAMPTZ
    WINDOW clock AS (ORDER BY committed_at, xid)
)
SELECT round((epoch_us(committed_at) - epoch_us(last_before)) / 1000000, 3) AS seconds,
       last_before,
       committed_at AS first_after,
       xid_before,
       xid AS xid_after
FROM in_time
WHERE last_before IS NOT NULL
ORDER BY seconds DESC, first_after DESC
LIMIT $limit::BIGINT
