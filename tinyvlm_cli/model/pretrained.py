"""Reading a part of the model from a hub id, a local folder or a state dict, with every weight accounted for."""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tinyvlm_cli.errors import UserError


def read_config(path: str, *, where: str) -> PretrainedConfig:
    """The transformers configuration at `path`. `where` names the setting for an error message."""
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(cannot_read(path, where, error)) from None


def config_from_architecture(architecture: dict[str, Any]) -> PretrainedConfig:
    """The transformers configuration that a YAML's `architecture` describes."""
    try:
        return AutoConfig.for_model(**copy.deepcopy(architecture))
    except ValueError:
        kind, version = architecture.get("model_type"), transformers.__version__
        raise UserError(
            f"architecture.model_type: transformers {version} has no '{kind}', and code from the hub is not run; "
            "choose another model"
        ) from None


def load(
    model_class: type[PreTrainedModel],
    config: PretrainedConfig,
    *,
    path: str | None,
    state: dict[str, Tensor] | None,
    dtype: torch.dtype,
    attention: str,
    where: str,
) -> PreTrainedModel:
    """A model with the weights at `path`, or with those of `state` when it is given.

    Raises UserError when a weight that the model needs is not there: transformers would only warn and make one up.
    """
    with _quiet_loading():
        try:
            model, info = model_class.from_pretrained(
                None if state is not None else path,
                config=config,
                state_dict=state,
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(cannot_read(path, where, error)) from None
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise UserError(
            f"{where}: {path} lacks {len(missing)} weights of a {type(model).__name__}, the first is {missing[0]}; "
            "is it a checkpoint of that model?"
        )
    return model


def cannot_read(path: str | None, where: str, error: Exception) -> str:
    """The sentence for a folder or hub id that transformers cannot load."""
    reason = str(error).strip().splitlines()[0]
    if path is not None and not Path(path).exists():
        return (
            f"{where}: cannot load '{path}': no such folder here, and the hub did not give it ({reason}); "
            f"download it to a folder and set {where} to that"
        )
    return f"{where}: cannot load '{path}' ({reason}); give a folder or hub id that transformers reads"


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """No table of unexpected weights (layers that are not needed are left out on purpose) and no progress bar."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
