"""Connector sizes of the reference (facts B9)."""

import pytest
import torch

from tinyvlm_cli.model.connectors import MLP, Linear, Resampler

PAPER = {"hidden_dim": 768, "num_heads": 12, "num_queries": 128, "num_layers": 3}


def size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("vision_dim", "llm_dim", "mlp", "resampler"),
    [
        (1024, 2048, 6_295_552, 24_101_376),
        (1152, 2048, 6_557_696, 24_691_968),
        (1024, 2560, 9_180_160, 24_494_592),
        (1152, 2560, 9_507_840, 25_085_184),
    ],
)
def test_sizes(vision_dim: int, llm_dim: int, mlp: int, resampler: int) -> None:
    with torch.device("meta"):
        assert size(MLP(vision_dim, llm_dim, depth=2)) == mlp
        assert size(Resampler(vision_dim, llm_dim, **PAPER)) == resampler


def test_tokens_of_an_image() -> None:
    small = {"hidden_dim": 8, "num_heads": 2, "num_queries": 3, "num_layers": 1}
    for connector in (MLP(6, 10, depth=2), Linear(6, 10), Resampler(6, 10, **small)):
        assert connector(torch.randn(2, 7, 6)).shape == (2, connector.num_tokens(7), 10)


def test_the_resampler_reads_the_whole_image() -> None:
    torch.manual_seed(0)
    connector = Resampler(6, 10, hidden_dim=8, num_heads=2, num_queries=3, num_layers=1)
    features = torch.randn(1, 7, 6, requires_grad=True)
    connector(features).sum().backward()
    assert features.grad is not None and features.grad.abs().sum(-1).all()
