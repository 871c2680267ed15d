"""Connector sizes of the reference (facts B9)."""

import pytest
import torch

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
