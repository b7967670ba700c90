"""One file for each command: its options, one call into the library, and the result handed over."""
