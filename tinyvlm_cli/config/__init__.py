"""The types and units of every setting, and the construction of a component from the YAML that describes it.

Values live in conf/*.yaml. Nothing here imports Hydra or torch."""
