"""TinyLLaVA's connectors as ours: which class and sizes, and what their tensors are called.

Names on the left are those of TinyLLaVA_Factory (tinyllava/model/connector) and TinyLLaVABench
(tinyllava/model/multimodal_projector/builder.py); the bench has only linear, MLP and its own resampler.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyvlm_cli.errors import UserError

State = dict[str, Tensor]


@dataclass(frozen=True)
class ImportedConnector:
    """A connector of ours with a foreign one's weights."""

    node: dict[str, Any]  # as in conf/connector/*.yaml
    state: State


def import_connector(kind: str, state: State, *, num_heads: int) -> ImportedConnector:
    """The connector that a checkpoint calls `kind`, with `state` under our names.

    num_heads: of a Q-Former, whose weights do not say it.
    """
    depth = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if kind == "linear":
        return _imported("linear", "connectors.Linear", {f"layers.0.{name}": tensor for name, tensor in state.items()})
    if depth:
        layers = {f"layers.{name}": tensor for name, tensor in state.items()}
        return _imported("mlp", "connectors.MLP", layers, depth=int(depth[1]))
    if kind == "identity":
        return _imported("identity", "connectors.Identity", state)
    if kind == "mof_mlp":
        names = {"clip": "first.layers", "dinov2": "second.layers"}
        out = _renamed(state, lambda name: _first_word(name, names))
        return _imported("mof_mlp", "connectors.MoFMLP", out, depth=2)
    if kind == "qformer":
        return _qformer(state, num_heads)
    if kind == "resampler":
        return _resampler(state) if "final_proj.weight" in state else _perceiver(state)
    raise UserError(f"connector_type: '{kind}' is none of TinyLLaVA's (linear, mlpNx_gelu, resampler, qformer, ...)")


def _resampler(state: State) -> ImportedConnector:
    """The bench's resampler, whose keys and values are two layers and ours one."""
    hidden_dim = state["queries"].shape[1]
    names = {"resampler_blocks": "layers", "post_norm": "norm", "final_proj": "project_out"}
    inner = {"to_q": "to_query", "to_k": "to_key", "to_v": "to_value"}
    out = _renamed(state, lambda name: _words(_first_word(name, names), inner))
    return _imported(
        "resampler",
        "connectors.Resampler",
        _joined(out),
        hidden_dim=hidden_dim,
        num_heads=8 if hidden_dim == 512 else 12,  # as the bench's builder chooses
        num_queries=state["queries"].shape[0],
        num_layers=_count(out, "layers"),
    )


def _perceiver(state: State) -> ImportedConnector:
    """The Factory's resampler: a layer is a list of attention (0) and feed-forward block (1)."""
    names = {"linear": "project_in", "latents": "queries"}
    inner = {"norm_media": "norm_image", "norm_latents": "norm_hidden", "to_q": "to_query", "to_kv": "to_key_value"}

    def ours(name: str) -> str:
        words = _words(_first_word(name, names), inner)
        in_layer = re.fullmatch(r"(layers\.\d+)\.([01])\.(.+)", words)
        if not in_layer:
            return words
        layer, block, rest = in_layer.groups()
        return f"{layer}.{rest}" if block == "0" else f"{layer}.feed_forward.{rest}"

    out = _renamed(state, ours)
    return _imported(
        "resampler_factory",
        "connectors.Perceiver",
        out,
        head_dim=64,
        num_heads=8,
        num_queries=state["latents"].shape[0],
        num_layers=_count(out, "layers"),
    )


def _qformer(state: State, num_heads: int) -> ImportedConnector:
    """The Factory's Q-Former is BLIP-2's with BERT's names; its text side has no weights that count."""
    names = {"query_tokens": "queries", "projector": "project_out", "bert": "model"}
    kept = {
        name: tensor
        for name, tensor in state.items()
        if not re.search(r"layer\.\d+\.(intermediate|output)\.|position_ids|^bert\.embeddings\.", name)
    }
    out = _renamed(kept, lambda name: _first_word(name, names).replace("attention.self.", "attention.attention."))
    return _imported(
        "qformer",
        "connectors.QFormer",
        out,
        hidden_dim=state["query_tokens"].shape[2],
        num_heads=num_heads,
        num_queries=state["query_tokens"].shape[1],
        num_layers=_count(out, "model.encoder.layer"),
    )


def _imported(name: str, target: str, state: State, **sizes: Any) -> ImportedConnector:
    return ImportedConnector({"name": name, "_target_": f"tinyvlm_cli.model.{target}", **sizes}, state)


def _renamed(state: State, ours: Callable[[str], str]) -> State:
    return {ours(name): tensor for name, tensor in state.items()}


def _first_word(name: str, names: dict[str, str]) -> str:
    first, point, rest = name.partition(".")
    return names.get(first, first) + point + rest


def _words(name: str, names: dict[str, str]) -> str:
    return ".".join(names.get(word, word) for word in name.split("."))


def _joined(state: State) -> State:
    """Keys above values in one matrix."""
    out = {name: tensor for name, tensor in state.items() if ".to_key." not in name and ".to_value." not in name}
    for name, key in state.items():
        if ".to_key." in name:
            value = state[name.replace(".to_key.", ".to_value.")]
            out[name.replace(".to_key.", ".to_key_value.")] = torch.cat([key, value])
    return out


def _count(state: State, stack: str) -> int:
    """Layers of a stack."""
    return len({found[1] for name in state if (found := re.match(rf"{re.escape(stack)}\.(\d+)\.", name))})
