"""Capture: receive, journal, acknowledge, seal. Orchestration only."""
