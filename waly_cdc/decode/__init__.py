"""Bytes to Arrow: pure functions of what the journal or a copy holds. No I/O, no clock."""
