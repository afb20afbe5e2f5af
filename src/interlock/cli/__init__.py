"""The command line: finds the node or the home folder, calls an operation, shows what came of it."""
