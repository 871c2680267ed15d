"""Reading a part of the model from a hub id, a local folder or a state dict, with every weight accounted for."""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tinyvlm_cli.config.schema import Precision
from tinyvlm_cli.errors import UserError

DTYPES = {Precision.bf16: torch.bfloat16, Precision.fp32: torch.float32}


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
    four_bit: bool = False,
) -> PreTrainedModel:
    """A model with the weights at `path`, or with those of `state` when it is given.

    four_bit: its linear layers as 4-bit NormalFloat on this process's GPU, ready for low-rank updates.

    Raises UserError when a weight that the model needs is not there: transformers would only warn and make one up.
    """
    more = _four_bit(where) if four_bit else {}
    model, missing, _ = _from_pretrained(
        model_class, config, path=path, state=state, dtype=dtype, attention=attention, where=where, more=more
    )
    if missing:
        raise UserError(
            f"{where}: {path} lacks {len(missing)} weights of a {type(model).__name__}, the first is {missing[0]}; "
            "is it a checkpoint of that model?"
        )
    return _prepared(model) if four_bit else model


def load_state(
    model_class: type[PreTrainedModel], config: PretrainedConfig, state: dict[str, Tensor], *, where: str
) -> tuple[PreTrainedModel, list[str], list[str]]:
    """A model with the weights `state`, in their type; what of it they lack, and what of them it has no use for."""
    dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    return _from_pretrained(
        model_class, config, path=None, state=state, dtype=dtype, attention="sdpa", where=where, more={}
    )


def _from_pretrained(
    model_class: type[PreTrainedModel],
    config: PretrainedConfig,
    *,
    path: str | None,
    state: dict[str, Tensor] | None,
    dtype: torch.dtype,
    attention: str,
    where: str,
    more: dict[str, Any],
) -> tuple[PreTrainedModel, list[str], list[str]]:
    with _quiet_loading():
        try:
            model, info = model_class.from_pretrained(
                None if state is not None else path,
                config=config,
                state_dict=state,
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                **more,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(cannot_read(path, where, error)) from None
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    return model, missing, sorted(info["unexpected_keys"])


def check_four_bit(where: str) -> None:
    """Raises UserError where this machine cannot keep weights in 4 bits."""
    if not torch.cuda.is_available():
        raise UserError(f"{where}: qlora keeps weights in 4 bits, which needs a GPU; here is none, use lora")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError(f"{where}: qlora needs the package bitsandbytes; `pip install bitsandbytes`") from None


def _four_bit(where: str) -> dict[str, Any]:
    """Arguments of from_pretrained: NF4 with quantised constants, as in QLoRA's paper (arXiv 2305.14314)."""
    check_four_bit(where)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}


def _prepared(model: PreTrainedModel) -> PreTrainedModel:
    """Norms and head in fp32, everything frozen: what low-rank training over few bits needs to be stable."""
    from peft import prepare_model_for_kbit_training

    prepared: PreTrainedModel = prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]
        model, use_gradient_checkpointing=False
    )
    return prepared


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
