"""The types and units of every setting, and building a component from the YAML that names it.

Values live in conf/*.yaml. Nothing here imports Hydra or torch."""
