"""A model folder that was not trained here, as a run to evaluate beside ours."""

from pathlib import Path
from typing import Any

import yaml

from tinyvlm_cli.data.fingerprint import weights_hash
from tinyvlm_cli.provenance import provenance
from tinyvlm_cli.results import Run, find_runs, read_run, write_text

STAGE = "model"  # what its scores name as their stage
TINYLLAVA = ('"connector_type"', '"mm_projector_type"')  # fields of the configs of its two codes


def named_runs(results_dir: Path, wanted: str) -> list[Run]:
    """The runs that `run=` names: a model folder in Hugging Face form, or what `find_runs` finds."""
    if is_model_folder(Path(wanted)):
        return [run_of_folder(Path(wanted), results_dir)]
    return find_runs(results_dir, wanted)


def run_of_folder(path: Path, results_dir: Path) -> Run:
    """The folder's run record, written when it is new or was moved.

    Its name holds the weights' hash, so that other weights are another run.
    """
    path = path.resolve()
    folder = results_dir / "runs" / f"{path.name}-{weights_hash(str(path), results_dir)[:8]}"
    if (folder / "run.yaml").exists() and read_run(folder).model == str(path):
        return read_run(folder)
    record = {**_record(path), "made_with": provenance()}
    write_text(folder / "run.yaml", yaml.safe_dump(record, sort_keys=False))
    return read_run(folder)


def unrecorded_run(path: Path) -> Run:
    """The same without a folder of its own, for questions whose answers are not kept; nothing is read or written."""
    return Run(folder=path, made_with={}, **_record(path.resolve()))


def is_model_folder(path: Path) -> bool:
    """Whether `path` has the Hugging Face form. TinyLLaVA's checkpoints look like it and need code of their own."""
    config = path / "config.json"
    return config.is_file() and not any(
        word in config.read_text(encoding="utf-8", errors="replace") for word in TINYLLAVA
    )


def _record(path: Path) -> dict[str, Any]:
    choices = dict.fromkeys(("llm", "vision", "connector", "data", "recipe"), "")
    return {"name": path.name, **choices, "seed": 0, "stages": {}, "model": str(path)}
