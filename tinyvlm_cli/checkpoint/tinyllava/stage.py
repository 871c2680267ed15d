"""Converts a TinyLLaVA checkpoint to parts in a stage folder, and settings that refer to them."""

import logging
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from tinyvlm_cli.checkpoint.parts import save_part
from tinyvlm_cli.checkpoint.tinyllava.connectors import import_connector
from tinyvlm_cli.checkpoint.tinyllava.layouts import CONNECTOR, VISION, Foreign, check_names, read_json
from tinyvlm_cli.checkpoint.tinyllava.layouts import LLM as LLM_PREFIX
from tinyvlm_cli.checkpoint.tinyllava.weights import check_depth, check_shapes
from tinyvlm_cli.config.build import conf_dir
from tinyvlm_cli.config.schema import LLM, Chat, Precision, Resize, SecondEncoder, Vision
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.connectors import build_connector
from tinyvlm_cli.model.llm import llm_class, read_tokenizer
from tinyvlm_cli.model.pretrained import config_from_architecture, load_partly, read_config
from tinyvlm_cli.model.vision import VisionEncoder, cut_config

log = logging.getLogger(__name__)

# Modules after an encoder's last layer, which LLaVA's features bypass.
AFTER_LAYERS = ("post_layernorm", "layernorm", "head")
BUFFERS = ("position_ids", "rotary_emb.inv_freq")  # saved by old versions of transformers


@dataclass(frozen=True)
class ImportedParts:
    """The settings of an imported model, and the assumptions behind them."""

    llm: LLM
    vision: Vision
    connector: dict[str, Any]
    assumed: tuple[str, ...]  # messages about values that the checkpoint does not contain


