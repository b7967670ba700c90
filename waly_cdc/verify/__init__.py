"""Proving that an archive is intact and that it restores."""
