"""Ablations of small vision-language models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from tinyvlm_cli.evaluate.loaded import Loaded


def load(
    path_or_run: "str | Path",
    *,
    stage: str | None = None,
    results_dir: "str | Path" = "results",
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype | None" = None,
) -> "Loaded":
    """Load a trained model, for use in a notebook.

    path_or_run: a run in `results_dir` by any name that `run=` accepts, a run folder, or a model folder in Hugging
    Face form. stage: one of the run's; None: its last. device: None: a GPU where there is one.
    dtype: "bf16", "fp32" or a torch.dtype; None: the run's precision.
    """
    # torch is imported only here: the command line must start without it.
    from tinyvlm_cli.evaluate.loaded import Loaded
    from tinyvlm_cli.results.folder import Results
    from tinyvlm_cli.results.models import find_model

    return Loaded(find_model(Results(results_dir), str(path_or_run), stage=stage), device=device, dtype=dtype)
