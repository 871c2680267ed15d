"""From a foreign checkpoint to a run of ours: its parts in a stage folder, and a configuration that names them."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from tinyvlm_cli.checkpoint.parts import save_part
from tinyvlm_cli.checkpoint.tinyllava import layouts as prefixes
from tinyvlm_cli.checkpoint.tinyllava.connectors import ImportedConnector, import_connector
from tinyvlm_cli.checkpoint.tinyllava.layouts import CONNECTOR, VISION, Foreign
from tinyvlm_cli.checkpoint.tinyllava.weights import refuse_leftovers
from tinyvlm_cli.config.build import conf_dir
from tinyvlm_cli.config.schema import LLM, Chat, Precision, Resize, SecondEncoder, Vision
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.connectors import build_connector
from tinyvlm_cli.model.llm import llm_class, read_tokenizer
from tinyvlm_cli.model.pretrained import config_from_architecture, load_partly, read_config
from tinyvlm_cli.model.vision import VisionEncoder, cut_config

# Modules behind an encoder's last layer, which LLaVA's features do not pass through.
BEHIND = ("post_layernorm", "layernorm", "head")
BUFFERS = ("position_ids", "rotary_emb.inv_freq")  # that old versions of transformers saved


@dataclass(frozen=True)
class ImportedParts:
    """What the run's configuration says, and what was assumed for it."""

    llm: LLM
    vision: Vision
    connector: dict[str, Any]
    assumed: tuple[str, ...]  # sentences: values that the checkpoint does not hold


def write_parts(
    foreign: Foreign, folder: Path, place: Path, *, second: Path | None, qformer: Path | None
) -> ImportedParts:
    """Write the parts of `foreign` into `folder`, which is to be renamed to `place`.

    second: config folder of MoF's second encoder. qformer: of the Q-Former's BERT.
    """
    known = (prefixes.LLM, VISION, CONNECTOR)
    refuse_leftovers([name for name in foreign.weights if not name.startswith(known)], str(foreign.folder))
    tokenizer = _write_llm(foreign, folder)
    vision, encoder_dim, assumed = _write_vision(foreign, folder, place, second)
    connector = _write_connector(foreign, folder, encoder_dim, qformer)
    if foreign.connector == "qformer" and qformer is None:
        assumed = (*assumed, "Q-Former: 12 attention heads, as BERT-base's (qformer_dir=DIR gives its config)")
    llm = LLM(
        name=_known("llm", foreign.llm_path, "name"),
        label=_known("llm", foreign.llm_path, "label"),
        path=str(place / "llm"),
        chat=_chat(tokenizer),
        pad_token=tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token,
        max_length=foreign.max_length,
        precision=_precision(foreign),
        architecture=foreign.llm.to_diff_dict(),
    )
    return ImportedParts(llm, vision, connector.node, assumed)


def _write_llm(foreign: Foreign, folder: Path) -> PreTrainedTokenizerFast:
    """Config, tokenizer and weights of the LLM."""
    tokenizer = read_tokenizer(str(foreign.folder), where="path")
    tokenizer.save_pretrained(folder / "llm")
    foreign.llm.save_pretrained(folder / "llm")
    model = _loaded(llm_class(foreign.llm), foreign.llm, foreign.part(prefixes.LLM), "the LLM", may_lack=False)
    save_part(folder, "llm", _once(model))
    return tokenizer


def _write_vision(
    foreign: Foreign, folder: Path, place: Path, second: Path | None
) -> tuple[Vision, int, tuple[str, ...]]:
    """Config and weights of the vision encoder, or of both. Returns its settings, width, and what was assumed."""
    state = foreign.part(VISION)
    is_pair = bool(foreign.second_path)
    pieces = {"vision": _inner(state, "clip.") if is_pair else state}
    configs = {"vision": foreign.vision}
    assumed = []
    if is_pair:
        pieces["vision2"] = _inner(state, "dinov2.")
        refuse_leftovers([name for name in state if not name.startswith(("clip.", "dinov2."))], VISION)
        configs["vision2"], said = _second_config(foreign, second)
        assumed += said
    models = {}
    for name, config in configs.items():
        config.save_pretrained(folder / name)
        cut = cut_config(config, foreign.feature_layer, name)
        models[name] = _loaded(MODEL_MAPPING[type(cut)], cut, pieces[name], name, may_lack=True)
    settings, said = _settings(foreign, place, models)
    encoder = VisionEncoder(models["vision"], settings, models.get("vision2"))
    save_part(folder, "vision", _once(encoder))
    return settings, encoder.dim, (*assumed, *said)


def _write_connector(foreign: Foreign, folder: Path, vision_dim: int, qformer: Path | None) -> ImportedConnector:
    heads = read_config(str(qformer), where="qformer_dir").num_attention_heads if qformer else 12
    kind = foreign.connector
    connector = import_connector(kind, foreign.part(CONNECTOR), num_heads=heads)
    module = build_connector(connector.node, vision_dim=vision_dim, llm_dim=foreign.llm.hidden_size)
    found, needed = set(connector.state), set(module.state_dict())
    refuse_leftovers(found - needed, f"connector '{kind}'")
    refuse_lacking(needed - found, f"connector '{kind}'")
    module.load_state_dict(connector.state)
    save_part(folder, "connector", connector.state)
    return connector


