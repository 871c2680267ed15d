"""Connectors: sizes as in TinyLLaVA_Factory (tinyllava/model/connector), shapes, and checks of settings and classes."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.composed import composed

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.connectors import (
    MLP,
    Connector,
    Identity,
    Linear,
    MoFMLP,
    Perceiver,
    QFormer,
    Resampler,
)
from tinyvlm_cli.model.vlm import meta_model

PAPER = {"hidden_dim": 768, "num_heads": 12, "num_queries": 128, "num_layers": 3}
FACTORY = {"head_dim": 64, "num_heads": 8, "num_queries": 128, "num_layers": 3}
SMALL = {"hidden_dim": 8, "num_heads": 2, "num_queries": 3, "num_layers": 2}


def size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("vision_dim", "llm_dim", "mlp", "resampler", "factory"),
    [
        (1024, 2048, 6_295_552, 24_101_376, 115_648_512),
        (1152, 2048, 6_557_696, 24_691_968, 115_910_656),
        (1024, 2560, 9_180_160, 24_494_592, 176_017_920),
        (1152, 2560, 9_507_840, 25_085_184, 176_345_600),
    ],
)
def test_sizes(vision_dim: int, llm_dim: int, mlp: int, resampler: int, factory: int) -> None:
    with torch.device("meta"):
        assert size(MLP(vision_dim, llm_dim, depth=2)) == mlp
        assert size(Resampler(vision_dim, llm_dim, **PAPER)) == resampler
        assert size(Perceiver(vision_dim, llm_dim, **FACTORY)) == factory


@pytest.mark.parametrize(
    ("llm_dim", "clip", "siglip"),
    [(896, 1_722_112, 1_836_800), (1280, 2_951_680, 3_115_520), (1536, 3_935_232, 4_131_840)],
)
def test_sizes_of_the_mlp_at_other_widths(llm_dim: int, clip: int, siglip: int) -> None:
    with torch.device("meta"):
        assert (size(MLP(1024, llm_dim, depth=2)), size(MLP(1152, llm_dim, depth=2))) == (clip, siglip)


RESAMPLERS = [
    Resampler(6, 10, **SMALL),
    Perceiver(6, 10, head_dim=4, num_heads=2, num_queries=3, num_layers=2),
    QFormer(6, 10, **SMALL),
]


@pytest.mark.parametrize(
    "connector",
    [MLP(6, 10, depth=2), Linear(6, 10), MoFMLP(6, 10, depth=1), *RESAMPLERS],
    ids=lambda c: type(c).__name__,
)
def test_tokens_of_an_image(connector: Connector) -> None:
    assert connector(torch.randn(2, 8, 6)).shape == (2, connector.num_tokens(8), 10)


@pytest.mark.parametrize("connector", RESAMPLERS, ids=lambda c: type(c).__name__)
def test_a_resampler_reads_the_whole_image_and_trains_everything(connector: Connector) -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 7, 6, requires_grad=True)
    connector(features).square().sum().backward()
    assert features.grad is not None and features.grad.abs().sum(-1).all()
    assert all(p.grad is not None for p in connector.parameters())


def test_the_qformer_has_no_scale_in_its_first_norm_and_no_text_side() -> None:
    names = dict(QFormer(6, 10, **SMALL).named_parameters())
    assert not any(name.startswith("model.layernorm") for name in names)
    assert not any(name.startswith("model.encoder.layer.0.intermediate.") for name in names)
    assert "model.encoder.layer.0.crossattention.attention.key.weight" in names  # every second layer
    assert not any(name.startswith("model.encoder.layer.1.crossattention") for name in names)


def test_the_width_of_feed_forward_blocks_is_a_setting() -> None:
    for connector in (Resampler(6, 10, **SMALL, intermediate_dim=5), QFormer(6, 10, **SMALL, intermediate_dim=5)):
        shapes = {tuple(p.shape) for p in connector.parameters()}
        assert {(5, 8), (8, 5)} <= shapes and (32, 8) not in shapes


@pytest.mark.parametrize(
    ("build", "findings"),
    [
        (lambda: MLP(6, 10, depth=0), ["connector.depth"]),
        (lambda: MLP(6, 10, depth=100_000_000), ["connector.depth"]),
        (lambda: Resampler(6, 10, **{**SMALL, "num_heads": 3}), ["connector.num_heads"]),
        (
            lambda: Resampler(6, 10, **{**SMALL, "num_layers": 0, "num_queries": -1}),
            ["connector.num_queries", "connector.num_layers"],
        ),
        (lambda: QFormer(6, 10, **{**SMALL, "num_heads": 3}), ["connector.num_heads"]),
        (
            lambda: QFormer(6, 10, **{**SMALL, "hidden_dim": 8.5}),
            ["connector.hidden_dim", "connector.intermediate_dim"],
        ),
        (lambda: Perceiver(6, 10, head_dim=4, num_heads=0, num_queries=3, num_layers=2), ["connector.num_heads"]),
    ],
)
def test_sizes_that_cannot_be_are_rejected(build: Callable[[], Connector], findings: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        build()
    assert [line.partition(":")[0] for line in str(raised.value).splitlines()] == findings


MINE = """
from torch import nn
from tinyvlm_cli.model.connectors import Connector

