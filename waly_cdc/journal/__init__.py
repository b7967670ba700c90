"""The journal: received frames that are not yet sealed, on local disk, appended and fsynced."""
