"""The output plugins that a server may send changes with, and what they cannot tell."""

PGOUTPUT, WAL2JSON = "pgoutput", "wal2json"

SPECIAL_NUMBERS = "special_numbers"
MESSAGE_ZERO_BYTES = "message_zero_bytes"
TABLES_BY_NAME = "tables_by_name"

LOSSES = {
    SPECIAL_NUMBERS: "NaN and Infinity in columns of type real, double precision and numeric"
    " arrive as NULL (in baselines they do not)",
    MESSAGE_ZERO_BYTES: "an application's logical messages end before their first zero byte",
    TABLES_BY_NAME: "tables are told apart by name: where a name passes from one table to another,"
    " changes made until the next look at the catalog are filed under the former table, and both"
    " have a gap there; changes of tables that came and went between two looks are left out",
}
"""What an archive may lack because of its plugin, by the names that its manifest uses."""