def _loaded(
    kind: type[PreTrainedModel], config: PretrainedConfig, state: dict[str, Tensor], what: str, *, may_lack: bool
) -> PreTrainedModel:
    """The model with `state`, every tensor of which it takes, or is known not to need.

    may_lack: what stands behind an encoder's last layer.
    """
    dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    model, missing, unused = load_partly(
        kind, config, path=None, state=state, dtype=dtype, attention="sdpa", where=what
    )
    refuse_leftovers([name for name in unused if not _is_needless(name, config.num_hidden_layers)], what)
    refuse_lacking({name for name in missing if not (may_lack and _is_behind(name))}, what)
    return model


def _is_needless(name: str, depth: int) -> bool:
    """A buffer, a layer behind the last that is used, or what follows it."""
    layer = re.search(r"\.layers?\.(\d+)\.", name)
    return name.endswith(BUFFERS) or _is_behind(name) or (layer is not None and int(layer[1]) >= depth)


def _is_behind(name: str) -> bool:
    return any(f".{part}." in f".{name}" for part in BEHIND)


def refuse_lacking(names: set[str], what: str) -> None:
    """Raises UserError when tensors are needed that are not there."""
    if names:
        raise UserError(
            f"{what}: {len(names)} weights are not there, the first is {min(names)}; get the checkpoint again"
        )


def _settings(foreign: Foreign, place: Path, models: dict[str, PreTrainedModel]) -> tuple[Vision, list[str]]:
    """The encoder's settings. Its preprocessing is not in a checkpoint: it is that of the published encoder."""
    shipped = _shipped_preprocessing(foreign.vision.model_type)
    unused = {name: [part for part in BEHIND if hasattr(model, part)] for name, model in models.items()}
    second = SecondEncoder(path=str(place / "vision2"), unused=unused["vision2"]) if "vision2" in models else None
    own = foreign.folder / "preprocessor_config.json"
    said = [] if own.is_file() else [f"images: {shipped['resize']}, mean {shipped['mean']}, std {shipped['std']}"]
    preprocessing = _own_preprocessing(own) if own.is_file() else shipped
    return Vision(
        name=_known("vision", foreign.vision_path, "name"),
        label=_known("vision", foreign.vision_path, "label"),
        path=str(place / "vision"),
        feature_layer=foreign.feature_layer,
        tokens=foreign.tokens,
        unused=unused["vision"],
        image_size=foreign.vision.image_size,
        resize=Resize(preprocessing["resize"]),
        mean=preprocessing["mean"],
        std=preprocessing["std"],
        partial_from_layer=shipped["partial_from_layer"],
        architecture=foreign.vision.to_diff_dict(),
        second=second,
    ), said


def _own_preprocessing(path: Path) -> dict[str, Any]:
    record = json.loads(path.read_text(encoding="utf-8"))
    resize = "crop" if record.get("do_center_crop") else "stretch"
    return {"resize": resize, "mean": record["image_mean"], "std": record["image_std"]}


def _shipped_preprocessing(model_type: str) -> dict[str, Any]:
    """The settings of the encoder of that type that comes with tinyvlm."""
    for node in _shipped("vision"):
        if node["architecture"]["model_type"] == model_type and "second" not in node:
            return node
    raise UserError(f"vision_config.model_type: no conf/vision/*.yaml is of the type '{model_type}'; add one")


def _second_config(foreign: Foreign, second: Path | None) -> tuple[PretrainedConfig, list[str]]:
    """MoF's second encoder, which a checkpoint holds the weights of and not the config."""
    if second is not None:
        return read_config(str(second), where="second_vision_dir"), []
    if Path(foreign.second_path).is_dir():
        return read_config(foreign.second_path, where="second_vision_dir"), []
    published = next(node["second"] for node in _shipped("vision") if "second" in node)
    said = f"second encoder: the config of {published['path']} (second_vision_dir=DIR gives another)"
    return config_from_architecture(published["architecture"]), [said]


def _known(group: str, path: str, field: str) -> str:
    """The name or label that tinyvlm has for a published part, else the last word of its path."""
    for node in _shipped(group):
        if path and str(node.get("path")).lower() == path.lower():
            return str(node[field])
    return Path(path).name or "imported"


def _shipped(group: str) -> list[dict[str, Any]]:
    """The options of a group as they stand in their files."""
    paths = sorted((conf_dir() / group).glob("*.yaml"))
    nodes: list[Any] = [OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(p), {"name": p.stem})) for p in paths]
    return nodes


def _chat(tokenizer: PreTrainedTokenizerFast) -> Chat:
    """All of TinyLLaVA's formats but for pretraining are one, with the tokenizer's own end token."""
    node = next(node for node in _shipped("llm/chat"))
    return Chat(system=node["system"], user=node["user"], assistant=node["assistant"], end=tokenizer.eos_token)


def _precision(foreign: Foreign) -> Precision:
    """bf16 weights stay so. fp16 is no precision of ours, and fp32 holds it exactly."""
    dtypes = {tensor.dtype for tensor in foreign.part(prefixes.LLM).values()}
    return Precision.bf16 if dtypes == {torch.bfloat16} else Precision.fp32


def _inner(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _once(module: nn.Module) -> dict[str, Tensor]:
    """The module's tensors; one with two names (a head tied to the embeddings) is given once."""
    once = {id(t): (name, t) for name, t in reversed(module.state_dict(keep_vars=True).items())}
    return {name: tensor.detach() for name, tensor in once.values()}
