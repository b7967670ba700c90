"""Everything that speaks to the user's PostgreSQL."""
