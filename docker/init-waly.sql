-- Makes the role `waly` and its publications in a new database, with no more rights than the
-- sidecar needs. PostgreSQL's image runs it once, as superuser, when it makes the cluster (psql, in
-- the database POSTGRES_DB).
--
-- For a database that exists already, make a role that can log in, and run `waly check --fix-sql` as
-- that role: it prints for a superuser what the role lacks of the attributes and memberships below
-- (BYPASSRLS where a table has row level security, pg_read_all_stats as a choice), and the same two
-- publications, the second one with the tables of today. It makes no event trigger: there, `waly
-- check` has to be asked again after a table was made or given a key, and prints the statement.

\set ON_ERROR_STOP on
\set password `cat "$WALY_PASSWORD_FILE"`

SELECT :'password' = '' AS no_password,
       current_database() !~ '^[a-z0-9_]{1,52}$'
           OR current_database() ~ '_[0-9a-f]{8}$' AS odd_name \gset
\if :no_password
DO $$ BEGIN RAISE 'WALY_PASSWORD_FILE names no file with a password'; END $$;
\endif
\if :odd_name
DO $$ BEGIN RAISE 'waly gives slot and publications of such a database other names: %',
    current_database(); END $$;
\endif

-- BYPASSRLS: the archive holds all rows of a table, or it could restore none of its states.
CREATE ROLE waly LOGIN REPLICATION BYPASSRLS PASSWORD :'password';
-- Baselines, sequences and pg_dump read everything, later tables included; it may write nothing.
GRANT pg_read_all_data TO waly;
-- Who is behind a transaction: pg_stat_activity of other roles.
GRANT pg_read_all_stats TO waly;

-- A role that is no superuser may publish only tables of its own: so they are made here.
-- Updates and deletes of a table without replica identity must not be published: they would fail.
SELECT format('CREATE PUBLICATION %I FOR ALL TABLES WITH (publish = %L)',
              'waly_' || current_database() || '_all', 'insert, truncate') \gexec
SELECT format('CREATE PUBLICATION %I WITH (publish = %L)',
              'waly_' || current_database() || '_keyed', 'update, delete') \gexec

-- Keeps the second one to the tables that have a replica identity, from the moment they have it.
CREATE SCHEMA waly;
CREATE FUNCTION waly.publish_keyed_tables() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    publication oid := (SELECT oid FROM pg_publication
                        WHERE pubname = 'waly_' || current_database() || '_keyed');
    change text;
BEGIN
    FOR change IN
        WITH followed AS (
            SELECT c.oid
            FROM pg_class c
            JOIN pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN pg_index i
                ON i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
                   AND CASE c.relreplident WHEN 'd' THEN i.indisprimary
                                           WHEN 'i' THEN i.indisreplident END
            CROSS JOIN LATERAL (
                SELECT count(*) FILTER (WHERE a.attgenerated = '') AS plain,
                       count(*) FILTER (WHERE a.attgenerated <> '') AS generated
                FROM pg_attribute a
                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                      AND (c.relreplident = 'f' OR a.attnum = ANY (
                          (string_to_array(i.indkey::text, ' ')::int[])[:i.indnkeyatts]))
            ) AS identity
            WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.oid >= 16384
                  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
                  AND plain > 0
                  AND (generated = 0 OR c.relreplident = 'f'
                       AND current_setting('server_version_num')::int < 180000)
        ), published AS (
            SELECT prrelid AS oid FROM pg_publication_rel WHERE prpubid = publication
        )
        SELECT format('ALTER PUBLICATION %I %s TABLE ONLY %I.%I', p.pubname,
                      CASE WHEN published.oid IS NULL THEN 'ADD' ELSE 'DROP' END,
                      n.nspname, c.relname)
        FROM followed FULL JOIN published USING (oid)
        JOIN pg_class c USING (oid)
        JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_publication p ON p.oid = publication
        WHERE followed.oid IS NULL OR published.oid IS NULL
    LOOP
        EXECUTE change;
    END LOOP;
EXCEPTION WHEN OTHERS THEN
    -- Never the application's statement: `waly check` reports a table that is not as it should be.
    RAISE WARNING 'waly: publication not brought up to date: %', SQLERRM;
END $$;

CREATE EVENT TRIGGER waly_publish_keyed_tables ON ddl_command_end
WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'CREATE SCHEMA', 'ALTER TABLE',
             'DROP INDEX', 'DROP OWNED')
EXECUTE FUNCTION waly.publish_keyed_tables();