def import_parts(
    foreign: Foreign, folder: Path, place: Path, *, second: Path | None, qformer: Path | None
) -> ImportedParts:
    """Write the parts of `foreign` to `folder`, which must be renamed to `place` afterwards.

    second: folder with the config of MoF's second encoder. qformer: folder with the config of the Q-Former's BERT.

    Raises UserError if a tensor is missing, unexpected or has the wrong shape.
    """
    known = (LLM_PREFIX, VISION, CONNECTOR)
    check_names([name for name in foreign.weights if not name.startswith(known)], (), str(foreign.folder))
    tokenizer = _tokenizer(foreign)
    tokenizer.save_pretrained(folder / "llm")
    foreign.llm.save_pretrained(folder / "llm")
    state = foreign.part(LLM_PREFIX)
    save_part(folder, "llm", _unshared(_loaded(llm_class(foreign.llm), foreign.llm, state, "the LLM")))

    vision, encoder, assumed = _import_vision(foreign, folder, place, second)
    save_part(folder, "vision", _unshared(encoder))

    if foreign.connector == "qformer" and qformer is None:
        assumed.append("Q-Former: 12 attention heads, as in BERT-base (set qformer_dir=DIR to use another config)")
    heads = read_config(str(qformer), where="qformer_dir").num_attention_heads if qformer else 12
    node, found = import_connector(foreign.connector, foreign.part(CONNECTOR), num_heads=heads)
    module = build_connector(node, vision_dim=encoder.dim, llm_dim=foreign.llm.hidden_size)
    needed, where = module.state_dict(), f"connector '{foreign.connector}'"
    check_names(set(found) - set(needed), set(needed) - set(found), where)
    for name, tensor in needed.items():
        if found[name].shape != tensor.shape:
            raise UserError(
                f"{where}: {name} has shape {list(found[name].shape)}, but this vision encoder and LLM require "
                f"{list(tensor.shape)}; use a checkpoint of these models"
            )
    save_part(folder, "connector", found)

    (chat,) = _shipped("llm/chat")  # used by all TinyLLaVA models, with the tokenizer's own end token
    # bf16 weights stay bf16. fp16 is not supported, and fp32 represents its values exactly.
    is_bf16 = {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    name, label = _published("llm", foreign.llm_path)
    llm = LLM(
        # A new name, because measurements under the published name do not apply to these weights.
        name=f"{name}+imported",
        label=label,
        path=str(place / "llm"),
        chat=Chat(system=chat["system"], user=chat["user"], assistant=chat["assistant"], end=tokenizer.eos_token),
        pad_token=tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token,
        max_length=foreign.max_length,
        precision=Precision.bf16 if is_bf16 else Precision.fp32,
        architecture=foreign.llm.to_diff_dict(),
    )
    return ImportedParts(llm, vision, node, tuple(assumed))


def _tokenizer(foreign: Foreign) -> PreTrainedTokenizerFast:
    """Return the tokenizer without special tokens that only its config names and that have no embedding."""
    path, size = str(foreign.folder), foreign.llm.vocab_size
    tokenizer = read_tokenizer(path, where="path")
    if tokenizer.eos_token is None:
        raise UserError(f"{path}: the tokenizer has no eos_token; add tokenizer_config.json from the checkpoint")
    if any(number >= size for number in tokenizer.get_vocab().values()):
        every, tokenizer = set(tokenizer.get_vocab()), read_tokenizer(path, where="path", extra_special_tokens=[])
        if (most := max(tokenizer.get_vocab().values())) >= size:
            text = f"the tokenizer has token ids up to {most:,}, but the model has only {size:,} embeddings"
            raise UserError(f"{path}: {text}; use the tokenizer of this model")
        left = ", ".join(sorted(every - set(tokenizer.get_vocab())))
        log.warning("%s: extra_special_tokens without an embedding are read as ordinary text: %s", path, left)
    return tokenizer


def _import_vision(
    foreign: Foreign, folder: Path, place: Path, second: Path | None
) -> tuple[Vision, VisionEncoder, list[str]]:
    """Write the config of each vision encoder. Return the settings, the encoder, and the assumptions."""
    states, configs, assumed = {"vision": foreign.part(VISION)}, {"vision": foreign.vision}, []
    if foreign.second_path:  # a checkpoint contains the second encoder's weights but not its config
        both = states["vision"]
        check_names([name for name in both if not name.startswith(("clip.", "dinov2."))], (), VISION)
        states = {"vision": foreign.part(f"{VISION}clip."), "vision2": foreign.part(f"{VISION}dinov2.")}
        if second is None and Path(foreign.second_path).is_dir():
            second = Path(foreign.second_path)
        if second is not None:
            configs["vision2"] = read_config(str(second), where="second_vision_dir")
        else:
            published = next(node["second"] for node in _shipped("vision") if "second" in node)
            configs["vision2"] = config_from_architecture(published["architecture"])
            assumed.append(f"second encoder: config of {published['path']} (set second_vision_dir=DIR to change it)")
    models = {}
    for name, config in configs.items():
        config.save_pretrained(folder / name)
        cut = cut_config(config, foreign.feature_layer, name)
        models[name] = _loaded(MODEL_MAPPING[type(cut)], cut, states[name], name, is_encoder=True)

    # Factory checkpoints do not contain preprocessing settings, so those of the published encoder are used.
    kind = foreign.vision.model_type
    alike = [node for node in _shipped("vision") if node["architecture"]["model_type"] == kind and "second" not in node]
    if not alike:
        raise UserError(f"vision_config.model_type: no conf/vision/*.yaml has model type '{kind}'; add one")
    shipped = alike[0]
    preprocessing, own = shipped, foreign.folder / "preprocessor_config.json"
    if own.is_file():
        record = read_json(own)
        resize = "crop" if record.get("do_center_crop") else "stretch"
        preprocessing = {"resize": resize, "mean": record.get("image_mean"), "std": record.get("image_std")}
        if not preprocessing["mean"] or not preprocessing["std"]:
            raise UserError(f"{own}: image_mean or image_std is missing; add it, or delete the file to use defaults")
    else:
        assumed.append(f"images: resize={shipped['resize']}, mean={shipped['mean']}, std={shipped['std']}")
    unused = {name: [part for part in AFTER_LAYERS if hasattr(model, part)] for name, model in models.items()}
    is_pair = "vision2" in models
    name, label = _published("vision", foreign.vision_path)
    settings = Vision(
        name=f"{name}+imported", label=label, path=str(place / "vision"), architecture=foreign.vision.to_diff_dict(),
        feature_layer=foreign.feature_layer, tokens=foreign.tokens, unused=unused["vision"],
        image_size=foreign.vision.image_size, resize=Resize(preprocessing["resize"]),
        mean=preprocessing["mean"], std=preprocessing["std"], partial_from_layer=shipped["partial_from_layer"],
        second=SecondEncoder(path=str(place / "vision2"), unused=unused["vision2"]) if is_pair else None,
    )  # fmt: skip
    return settings, VisionEncoder(models["vision"], settings, models.get("vision2")), assumed


def _loaded(
    kind: type[PreTrainedModel], config: PretrainedConfig, state: dict[str, Tensor], where: str, *,
    is_encoder: bool = False,
) -> PreTrainedModel:  # fmt: skip
    """Return the model with the weights in `state`. Raises UserError for missing or unexpected tensors.

    is_encoder: tensors after the last layer may be missing.
    """
    if not state:
        raise UserError(f"{where}: the checkpoint contains no weights for it; use a complete checkpoint")
    check_depth(state, config.num_hidden_layers, where)
    with torch.device("meta"):
        check_shapes(kind._from_config(config).state_dict(), state, where)
    dtype = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), torch.float32)
    model, missing, unexpected = load_partly(kind, config, path=None, state=state, where=where, dtype=dtype)
    needless = set()  # buffers, layers after the feature layer, and modules after the layers
    for name in unexpected:
        layer = re.search(r"\.layers?\.(\d{1,9})\.", name)
        is_cut_off = layer is not None and int(layer[1]) >= config.num_hidden_layers
        if name.endswith(BUFFERS) or _is_after_layers(name) or is_cut_off:
            needless.add(name)
    lacking = [name for name in missing if not (is_encoder and _is_after_layers(name))]
    check_names(set(unexpected) - needless, lacking, where)
    return model


def _is_after_layers(name: str) -> bool:
    """Return whether the tensor `name` belongs to a module after an encoder's last layer."""
    return any(f".{part}." in f".{name}" for part in AFTER_LAYERS)


def _published(group: str, path: str) -> tuple[str, str]:
    """Return the name and label of a published part in conf/, or the last component of its path for both."""
    alike = [node for node in _shipped(group) if path and str(node.get("path")).lower() == path.lower()]
    last = Path(path).name or "imported"
    return (alike[0]["name"], alike[0]["label"]) if alike else (last, last)


@cache
def _shipped(group: str) -> list[dict[str, Any]]:
    """Return the members of a configuration group as written in their YAML files, each with its name."""
    paths = sorted((conf_dir() / group).glob("*.yaml"))
    nodes: list[Any] = [OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(p), {"name": p.stem})) for p in paths]
    return nodes


def _unshared(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's tensors. A tensor with two names (a head tied to the embeddings) is returned only once."""
    once = {id(t): (name, t) for name, t in reversed(module.state_dict(keep_vars=True).items())}
    return {name: tensor.detach() for name, tensor in once.values()}
