"""Answers from the archive: state at a point, log, rows, differences, queries."""
