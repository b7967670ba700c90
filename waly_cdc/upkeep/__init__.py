"""Care for an archive that needs no server: baselines folded from states, and both this and
compaction beside a running sidecar."""
