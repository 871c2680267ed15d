"""The command line: picks a command, composes its configuration with Hydra, and reports errors in one sentence.

Nothing here computes; the commands call the other folders. No other folder imports this one."""
