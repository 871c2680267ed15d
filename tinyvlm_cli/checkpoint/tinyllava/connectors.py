"""Converts TinyLLaVA's connectors to ours: the class, its sizes and the names of its tensors.

Connectors and tensors are named as in TinyLLaVA_Factory (tinyllava/model/connector) and TinyLLaVABench
(tinyllava/model/multimodal_projector/builder.py), which has only linear, MLP and resampler connectors. Sizes are
inferred from the shapes of the weights where possible.
"""

import re
from typing import Any

import torch
from torch import Tensor

from tinyvlm_cli.errors import UserError

State = dict[str, Tensor]
Imported = tuple[dict[str, Any], State]  # settings as in conf/connector/*.yaml, and the weights under our names


def import_connector(kind: str, state: State, *, num_heads: int) -> Imported:
    """Return our settings for a checkpoint's connector of type `kind`, and the tensors of `state` under our names.

    num_heads: for a Q-Former, whose weights do not determine it. Raises UserError for other types and missing tensors.
    """
    try:
        if kind == "linear":
            return _imported("linear", "Linear", {f"layers.0.{name}": tensor for name, tensor in state.items()})
        if depth := re.fullmatch(r"mlp(\d{1,3})x_gelu", kind):
            layers = {f"layers.{name}": tensor for name, tensor in state.items()}
            return _imported("mlp", "MLP", layers, depth=int(depth[1]))
        if kind == "identity":
            return _imported("identity", "Identity", state)
        if kind == "mof_mlp":
            out = _renamed(state, {"clip": "first.layers", "dinov2": "second.layers"})
            depth_of_one = sum(tensor.ndim == 2 for name, tensor in out.items() if name.startswith("first."))
            return _imported("mof_mlp", "MoFMLP", out, depth=depth_of_one)
        if kind == "qformer":
            return _qformer(state, num_heads)
        if kind == "resampler":
            return _resampler(state) if "final_proj.weight" in state else _perceiver(state)
    except KeyError as error:
        raise UserError(f"connector '{kind}': tensor {error} is missing; use a complete checkpoint") from None
    raise UserError(
        f"connector_type: '{kind}' is not supported; use linear, identity, mlpNx_gelu, mof_mlp, qformer or resampler"
    )


def _resampler(state: State) -> Imported:
    """Convert TinyLLaVABench's resampler, whose keys and values have separate layers. Ours share a layer."""
    hidden_dim = state["queries"].shape[1]
    out = _renamed(
        state,
        {"resampler_blocks": "layers", "post_norm": "norm", "final_proj": "project_out"},
        {"to_q": "to_query", "to_k": "to_key", "to_v": "to_value"},
    )
    for name in [name for name in out if ".to_key." in name]:
        value_name, joined = name.replace(".to_key.", ".to_value."), name.replace(".to_key.", ".to_key_value.")
        out[joined] = torch.cat([out.pop(name), out.pop(value_name)])
    num_heads = 8 if hidden_dim == 512 else 12  # as in TinyLLaVABench's builder
    sizes = {"hidden_dim": hidden_dim, "num_heads": num_heads, "num_queries": len(state["queries"])}
    sizes |= _layer_sizes(out, "layers", "feed_forward.1")
    return _imported("resampler", "Resampler", out, **sizes)


def _perceiver(state: State) -> Imported:
    """Convert the Factory's resampler, in which each layer is a list of attention (0) and a feed-forward block (1)."""
    out = _renamed(
        state,
        {"linear": "project_in", "latents": "queries"},
        {"norm_media": "norm_image", "norm_latents": "norm_hidden", "to_q": "to_query", "to_kv": "to_key_value"},
    )
    out = {
        re.sub(r"^(layers\.\d+)\.1\.", r"\1.feed_forward.", re.sub(r"^(layers\.\d+)\.0\.", r"\1.", name)): tensor
        for name, tensor in out.items()
    }
    num_heads, rest = divmod(len(out["layers.0.to_query.weight"]), 64)  # its head dimension is always 64
    if rest:
        raise UserError(
            "connector 'resampler': its attention dimension is not a multiple of 64; use another checkpoint"
        )
    sizes = {"head_dim": 64, "num_heads": num_heads, "num_queries": len(state["latents"])}
    sizes |= _layer_sizes(out, "layers", "feed_forward.1")
    return _imported("resampler_factory", "Perceiver", out, **sizes)


def _qformer(state: State, num_heads: int) -> Imported:
    """Convert the Factory's Q-Former, which is BLIP-2's with BERT's names. Its unused text branch is dropped."""
    text_side = re.compile(r"layer\.\d+\.(intermediate|output)\.|position_ids|^bert\.embeddings\.")
    kept = {name: tensor for name, tensor in state.items() if not text_side.search(name)}
    out = _renamed(kept, {"query_tokens": "queries", "projector": "project_out", "bert": "model"})
    out = {name.replace("attention.self.", "attention.attention."): tensor for name, tensor in out.items()}
    _, num_queries, hidden_dim = state["query_tokens"].shape
    sizes = {"hidden_dim": hidden_dim, "num_heads": num_heads, "num_queries": num_queries}
    sizes |= _layer_sizes(out, "model.encoder.layer", "intermediate_query.dense")
    return _imported("qformer", "QFormer", out, **sizes)


def _imported(name: str, class_name: str, state: State, **sizes: Any) -> Imported:
    return ({"name": name, "_target_": f"tinyvlm_cli.model.connectors.{class_name}", **sizes}, state)


def _renamed(state: State, first: dict[str, str], others: dict[str, str] | None = None) -> State:
    """Rename tensors: the first component of a name according to `first`, the others according to `others`."""
    out, others = {}, others or {}
    for name, tensor in state.items():
        prefix, *rest = name.split(".")
        out[".".join([first.get(prefix, prefix), *(others.get(one, one) for one in rest)])] = tensor
    return out


def _layer_sizes(state: State, stack: str, first: str) -> dict[str, int]:
    """Return the number of layers in a stack, and the inner dimension of their feed-forward blocks.

    The dimension is omitted if it is the default, 4 times the outer one. first: name of the first layer in each block.
    """
    num_layers = len({found[1] for name in state if (found := re.match(rf"{re.escape(stack)}\.(\d+)\.", name))})
    inside, outside = state[f"{stack}.0.{first}.weight"].shape
    return {"num_layers": num_layers} | ({} if inside == 4 * outside else {"intermediate_dim": inside})
