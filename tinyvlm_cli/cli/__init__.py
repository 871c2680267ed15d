"""The command line: selects a command, composes its configuration with Hydra, runs it and reports errors.

The commands call the other packages for all computation. No other package imports this one."""
