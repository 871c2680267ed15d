"""Imports TinyLLaVA's published checkpoints without running their code.

`layouts` reads a checkpoint, `connectors` converts its connector, and `stage` writes its parts in our format."""
