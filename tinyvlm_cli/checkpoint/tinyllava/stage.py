"""From a foreign checkpoint to a run of ours: its parts in a stage folder, and a configuration that names them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PretrainedConfig, PreTrainedModel

from tinyvlm_cli.checkpoint.parts import save_part
from tinyvlm_cli.checkpoint.tinyllava.connectors import import_connector
from tinyvlm_cli.checkpoint.tinyllava.layouts import CONNECTOR, VISION, Foreign, check_names, read_json
from tinyvlm_cli.checkpoint.tinyllava.layouts import LLM as LLM_PREFIX
from tinyvlm_cli.config.build import conf_dir
from tinyvlm_cli.config.schema import LLM, Chat, Precision, Resize, SecondEncoder, Vision
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.connectors import build_connector
from tinyvlm_cli.model.llm import llm_class, read_tokenizer
from tinyvlm_cli.model.pretrained import config_from_architecture, load_partly, read_config
from tinyvlm_cli.model.vision import VisionEncoder, cut_config

# Modules after an encoder's last layer, which LLaVA's features do not pass through.
AFTER_LAYERS = ("post_layernorm", "layernorm", "head")
BUFFERS = ("position_ids", "rotary_emb.inv_freq")  # that old versions of transformers saved


@dataclass(frozen=True)
class ImportedParts:
    """The run's configuration, and what was assumed for it."""

    llm: LLM
    vision: Vision
    connector: dict[str, Any]
    assumed: tuple[str, ...]  # sentences about values that the checkpoint does not hold


def import_parts(
    foreign: Foreign, folder: Path, place: Path, *, second: Path | None, qformer: Path | None
) -> ImportedParts:
    """Write the parts of `foreign` into `folder`, which is to be renamed to `place`.

    second: folder with the config of MoF's second encoder. qformer: with that of the Q-Former's BERT.

    Raises UserError when a tensor is missing, has another shape, or belongs to nothing.
    """
    known = (LLM_PREFIX, VISION, CONNECTOR)
    check_names([name for name in foreign.weights if not name.startswith(known)], (), str(foreign.folder))
    tokenizer = read_tokenizer(str(foreign.folder), where="path")
    tokenizer.save_pretrained(folder / "llm")
    foreign.llm.save_pretrained(folder / "llm")
    state = foreign.part(LLM_PREFIX)
    save_part(folder, "llm", _unshared(_loaded(llm_class(foreign.llm), foreign.llm, state, "the LLM")))

    vision, encoder, assumed = _import_vision(foreign, folder, place, second)
    save_part(folder, "vision", _unshared(encoder))

    if foreign.connector == "qformer" and qformer is None:
        assumed.append("Q-Former: 12 attention heads, as BERT-base's (qformer_dir=DIR gives its config)")
    heads = read_config(str(qformer), where="qformer_dir").num_attention_heads if qformer else 12
    node, found = import_connector(foreign.connector, foreign.part(CONNECTOR), num_heads=heads)
    module = build_connector(node, vision_dim=encoder.dim, llm_dim=foreign.llm.hidden_size)
    needed, where = module.state_dict(), f"connector '{foreign.connector}'"
    check_names(set(found) - set(needed), set(needed) - set(found), where)
    for name, tensor in needed.items():
        if found[name].shape != tensor.shape:
            raise UserError(
                f"{where}: {name} has the shape {list(found[name].shape)}, and {list(tensor.shape)} is needed; "
                "is it a checkpoint of this vision encoder and this LLM?"
            )
    save_part(folder, "connector", found)

    (chat,) = _shipped("llm/chat")  # of all TinyLLaVA's models, each with its tokenizer's own end token
    # bf16 weights stay so. fp16 is not a precision of ours, and fp32 holds it exactly.
    is_bf16 = {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    name, label = _published("llm", foreign.llm_path)
    llm = LLM(
        # Not the published weights, so neither their name nor the measurements under it.
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


def _import_vision(
    foreign: Foreign, folder: Path, place: Path, second: Path | None
) -> tuple[Vision, VisionEncoder, list[str]]:
    """Write the config of the vision encoder, or of both; return its settings, the encoder, and what was assumed."""
    states, configs, assumed = {"vision": foreign.part(VISION)}, {"vision": foreign.vision}, []
    if foreign.second_path:  # a checkpoint holds the second encoder's weights but not its config
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
            assumed.append(f"second encoder: the config of {published['path']} (second_vision_dir=DIR gives another)")
    models = {}
    for name, config in configs.items():
        config.save_pretrained(folder / name)
        cut = cut_config(config, foreign.feature_layer, name)
        models[name] = _loaded(MODEL_MAPPING[type(cut)], cut, states[name], name, is_encoder=True)

    # Preprocessing is not in a Factory checkpoint: it is that of the published encoder.
    kind = foreign.vision.model_type
    alike = [node for node in _shipped("vision") if node["architecture"]["model_type"] == kind and "second" not in node]
    if not alike:
        raise UserError(f"vision_config.model_type: no conf/vision/*.yaml is of the type '{kind}'; add one")
    shipped = alike[0]
    preprocessing, own = shipped, foreign.folder / "preprocessor_config.json"
    if own.is_file():
        record = read_json(own)
        resize = "crop" if record.get("do_center_crop") else "stretch"
        preprocessing = {"resize": resize, "mean": record.get("image_mean"), "std": record.get("image_std")}
        if not preprocessing["mean"] or not preprocessing["std"]:
            raise UserError(f"{own}: image_mean or image_std is missing; get the file again, or delete it")
    else:
        assumed.append(f"images: {shipped['resize']}, mean {shipped['mean']}, std {shipped['std']}")
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
    """Return the model with `state`, all of whose tensors it takes, or is known not to need.

    is_encoder: tensors after its last layer may be missing.
    """
    if not state:
        raise UserError(f"{where}: the checkpoint has no weights of it; get the checkpoint again")
    dtype = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), torch.float32)
    model, missing, unexpected = load_partly(kind, config, path=None, state=state, where=where, dtype=dtype)
    needless = set()  # buffers, layers after the last that is used, and what follows them
    for name in unexpected:
        layer = re.search(r"\.layers?\.(\d+)\.", name)
        is_cut_off = layer is not None and int(layer[1]) >= config.num_hidden_layers
        if name.endswith(BUFFERS) or _is_after_layers(name) or is_cut_off:
            needless.add(name)
    lacking = [name for name in missing if not (is_encoder and _is_after_layers(name))]
    check_names(set(unexpected) - needless, lacking, where)
    return model


def _is_after_layers(name: str) -> bool:
    """Return whether a tensor of that name belongs to a module after an encoder's last layer."""
    return any(f".{part}." in f".{name}" for part in AFTER_LAYERS)


def _published(group: str, path: str) -> tuple[str, str]:
    """Return the name and label that tinyvlm has for a published part, otherwise the last word of its path."""
    alike = [node for node in _shipped(group) if path and str(node.get("path")).lower() == path.lower()]
    word = Path(path).name or "imported"
    return (alike[0]["name"], alike[0]["label"]) if alike else (word, word)


def _shipped(group: str) -> list[dict[str, Any]]:
    """Return the members of a configuration group as their files have them, each with its name."""
    paths = sorted((conf_dir() / group).glob("*.yaml"))
    nodes: list[Any] = [OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(p), {"name": p.stem})) for p in paths]
    return nodes


def _unshared(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's tensors; one with two names (a head tied to the embeddings) is given once."""
    once = {id(t): (name, t) for name, t in reversed(module.state_dict(keep_vars=True).items())}
    return {name: tensor.detach() for name, tensor in once.values()}
