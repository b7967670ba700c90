"""Standbys, backups and copies of the embedded server."""

from __future__ import annotations
