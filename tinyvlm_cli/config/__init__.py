"""Types and units of all settings, and the construction of components from YAML.

The values are in conf/*.yaml. Nothing here imports Hydra or torch."""
