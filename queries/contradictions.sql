-- Transactions that name a role of the server and ran in another role's session, newest first
-- param since: from this time on [default: 1970-01-01T00:00:00Z]
-- columns: committed_at, xid, lsn, says, session, application_name
WITH sources AS (
    SELECT era, committed_at, xid, lsn, unnest(actor.sources) AS source
    FROM main.transactions
    WHERE committed_at >= $since::TIMESTAMPTZ
),
sessions AS (
    SELECT DISTINCT era, xid, lsn, source."user" AS session, source.application_name
    FROM sources
    WHERE source.source <> 'message'
)
SELECT told.committed_at, told.xid, told.lsn,
       told.source."user" AS says,
       seen.session, seen.application_name
FROM sources AS told
JOIN sessions AS seen USING (era, xid, lsn)
WHERE told.source.source = 'message'
  AND told.source."user" <> seen.session
  AND told.source."user" IN (SELECT session FROM sessions)
ORDER BY told.committed_at DESC, told.xid DESC
