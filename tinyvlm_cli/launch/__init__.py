"""Worker processes: started on each GPU of this machine or of a Slurm step.

The parent process writes a job into a folder; the workers read it from there."""
