"""Load a model that answers questions: a run of `tinyvlm train`, or a model folder in Hugging Face format."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from tinyvlm_cli.checkpoint.parts import build_model
from tinyvlm_cli.checkpoint.tokenizers import compare_tokenizer
from tinyvlm_cli.config.datasets import Exif
from tinyvlm_cli.config.saved import from_yaml
from tinyvlm_cli.config.schema import Train
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.folder_answerer import FolderAnswerer
from tinyvlm_cli.evaluate.run_answerer import RunAnswerer
from tinyvlm_cli.model.pretrained import DTYPES
from tinyvlm_cli.results.records import Run

log = logging.getLogger(__name__)


def load_answerer(
    run: Run, stage: str, stage_dirs: Sequence[Path], *,
    device: torch.device | None = None, dtype: torch.dtype | None = None,
) -> RunAnswerer | FolderAnswerer:  # fmt: skip
    """Load the model that a run's stages (first to last) trained, or the one in a run's model folder.

    device: None for this rank's GPU, or the CPU if there is no GPU. dtype: None for that of the run or folder.
    Raises UserError if a weight is not finite.
    """
    if device is None:
        on_gpu = torch.cuda.is_available()
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    answerer: RunAnswerer | FolderAnswerer
    if run.model is not None:
        answerer = FolderAnswerer(Path(run.model), device, dtype)
    else:
        config = from_yaml(Train, run.folder / "config.yaml")
        for warning in compare_tokenizer(config.llm, stage_dirs)[1]:
            log.warning("%s", warning)
        model = build_model(
            config.llm, config.vision, config.connector, stage_dirs,
            seed=config.seed, dtype=dtype or DTYPES[config.engine.precision], attention="sdpa",
        )  # fmt: skip
        answerer = RunAnswerer(
            model.to(device).eval(), config.llm, config.vision, config.recipe.stages[stage],
            upright=config.data.exif is Exif.upright,
        )  # fmt: skip
    weights = answerer.model.named_parameters()
    if broken := [name for name, weight in weights if not torch.isfinite(weight).all()]:
        raise UserError(  # the model would give empty or random answers, and get a score
            f"run={run.model or run.folder}: {len(broken)} tensors have weights that are not finite, such as "
            f"{broken[0]}; train again, or use an intact model"
        )
    return answerer
