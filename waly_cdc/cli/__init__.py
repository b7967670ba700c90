"""The command line: declares options, calls the library, hands over results."""
