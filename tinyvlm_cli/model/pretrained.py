"""Reads a part of the model from a hub id, a local folder or a state dict, with every weight accounted for."""

import contextlib
import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tinyvlm_cli.config.schema import LLM, Precision, SecondEncoder, Vision
from tinyvlm_cli.errors import UserError

DTYPES = {Precision.bf16: torch.bfloat16, Precision.fp32: torch.float32}


def part_config(spec: LLM | Vision | SecondEncoder, *, where: str, planned: bool) -> PretrainedConfig:
    """Return a part's transformers configuration.

    planned: take `architecture` where the YAML has one, so that no file is needed. where: as in `read_config`.
    """
    if planned and spec.architecture:
        return config_from_architecture(spec.architecture)
    return read_config(spec.path, where=where)


def read_config(path: str, *, where: str) -> PretrainedConfig:
    """Return the transformers configuration at `path`. where: the setting that `path` is from, for an error message."""
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(cannot_read(path, where, error)) from None


def config_from_architecture(architecture: dict[str, Any]) -> PretrainedConfig:
    """Return the transformers configuration that a YAML's `architecture` describes."""
    try:
        return AutoConfig.for_model(**copy.deepcopy(architecture))
    except (ValueError, TypeError):
        kind, version = architecture.get("model_type"), transformers.__version__
        raise UserError(
            f"architecture.model_type: transformers {version} has no '{kind}', and code from the hub is not run; "
            "choose another model"
        ) from None


def load(
    model_class: type[PreTrainedModel], config: PretrainedConfig, *, path: str, state: dict[str, Tensor] | None = None,
    where: str, dtype: torch.dtype, attention: str = "sdpa", four_bit: bool = False,
) -> PreTrainedModel:  # fmt: skip
    """Load a model with the weights at `path`, or with those of `state` when it is given.

    four_bit: keep the linear layers as 4-bit NormalFloat on this process's GPU, ready for low-rank updates.
    Raises UserError when a weight that the model needs is missing: transformers would only warn and use a random one.
    """
    more: dict[str, Any] = {}
    if four_bit:
        check_four_bit(where)
        quantized = BitsAndBytesConfig(  # NF4 with quantised constants, as in the QLoRA paper (arXiv 2305.14314)
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
        more = {"quantization_config": quantized, "device_map": {"": torch.cuda.current_device()}}
    model, missing, _ = load_partly(
        model_class, config, path=path, state=state, where=where, dtype=dtype, attn_implementation=attention, **more
    )
    if missing:
        raise UserError(
            f"{where}: {path} lacks {len(missing)} weights of a {type(model).__name__}, the first is {missing[0]}; "
            "is it a checkpoint of that model?"
        )
    if four_bit:
        from peft import prepare_model_for_kbit_training

        # Norms and head in fp32, everything frozen: low-rank training over few bits is unstable without it.
        model = prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]
            model, use_gradient_checkpointing=False
        )
    return model


def load_partly(
    model_class: type[PreTrainedModel], config: PretrainedConfig, *, path: str | None, state: dict[str, Tensor] | None,
    where: str, **arguments: Any,
) -> tuple[PreTrainedModel, list[str], list[str]]:  # fmt: skip
    """Load a model as `load` does, and return it with its missing and unexpected keys, sorted.

    arguments: further ones of `from_pretrained`.
    """
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    with contextlib.ExitStack() as quiet:
        # No table of unexpected weights (layers that are not needed are left out on purpose) and no progress bar.
        transformers_logging.set_verbosity_error()
        quiet.callback(transformers_logging.set_verbosity, level)
        if bars:
            transformers_logging.disable_progress_bar()
            quiet.callback(transformers_logging.enable_progress_bar)
        try:
            model, info = model_class.from_pretrained(
                path if state is None else None, config=config, state_dict=state, output_loading_info=True, **arguments
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(cannot_read(path, where, error)) from None
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    return model, missing, sorted(info["unexpected_keys"])


def check_four_bit(where: str) -> None:
    """Raise UserError where this machine cannot keep weights in 4 bits."""
    if not torch.cuda.is_available():
        raise UserError(f"{where}: qlora keeps weights in 4 bits, which needs a GPU; this machine has none, use lora")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError(f"{where}: qlora needs the package bitsandbytes; `pip install bitsandbytes`") from None


def cannot_read(path: str | None, where: str, error: Exception) -> str:
    """Return the message for a folder, hub id or state dict that transformers cannot load."""
    reason = str(error).strip().splitlines()[0]
    if path is None:
        return f"{where}: transformers cannot load these weights ({reason}); do they belong to this configuration?"
    if not Path(path).exists():
        return (
            f"{where}: cannot load '{path}': no such folder here, and the hub did not give it ({reason}); "
            f"download it to a folder and set {where} to that"
        )
    return f"{where}: cannot load '{path}' ({reason}); give a folder or hub id that transformers reads"
