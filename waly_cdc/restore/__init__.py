"""Rebuilding a database, tables or files as they were at a point."""
