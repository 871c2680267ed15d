"""Worker processes, started on each GPU of this machine or of a Slurm job step.

The parent process writes a job to a folder, and the workers read it from there."""
