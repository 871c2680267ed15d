"""Load a model that answers questions: a run of `tinyvlm train`, or a model folder in Hugging Face format."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from tinyvlm_cli.checkpoint.parts import build_model
from tinyvlm_cli.checkpoint.tokenizers import compare_tokenizer
from tinyvlm_cli.config.datasets import Exif
from tinyvlm_cli.config.saved import from_yaml
from tinyvlm_cli.config.schema import Train
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.folder_answerer import FolderAnswerer
from tinyvlm_cli.evaluate.run_answerer import RunAnswerer
from tinyvlm_cli.model.pretrained import DTYPES
from tinyvlm_cli.model.vlm import VLM
from tinyvlm_cli.results.records import Run

log = logging.getLogger(__name__)

STAGED = 2**26  # bytes that are copied to the GPU at once


def load_answerer(
    run: Run, stage: str, stage_dirs: Sequence[Path], *,
    device: torch.device | None = None, dtype: torch.dtype | None = None,
) -> RunAnswerer | FolderAnswerer:  # fmt: skip
    """Load the model that a run's stages (first to last) trained, or the one in a run's model folder.

    device: None for this rank's GPU, or the CPU if there is no GPU. dtype: None for that of the run or folder.
    Raises UserError if a weight is not finite, on a GPU once the weights are used.
    """
    answerer: RunAnswerer | FolderAnswerer
    if run.model is not None:
        answerer = FolderAnswerer(Path(run.model), device or _rank_device(), dtype)
    else:
        config = from_yaml(Train, run.folder / "config.yaml")
        model = build_model(
            config.llm, config.vision, config.connector, stage_dirs,
            seed=config.seed, dtype=dtype or DTYPES[config.engine.precision], attention="sdpa",
        )  # fmt: skip
        device = device or _rank_device()  # not earlier, because CUDA may still be starting
        arrival = moved(model.eval(), device, str(run.folder)) if device.type == "cuda" else None
        answerer = RunAnswerer(
            model.to(device), config.llm, config.vision, config.recipe.stages[stage],
            upright=config.data.exif is Exif.upright, arrival=arrival,
        )  # fmt: skip
        for warning in compare_tokenizer(config.llm, stage_dirs, answerer.tokenizer)[1]:
            log.warning("%s", warning)
        if arrival is not None:
            return answerer
    _check_finite(dict(answerer.model.named_parameters()), str(run.model or run.folder))
    return answerer


def _rank_device() -> torch.device:
    """Return this rank's GPU, which becomes the current one, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
    return torch.device("cuda", torch.cuda.current_device())


def moved(model: VLM, device: torch.device, name: str) -> Future[None]:
    """Allocate a model's weights on a GPU, and copy them in a thread while the layers are compiled.

    The future is done when they are there. It raises UserError if a weight is not finite. name: of the run.
    """
    weights: dict[str, Tensor] = dict(model.named_parameters())
    sources = [weight.detach() for weight in weights.values()]
    for weight in weights.values():
        weight.data = torch.empty_like(weight, device=device, memory_format=torch.contiguous_format)
    targets = [weight.detach() for weight in weights.values()]
    batches = list(_batches(*([one.flatten().view(torch.uint8) for one in side] for side in (targets, sources))))

    def copy() -> None:
        # Each call makes the thread that compiles wait for Python's global lock, so there are only a few per batch.
        on_gpu = device.type == "cuda"
        stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        # While memory that is not pinned is copied, other threads could not load kernels.
        pinned = torch.empty(STAGED, dtype=torch.uint8, pin_memory=on_gpu)
        with torch.no_grad(), torch.cuda.stream(stream):
            for to, values in batches:
                sizes = [len(one) for one in values]
                staged = pinned[: sum(sizes)].split_with_sizes(sizes)
                torch._foreach_copy_(staged, values)
                torch._foreach_copy_(to, staged, non_blocking=True)
                if stream is not None:
                    stream.synchronize()
            _check_finite(weights, name)

    pool = ThreadPoolExecutor(1)
    arrival = pool.submit(copy)
    pool.shutdown(wait=False)
    return arrival


def _batches(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Divide a copy of byte tensors into batches of STAGED bytes. Yields the parts of targets and of sources."""
    to: list[Tensor] = []
    values: list[Tensor] = []
    room = STAGED
    for target, source in zip(targets, sources, strict=True):
        at = 0
        while at < len(source):
            end = min(len(source), at + room)
            to.append(target[at:end])
            values.append(source[at:end])
            room -= end - at
            at = end
            if not room:
                yield to, values
                to, values, room = [], [], STAGED
    if to:
        yield to, values


def _check_finite(weights: Mapping[str, Tensor], name: str) -> None:
    """Raise UserError if a weight is not finite: the model would give empty or random answers, and get a score."""
    checked = {key: one for key, one in weights.items() if one.is_floating_point() and one.itemsize > 1}  # not FP8
    if torch.isfinite(torch.stack(torch._foreach_norm(list(checked.values()), 1))).all():  # in few calls
        return
    is_finite = torch.stack([torch.isfinite(weight).all() for weight in checked.values()]).tolist()
    if broken := [one for one, is_whole in zip(checked, is_finite, strict=True) if not is_whole]:  # or a sum overflowed
        raise UserError(
            f"run={name}: {len(broken)} tensors have weights that are not finite, such as {broken[0]}; train again, "
            "or use an intact model"
        )
