"""Loads a part of the model from a hub id, a folder or a state dict, and checks that no weight is missing."""

import contextlib
import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tinyvlm_cli.config.schema import LLM, Precision, SecondEncoder, Vision
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.costs import CPU
from tinyvlm_cli.untrusted import check_model_folder

# Errors of transformers for damaged files: those of JSON files with other types are Python's own.
UNREADABLE = (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, SafetensorError)
# The largest models have some hundred layers and a hidden size of some ten thousand.
MAX_SIZES = {
    "num_hidden_layers": 1_000, "hidden_size": 100_000, "intermediate_size": 1_000_000, "num_attention_heads": 10_000,
    "num_key_value_heads": 10_000, "vocab_size": 10_000_000, "image_size": 10_000, "patch_size": 10_000,
}  # fmt: skip
DTYPES = {Precision.bf16: torch.bfloat16, Precision.fp32: torch.float32}


def device_name(device: torch.device) -> str:
    """Return the GPU type, or CPU, as recorded with costs and measurements."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else CPU


def part_config(spec: LLM | Vision | SecondEncoder, *, where: str, planned: bool) -> PretrainedConfig:
    """Return the transformers configuration of a part.

    planned: use `spec.architecture` if it is set, so that no file is needed. where: see `read_config`.
    """
    if planned and spec.architecture:
        return config_from_architecture(spec.architecture)
    return read_config(spec.path, where=where)


def read_config(path: str, *, where: str) -> PretrainedConfig:
    """Return the transformers configuration at `path`. where: the setting that contains `path`, for error messages."""
    if Path(path).is_dir():
        check_model_folder(Path(path))
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except UNREADABLE as error:
        raise UserError(cannot_read(path, where, error)) from None
    check_size(config, where)
    return config


def config_from_architecture(architecture: dict[str, Any]) -> PretrainedConfig:
    """Return the transformers configuration for the `architecture` setting of a part."""
    try:
        config: PretrainedConfig = AutoConfig.for_model(**copy.deepcopy(architecture))
    except Exception as error:  # transformers raises many types for invalid values
        if architecture.get("model_type") in tuple(CONFIG_MAPPING.keys()):
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"architecture: {reason}; use the values of the model's config.json") from None
        kind, version = architecture.get("model_type"), transformers.__version__
        raise UserError(
            f"architecture.model_type: transformers {version} does not support '{kind}', and code from the hub is "
            "never run; choose another model"
        ) from None
    check_size(config, "architecture")
    return config


def check_size(config: PretrainedConfig, where: str) -> None:
    """Raise UserError for sizes of a model that no machine could build, such as a million layers."""
    for part in (config, *(getattr(config, name, None) for name in ("text_config", "vision_config"))):
        for name, most in MAX_SIZES.items():
            size = getattr(part, name, None)
            if size is not None and (type(size) is not int or not 1 <= size <= most):
                raise UserError(f"{where}: {name} is {size!a:.40}; expected an integer from 1 to {most:,}")


def load(
    model_class: type[PreTrainedModel], config: PretrainedConfig, *, path: str, state: dict[str, Tensor] | None = None,
    where: str, dtype: torch.dtype, attention: str = "sdpa", four_bit: bool = False,
) -> PreTrainedModel:  # fmt: skip
    """Load a model with the weights at `path`, or with `state` if it is given.

    four_bit: store the linear layers in 4-bit NormalFloat on this process's GPU, for training low-rank adapters.
    Raises UserError if a weight is missing: transformers would only warn and initialise it randomly.
    """
    more: dict[str, Any] = {}
    if four_bit:
        check_four_bit(where)
        quantized = BitsAndBytesConfig(  # NF4 with double quantisation, as in the QLoRA paper (arXiv 2305.14314)
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
        more = {"quantization_config": quantized, "device_map": {"": torch.cuda.current_device()}}
    model, missing, _ = load_partly(
        model_class, config, path=path, state=state, where=where, dtype=dtype, attn_implementation=attention, **more
    )
    if missing:
        raise UserError(
            f"{where}: {len(missing)} weights of {type(model).__name__} are missing from {path}, starting with "
            f"{missing[0]}; use a complete checkpoint of this model"
        )
    if four_bit:
        from peft import prepare_model_for_kbit_training

        # Casts the norms and the head to fp32 and freezes everything. Otherwise, 4-bit training is unstable.
        model = prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]
            model, use_gradient_checkpointing=False
        )
    return model


def load_partly(
    model_class: type[PreTrainedModel], config: PretrainedConfig, *, path: str | None, state: dict[str, Tensor] | None,
    where: str, **arguments: Any,
) -> tuple[PreTrainedModel, list[str], list[str]]:  # fmt: skip
    """Load a model as `load` does, but return it with its sorted missing and unexpected keys instead of raising.

    arguments: passed to `from_pretrained`.
    """
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    with contextlib.ExitStack() as quiet:
        # Hide the progress bar and the table of unexpected weights, which belong to layers that are not used.
        transformers_logging.set_verbosity_error()
        quiet.callback(transformers_logging.set_verbosity, level)
        if bars:
            transformers_logging.disable_progress_bar()
            quiet.callback(transformers_logging.enable_progress_bar)
        try:
            model, info = model_class.from_pretrained(
                path if state is None else None, config=config, state_dict=state, output_loading_info=True, **arguments
            )
        except UNREADABLE as error:
            raise UserError(cannot_read(path, where, error)) from None
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    return model, missing, sorted(info["unexpected_keys"])


def load_whole(module: nn.Module, state: dict[str, Tensor], *, where: str) -> None:
    """Load all weights of a module. Raises UserError if one is missing, unexpected or has the wrong shape."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n", 1)[-1].split())[:200]
        raise UserError(f"{where}: the saved weights do not fit ({reason}); train the stage again") from None


def check_four_bit(where: str) -> None:
    """Raise UserError if 4-bit weights are not supported on this machine."""
    if not torch.cuda.is_available():
        raise UserError(f"{where}: qlora requires a GPU, and none is available; use lora")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError(f"{where}: qlora requires bitsandbytes; run `pip install bitsandbytes`") from None


def cannot_read(path: str | None, where: str, error: Exception) -> str:
    """Return the error message for a folder, hub id or state dict that transformers cannot load."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if path is None:
        return f"{where}: the weights do not fit the configuration ({reason}); use a complete checkpoint of this model"
    if not Path(path).exists():
        return (
            f"{where}: '{path}' is not a local folder and cannot be loaded from the hub ({reason}); "
            f"download it with `tinyvlm data get`, or set {where} to its folder"
        )
    return f"{where}: cannot load '{path}' ({reason}); use a folder or hub id that transformers supports"