class Pooled(Connector):
    def __init__(self, vision_dim: int, llm_dim: int, *, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.project = nn.Linear(factor * vision_dim, llm_dim)

    def num_tokens(self, num_patches: int) -> int:
        return num_patches // self.factor

    def forward(self, features):
        return self.project(features.unflatten(1, (-1, self.factor)).flatten(2))

class Unannounced(Pooled):
    def num_tokens(self, num_patches: int) -> int:
        return num_patches

class Silent(Connector):
    def __init__(self, vision_dim: int, llm_dim: int, *, factor: int) -> None:
        super().__init__()

class Plain(nn.Module):
    def __init__(self, vision_dim: int, llm_dim: int, *, factor: int) -> None:
        super().__init__()
"""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Pooled", None),
        ("Unannounced", r"connector: Unannounced returns shape \[1, 4, 128\] .* require \[1, 16, 128\]"),
        ("Silent", r"connector: Silent fails on features of shape \[1, 16, 96\] \(NotImplementedError"),
        ("Plain", r"connector._target_: my_connectors.Plain is not a connector"),
    ],
)
def test_a_class_of_ones_own_is_checked_before_weights_are_loaded(
    name: str, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_connectors.py").write_text(MINE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_connectors", raising=False)
    monkeypatch.setenv("TINYVLM_TRUST", "my_connectors")
    config = composed("plan", "llm=tiny", "vision=tiny")
    config.connector = {"name": "mine", "_target_": f"my_connectors.{name}", "factor": 4}
    if says is None:
        assert meta_model(config.llm, config.vision, config.connector).connector.num_tokens(16) == 4
        return
    with pytest.raises(UserError, match=says):
        meta_model(config.llm, config.vision, config.connector)


def test_a_sample_must_hold_an_image_and_text() -> None:
    config = composed("plan", "llm=tiny", "vision=tiny", "llm.max_length=17")
    assert meta_model(config.llm, config.vision, config.connector).tokens_per_image == 16
    config.llm.max_length = 16
    with pytest.raises(UserError, match=r"llm\.max_length: found 16, but an image takes 16 tokens; use more"):
        meta_model(config.llm, config.vision, config.connector)


def test_identity_needs_equal_widths() -> None:
    features = torch.randn(1, 2, 6)
    assert torch.equal(Identity(6, 6)(features), features)
    with pytest.raises(UserError, match="found 6 and 10"):
        Identity(6, 10)


def test_each_encoder_of_mof_has_its_own_mlp() -> None:
    connector = MoFMLP(6, 10, depth=2)
    features = torch.randn(1, 8, 6)
    out = connector(features)
    assert torch.equal(out[:, 0::2], connector.first(features[:, 0::2]))
    assert torch.equal(out[:, 1::2], connector.second(features[:, 1::2]))
