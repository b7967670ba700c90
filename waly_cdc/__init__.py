"""waly-cdc: a change-data-capture archive for PostgreSQL."""

__version__ = "0.1.0"
