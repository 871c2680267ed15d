"""Train, evaluate and compare small vision-language models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
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
    trust: "Sequence[str]" = (),
) -> "Loaded":
    """Load a trained model for use in a notebook.

    path_or_run: a run in `results_dir` (any name that `run=` accepts), a run folder, or a model folder in Hugging Face
    format. stage: defaults to the run's last stage. device: defaults to a GPU if one is available, otherwise the CPU.
    dtype: "bf16", "fp32" or a torch.dtype; defaults to the precision of the run.
    trust: your own modules that the run may import, such as that of its connector.
    """
    # Imported here because the command line must start without torch.
    from tinyvlm_cli.config.build import trust as allow
    from tinyvlm_cli.evaluate.loaded import Loaded
    from tinyvlm_cli.results.folder import Results
    from tinyvlm_cli.results.models import find_model

    allow(trust)
    return Loaded(find_model(Results(results_dir), str(path_or_run), stage=stage), device=device, dtype=dtype)
