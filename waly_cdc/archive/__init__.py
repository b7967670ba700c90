"""The archive on disk: immutable files, and the manifest that says which of them exist.

`archive/FORMAT.md` is the specification; the modules follow it.
"""
